"""The real program in processes of its own, driven from outside as an operator would."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from prometheus_client.parser import text_string_to_metric_families

from tests.support.ports import free_port
from tests.support.waiting import IS_EMULATED, PATIENCE, eventually

ROOT: Final = Path(__file__).parent.parent.parent

DEFAULT_ADMIN_PORT: Final = 9448

_TROUBLE: Final = re.compile(r"^\S+ (error|critical) |Traceback \(most recent call last\)|^\S+ warning .*Warning")
_TITLE: Final = re.compile(r"^rpxy-l4: worker (?P<number>\d+) ")
_PAIR: Final = re.compile(r"(\w+)=(\S*)")

Session = dict[str, str]
"""The ``key=value`` pairs of one access-log line."""


class _Lines:
    """Lines that a thread reads from a pipe, and waiting for one of them."""

    def __init__(self, pipe: IO[str], may_read: threading.Event) -> None:
        self._pipe = pipe
        self._may_read = may_read
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._may_read.wait()
        with self._pipe:
            for line in self._pipe:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def now(self) -> list[str]:
        with self._changed:
            return list(self._lines)

    def join(self) -> None:
        self._thread.join(PATIENCE)

    def wait_for(self, wanted: Callable[[str], bool], count: int, timeout: float) -> list[str] | None:
        """The first ``count`` matching lines; None when they did not come in time, or cannot come any more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [line for line in self._lines if wanted(line)]
                if len(found) >= count:
                    return found[:count]
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    return None
                self._changed.wait(left)


class Proxy:
    """``rpxy-l4 -c FILE`` as a context manager.

    Entering returns when the first configuration is in force. Leaving sends TERM and checks that the program ended with
    status 0 and that its log holds no error that the test did not announce with :meth:`expect_trouble`.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        *,
        arguments: Sequence[str] = (),
        launcher: Sequence[str] = (),
        max_files: tuple[int, int] | None = None,
        port: int | None = None,
        netns: str | None = None,
        reads_access_log: bool = True,
        environment: Mapping[str, str] | None = None,
        as_it_stands: bool = False,
        tcp_by_kernel: bool = False,
        program: Path = ROOT,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Keys that ``config`` does not set get values that suit a test: a free port on 127.0.0.1, two workers.

        ``launcher`` is a command that starts the one behind it, in some other surroundings.
        Among these is that TCP with nothing to detect stays in user space, unless ``tcp_by_kernel``: most tests look at
        what workers do. ``as_it_stands`` adds none; the admin process is then expected where it is by default.
        ``max_files`` is the soft and the hard limit to start with. Without ``reads_access_log`` nobody reads standard
        output before the end. ``environment`` is added to that of the tests.
        With ``as_it_stands`` nothing is added to ``config``. ``program`` is the folder of the package to run.
        ``pass_fds`` are descriptors for ``launcher`` to inherit.
        """
        self.folder = folder
        self.port = free_port() if port is None else port
        self.admin_port = DEFAULT_ADMIN_PORT if as_it_stands else free_port()
        self._as_it_stands = as_it_stands
        self._tcp_by_kernel = tcp_by_kernel
        self.path = folder / "config.toml"
        self._arguments = arguments
        self._launcher = launcher
        self._max_files = max_files
        self._netns = netns
        self._program = program
        self._pass_fds = pass_fds
        self._environment = {**os.environ, **(environment or {})}
        self._may_read_access = threading.Event()
        if reads_access_log:
            self._may_read_access.set()
        # On an emulated machine it takes longer to start than it may be silent.
        self._expected = [re.compile("the admin process")] if IS_EMULATED else []
        self.path.write_text(config if as_it_stands else self.complete(config))
        self.exit_status: int | None = None
        """Set once the program has ended."""

    def complete(self, config: str) -> str:
        """The configuration with the keys added that every test wants."""
        if self._as_it_stands:
            return config
        given = tomllib.loads(config)
        usual = {
            "listen_port": f"{self.port}",
            "listen_address_v4": '"127.0.0.1"',
            "workers": "2",
            "watch": "false",
            "drain_timeout": '"500ms"',
        }
        if not self._tcp_by_kernel and "tcp_target" in given and "protocols" not in given:
            usual["kernel_path"] = '"off"'
        head = "".join(f"{key} = {value}\n" for key, value in usual.items() if key not in given)
        tail = "" if "admin" in given else f'\n[admin]\nlisten = "127.0.0.1:{self.admin_port}"\n'
        return f"{head}{config}{tail}"

    def write(self, config: str) -> None:
        """Write the file in place, completed."""
        self.path.write_text(self.complete(config))

    def __enter__(self) -> Self:
        """Start it and wait until it serves."""
        self.start()
        self.wait_for("generation 1 applied on")
        return self

    def start(self) -> None:
        """Start it, without waiting."""
        command = [*self._launcher, sys.executable, "-m", "rpxy_l4", "--config", str(self.path), *self._arguments]
        if self._netns is not None:
            command = ["ip", "netns", "exec", self._netns, *command]
        limit = self._max_files

        def before_exec() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)

        self._process = subprocess.Popen(
            command,
            cwd=self._program,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
            pass_fds=self._pass_fds,
            preexec_fn=before_exec,  # noqa: PLW1509  it makes one system call
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._access = _Lines(self._process.stdout, self._may_read_access)
        always = threading.Event()
        always.set()
        self._events = _Lines(self._process.stderr, always)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; where the test itself was fine, check how it went."""
        ended_before = self._process.poll() is not None
        if not ended_before:
            self.signal(signal.SIGTERM)
        try:
            status = self.wait_end()
        except BaseException:
            self._kill_all()
            if kind is None:
                raise
            status = None
        # Shown only for a test that failed.
        sys.stderr.write("".join(f"proxy: {line}\n" for line in [*self.log(), *self._access.now()[-50:]]))
        if kind is not None:
            return
        assert status == 0 or ended_before, f"exit status {status}:\n" + "\n".join(self.log())
        assert self.trouble() == []

    def wait_end(self, timeout: float = PATIENCE) -> int:
        """Wait until it has ended, all its output included; return its exit status."""
        self.exit_status = self._process.wait(timeout)
        self._may_read_access.set()
        self._access.join()
        self._events.join()
        return self.exit_status

    def has_not_ended(self) -> bool:
        """Whether the supervisor lives."""
        return self._process.poll() is None

    def _kill_all(self) -> None:
        # Its own session and so its own group: nothing else is in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    # What it says.

    def log(self) -> list[str]:
        """The lines of the event log so far."""
        return self._events.now()

    def wait_for(self, text: str, timeout: float = PATIENCE, count: int = 1) -> str:
        """Wait until the event log has ``count`` lines that contain ``text``; return the last of these."""
        lines = self._events.wait_for(lambda line: text in line, count, timeout)
        assert lines is not None, f"no {text!r} within {timeout} s in:\n" + "\n".join(self.log())
        return lines[-1]

    def expect_trouble(self, pattern: str) -> None:
        """Errors in the log that match this regular expression are what the test is about."""
        self._expected.append(re.compile(pattern))

    def trouble(self) -> list[str]:
        """The error lines of the log that nobody announced."""
        lines = [line for line in self.log() if _TROUBLE.search(line)]
        return [line for line in lines if not any(pattern.search(line) for pattern in self._expected)]

    def access_lines(self) -> list[Session]:
        """The lines of the access log so far."""
        return [dict(_PAIR.findall(line)) for line in self._access.now()]

    def wait_for_sessions(self, count: int, **wanted: str) -> list[Session]:
        """Wait for ``count`` lines of ended (or with ``event="refused"``: refused) sessions with these values."""
        wanted.setdefault("event", "session")

        def fits(line: str) -> bool:
            pairs = dict(_PAIR.findall(line))
            return all(pairs.get(key) == value for key, value in wanted.items())

        lines = self._access.wait_for(fits, count, PATIENCE)
        assert lines is not None, f"no {count} sessions like {wanted} in:\n" + "\n".join(self._access.now())
        return [dict(_PAIR.findall(line)) for line in lines]

    def wait_for_session(self, **wanted: str) -> Session:
        """Wait for one ended session with these values."""
        return self.wait_for_sessions(1, **wanted)[0]

    # What can be done to it.

    @property
    def pid(self) -> int:
        """The supervisor's process."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    def reload(self, config: str, generation: int) -> None:
        """Write a completed configuration, send HUP, and wait until it is in force."""
        self.write(config)
        self.signal(signal.SIGHUP)
        self.wait_for(f"generation {generation} applied on")

    def children(self) -> dict[int, str]:
        """The supervisor's child processes with their titles."""
        return {pid: title for pid in child_pids(self.pid) if (title := process_title(pid))}

    def worker_pids(self) -> dict[int, int]:
        """Process of each worker, by the number in its title; those still without a title are left out."""
        found = {pid: _TITLE.match(title) for pid, title in self.children().items()}
        return {int(match["number"]): pid for pid, match in found.items() if match is not None}

    # Clients.

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect to."""
        return "127.0.0.1", self.port

    def connect(self, source: str | None = None, timeout: float = PATIENCE) -> socket.socket:
        """A TCP connection to the proxy."""
        return socket.create_connection(self.address, timeout, None if source is None else (source, 0))

    def udp(self, host: str = "127.0.0.1") -> socket.socket:
        """A UDP socket connected to the proxy: what it receives came from the address it sends to."""
        client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(PATIENCE)
        client.connect((host, self.port))
        return client

    # The admin address.

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a GET on the admin address; 0 and the error's text when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def metrics_text(self) -> str:
        """``GET /metrics``, as soon as the admin process answers and has been told the configuration."""

        def fetch() -> str | None:
            status, text = self.get("/metrics")
            return text if status == 200 and "rpxy_l4_config_info{" in text else None

        return eventually(fetch, "/metrics answers") or ""

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of ``/metrics``."""
        families = text_string_to_metric_families(self.metrics_text())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name (without the prefix) that have these labels; 0 without any."""
        wanted = set(labels.items())
        return sum(
            value for (known, has), value in self.metrics().items() if known == f"rpxy_l4_{name}" and wanted <= has
        )

    def wait_for_metric(self, name: str, at_least: float, **labels: str) -> float:
        """Wait until :meth:`metric` is at least so much."""
        return eventually(
            lambda: value if (value := self.metric(name, **labels)) >= at_least else 0,
            f"{name}{labels} >= {at_least}",
        )


def child_pids(pid: int) -> list[int]:
    """The living children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_title(pid: int) -> str:
    """What ``ps`` shows; empty when the process has gone or is a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def process_state(pid: int) -> str:
    """``R``, ``S``, ``T`` and so on."""
    return _stat(pid)[0]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """What proc_pid_stat(5) has from its third field on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def run_cli(*arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; for uses that do not serve."""
    return subprocess.run(
        [sys.executable, "-m", "rpxy_l4", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
