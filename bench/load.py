"""The load generators and their targets: building them, and running them pinned to a core."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from bench import packets
from bench.cache import CACHE
from bench.workloads import NAME, Load

SOURCES: Final = Path(__file__).parent / "load"
_FLAGS: Final = ("-O2", "-std=gnu17", "-Wall", "-Wextra")


class LoadError(Exception):
    """A generator or a target did not do its work."""


@dataclass(frozen=True)
class Result:
    """What a generator counted in the measured time."""

    seconds: float
    requests: int
    lost: int
    sent: int
    received: int
    p50: float
    p99: float
    p999: float
    max: float
    """Latencies in microseconds, from when a request was due to the end of its answer."""


def build(name: str) -> Path:
    """Return a program, compiled now if its source has changed. Raises LoadError when the compiler is not content."""
    source = SOURCES / f"{name}.c"
    program = CACHE / "load" / f"{name}-{_digest(source, SOURCES / 'common.h')}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(".new")
        try:
            subprocess.run(["cc", *_FLAGS, "-o", fresh, source], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise LoadError("a C compiler is needed: install gcc") from error
        except subprocess.CalledProcessError as error:
            raise LoadError(f"{source} does not compile:\n{error.stderr}") from error
        fresh.rename(program)
    return program


def _digest(*sources: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def pinned(cores: set[int], command: list[str]) -> list[str]:
    """Return a command that runs on these cores only."""
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *command]


def with_payload(load: Load) -> tuple[Load, Path | None]:
    """Return the load with the size of its real requests, and the file they are in; made once."""
    if load.payload == "letters":
        return load, None
    if load.payload == "initials":
        path = CACHE / "load" / f"initials-{_digest(Path(packets.__file__))}.bin"
        packets.write_initials(path, NAME)
        return load, path
    path = CACHE / "load" / "hello.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(packets.client_hello(NAME))
    return replace(load, request=path.stat().st_size), path


@contextmanager
def target(load: Load, port: int, cores: set[int]) -> Iterator[None]:
    """Run the target of a load; it listens when the body begins."""
    load, _ = with_payload(load)
    command = [str(build(f"{load.transport}_target")), "--port", str(port), "--response", str(load.response)]
    if load.transport == "tcp":
        command += ["--request", str(load.request), "--close", str(int(load.new))]
    else:
        command += ["--burst", str(load.burst), "--bursts", str(load.bursts), "--segment", str(int(load.segment))]
    with _started(pinned(cores, command)) as process:
        _expect(process, "ready")
        yield


def run(
    load: Load,
    port: int,
    cores: set[int],
    *,
    seconds: float,
    rate: float = 0.0,
    at_ready: Callable[[], object],
    at_begin: Callable[[], object],
    at_end: Callable[[], object],
) -> Result:
    """Run a generator and return what it counted.

    ``at_ready`` is called when all sessions are open, ``at_begin`` and ``at_end`` when the measured time begins and
    ends. Raises LoadError when the sessions cannot be opened or no answers come.
    """
    command = _generator(load, port)
    command += ["--seconds", str(seconds), "--rate", str(rate), "--count", str(load.count)]
    with _started(pinned(cores, command)) as process:
        _expect(process, "ready")
        at_ready()
        _expect(process, "begin")
        at_begin()
        _expect(process, "end")
        at_end()
        return parse_result(_line(process))


@contextmanager
def held(load: Load, port: int, cores: set[int]) -> Iterator[None]:
    """Open all sessions, make one exchange on each, and keep them open during the body."""
    command = [*_generator(load, port), "--hold", "1"]
    with _started(pinned(cores, command)) as process:
        _expect(process, "ready")
        yield


def parse_result(line: str) -> Result:
    """Return a generator's result from its last line."""
    values: dict[str, Any] = json.loads(line)
    return Result(**values)


def _generator(load: Load, port: int) -> list[str]:
    load, payload = with_payload(load)
    command = [str(build(f"{load.transport}_load")), "--port", str(port)]
    for name in ("sessions", "window", "request", "response"):
        command += [f"--{name}", str(getattr(load, name))]
    command += ["--new", str(int(load.new))]
    if load.transport == "udp":
        command += ["--burst", str(load.burst), "--bursts", str(load.bursts)]
    if payload is not None:
        command += ["--payload", str(payload)]
    return command


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _expect(process: subprocess.Popen[str], word: str) -> None:
    line = _line(process)
    if line != word:
        raise LoadError(f"{process.args!r} said {line!r} instead of {word!r}")


def _line(process: subprocess.Popen[str]) -> str:
    line = _pipe(process.stdout).readline()
    if not line:
        process.kill()
        said = _pipe(process.stderr).read().strip()
        raise LoadError(said or f"{process.args!r} ended without a word")
    return line.strip()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise LoadError("a program was started without its pipes")
    return pipe
