"""The proxies that are compared: finding, configuring, starting and stopping them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import proc
from bench.cache import CACHE, PROGRAMS
from bench.load import build, pinned
from bench.workloads import NAME, Workload

TEMPLATES: Final = Path(__file__).parent / "contestants"
_PLACEHOLDER: Final = re.compile(r"@(\w+)@")
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+[^\s/]*")
_COMPILED: Final = re.compile(r"^data path: +compiled$", re.MULTILINE)
"""What ours says of itself, where that is so."""
_START: Final = 10.0
_STOP: Final = 3.0
_TICK: Final = 0.02
_ELF: Final = b"\x7fELF"
_ARGUMENTS: Final = ".args"


class ContestantError(Exception):
    """A proxy did not start."""


@dataclass(frozen=True)
class Contestant:
    """One proxy: how it is found and started. What it can do is which templates it has."""

    name: str
    title: str
    programs: tuple[str, ...]
    """Names to look for, best first."""
    arguments: tuple[str, ...]
    """``{config}``, ``{folder}`` and ``{workers}`` are filled in."""
    version: tuple[str, ...]
    """Arguments that make it print its version."""
    environment: tuple[tuple[str, str], ...] = ()
    most_sessions: int = 1 << 30
    most_workers: int = 1 << 30
    holds_idle: bool = True
    """It takes part where the memory for idle sessions is measured."""
    only_kept_flows: bool = False
    """It takes part in UDP only where a flow does more than one thing."""
    binary: bool = False
    """Only a compiled program will do: a script of the same name is something else."""

    def template(self, workload: Workload) -> Path | None:
        """Return the configuration for a workload; None when it cannot do that.

        One called ``bulk`` is for TCP in bulk, where a proxy has to be set up in another way to be at its best. One
        that ends in ``.args`` holds further arguments.
        """
        jobs = ("bulk", "tcp") if workload.job == "tcp" and workload.unit == "GB" else (workload.job,)
        return next((path for job in jobs for path in TEMPLATES.glob(f"{self.name}/{job}.*")), None)

    def supports(self, workload: Workload) -> bool:
        """Return whether it can take part."""
        return (
            self.template(workload) is not None
            and workload.load.sessions <= self.most_sessions
            and workload.workers <= self.most_workers
            and (self.holds_idle or not workload.is_memory)
            and not (self.only_kept_flows and workload.load.new and workload.load.transport == "udp")
        )


KERNEL: Final = "kernel"
"""Ours once more, where the kernel forwards."""
_OURS: Final = ("-m", "rpxy_l4", "--config", "{config}")
_OURS_VERSION: Final = ("-m", "rpxy_l4", "-VV")
FLOOR: Final = "floor"
"""Nobody's proxy: the system calls of ours, made by a loop in C that is compiled at its first use."""

ALL: Final = (
    Contestant("ours", "rpxy-l4", ("python",), _OURS, _OURS_VERSION),
    Contestant(
        KERNEL, "rpxy-l4, kernel path", ("python",), _OURS, _OURS_VERSION, holds_idle=False, only_kept_flows=True
    ),
    Contestant("haproxy", "HAProxy", ("haproxy",), ("-db", "-q", "-f", "{config}"), ("-v",)),
    Contestant("nginx", "nginx stream", ("nginx",), ("-p", "{folder}", "-c", "{config}"), ("-v",)),
    Contestant(
        "sslh",
        "sslh",
        ("sslh-ev", "sslh-select"),
        ("-F{config}",),
        ("-V",),
        # sslh-select asks select(2), which knows 1024 descriptors; a session has two.
        most_sessions=480,
        most_workers=1,
    ),
    Contestant(
        "envoy",
        "Envoy",
        ("envoy",),
        ("-c", "{config}", "--concurrency", "{workers}", "--disable-hot-restart", "--log-level", "error"),
        ("--version",),
    ),
    Contestant(
        "rust",
        "rust-rpxy-l4",
        ("rpxy-l4-rust", "rpxy-l4"),
        ("--config", "{config}"),
        ("--version",),
        environment=(("TOKIO_WORKER_THREADS", "{workers}"), ("RUST_LOG", "error")),
        binary=True,
    ),
    Contestant(
        "caddy",
        "caddy layer4",
        ("caddy",),
        ("run", "--config", "{config}"),
        ("version",),
        environment=(("GOMAXPROCS", "{workers}"),),
    ),
    Contestant(FLOOR, "C loop", (), (), ("--version",), most_workers=1, holds_idle=False),
)
DIRECT: Final = "none"
"""No proxy at all: the ceiling."""


@dataclass
class Running:
    """A proxy at work."""

    contestant: Contestant
    port: int
    process: subprocess.Popen[bytes]

    def pids(self) -> list[int]:
        """Return the ids of all its processes."""
        return proc.tree_of(self.process.pid)


def find(contestant: Contestant, named: Mapping[str, str]) -> Path | None:
    """Return its program: the one that was named, or one in the cache or on PATH; None where there is none.

    Raises LoadError when the loop in C does not compile.
    """
    if contestant.name in named:
        return Path(named[contestant.name])
    if contestant.name in {"ours", KERNEL}:
        return Path(sys.executable)
    if contestant.name == FLOOR:
        return None if shutil.which("cc") is None else build("relay")
    path = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for program in contestant.programs:
        found = shutil.which(program, path=path)
        if found is not None and (not contestant.binary or _is_compiled(Path(found))):
            return Path(found)
    if contestant.name == "envoy":
        # Where its Python package puts it.
        return next(iter(CACHE.glob("envoy/lib/python*/site-packages/envoy/_bin/envoy")), None)
    return None


def _is_compiled(program: Path) -> bool:
    with program.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


def version(contestant: Contestant, program: Path) -> str:
    """Return the version that it says it has."""
    done = subprocess.run([program, *contestant.version], capture_output=True, text=True, check=False)
    found = version_in((done.stdout + done.stderr).replace(str(program), ""))
    return f"{found}, compiled" if _COMPILED.search(done.stdout) else found


def version_in(text: str) -> str:
    """Return the first version number in a text; ``unknown`` when there is none."""
    found = _VERSION.search(text)
    return "unknown" if found is None else found[0]


def render(template: str, values: Mapping[str, object]) -> str:
    """Return a template with ``@word@`` replaced; KeyError names a word that has no value."""
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), template)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now, for TCP and UDP alike."""
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        stream.bind(("127.0.0.1", 0))
        port: int = stream.getsockname()[1]
        try:
            datagram.bind(("127.0.0.1", port))
        except OSError:  # taken for UDP only
            return free_port()
    return port


@contextmanager
def running(
    contestant: Contestant, program: Path, workload: Workload, target_port: int, cores: set[int]
) -> Iterator[Running]:
    """Run a proxy for a workload; it listens when the body begins. Raises ContestantError when it does not start."""
    template = contestant.template(workload)
    if template is None:
        raise ContestantError(f"{contestant.name} has no template for {workload.job}")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix=f"bench-{contestant.name}-") as name:
        folder = Path(name)
        config = folder / f"config{template.suffix}"
        values = {
            "listen": port,
            "target": target_port,
            "workers": workload.workers,
            "idle": workload.idle,
            "name": NAME,
            "folder": folder,
            "config": config,
        }
        text = render(template.read_text(), values)
        config.write_text(text)
        command = [str(program), *(word.format_map(values) for word in contestant.arguments)]
        if template.suffix == _ARGUMENTS:
            command += text.split()
        environment = {key: word.format_map(values) for key, word in contestant.environment}
        complaints = folder / "stderr"
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                pinned(cores, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **environment},
                # A group of its own, so that nothing of it is left behind.
                start_new_session=True,
            )
        try:
            _wait_until(lambda: _listens(workload, port), process, complaints)
            yield Running(contestant, port, process)
        finally:
            _stop(process)


def _listens(workload: Workload, port: int) -> bool:
    if workload.load.transport == "udp":
        return proc.has_udp_port(Path("/proc/net/udp").read_text(), port)
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], complaints: Path) -> None:
    deadline = time.monotonic() + _START
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ContestantError(complaints.read_text().strip() or "it does not listen")
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TICK)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
