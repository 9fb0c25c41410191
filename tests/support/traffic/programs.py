"""Programs as clients: an SSH session and ping, which print a line for each thing that arrives; and iperf3."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

from tests.support.openssh import Sshd
from tests.support.peers import program, run
from tests.support.sockets_of import sockets_of
from tests.support.traffic.source import LONGEST, Address, Source, WrongAnswerError
from tests.support.waiting import PATIENCE

_COUNT: Final = "i=0; while echo $((i=i+1)); do sleep 0.1; done"
_PAUSE: Final = 0.1
_SIZE: Final = 100_000
_BLOCK: Final = 5_000
_RATE: Final = "8M"
"""Bits a second, so that a run takes a tenth of a second, and little CPU."""
_SEQUENCE: Final = re.compile(r"bytes from .* icmp_seq=(\d+) ")


class _Program(Source):
    """A program that is started again when it ended by itself."""

    def __init__(self, name: str, command: Sequence[str], *, things: str, is_udp: bool) -> None:
        super().__init__(name, things=things, is_udp=is_udp)
        self._command = [program(command[0]), *command[1:]]
        self._process: subprocess.Popen[str] | None = None

    def _run(self) -> None:
        """Run it once, to its end."""
        with self._changed:
            if self._stopping.is_set():
                return
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._line(line)
        self._process.wait(PATIENCE)

    def _line(self, line: str) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        with self._changed:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                    self._process.send_signal(signal.SIGCONT)  # one that rests would not notice


class SshSession(_Program):
    """A session in which numbered lines arrive without a gap, for as long as it is left alone."""

    def __init__(self, to: Address, sshd: Sshd) -> None:
        command = sshd.client(to[1], _COUNT, host=to[0])
        super().__init__("lines of an SSH session", command, things="SSH sessions", is_udp=False)
        self._to = to
        self._address: Address | None = None
        self._last = 0
        self._said = ""

    def _live(self, number: int) -> None:  # noqa: ARG002  there is one
        while not self._stopping.is_set():
            self._address, self._last = None, 0
            self._run()
            if not self._stopping.is_set():
                self._lose(f"ended after {self._last} lines: {self._said}", self._address)

    def _line(self, line: str) -> None:
        if self._address is None and self._process is not None:
            pairs = sockets_of(self._process.pid, "tcp")
            self._address = next((pair.local for pair in pairs if pair.remote == self._to), None)
        if line != f"{self._last + 1}\n":
            self._said = line.strip()
            return
        self._last += 1
        self._count(0)


class Ping(_Program):
    """Pings at a fixed rate, each sent once."""

    def __init__(self, host: str, interval: float) -> None:
        super().__init__(
            "pings through WireGuard", ["ping", "-n", "-i", str(interval), host], things="pings", is_udp=True
        )
        self._arrived: set[int] = set()

    def _live(self, number: int) -> None:  # noqa: ARG002  there is one
        self._run()
        # Those that were sent after the last one that came back may still be on their way.
        for missing in sorted(set(range(1, max(self._arrived, default=1))) - self._arrived):
            self._lose(f"number {missing}", None)

    def rest(self) -> None:
        """Send nothing for a while."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Send again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _line(self, line: str) -> None:
        if found := _SEQUENCE.search(line):
            self._arrived.add(int(found[1]))
            self._count(0)


class Iperf(Source):
    """Short runs of TCP through a tunnel, one after another, to the server and from it in turn."""

    def __init__(self, host: str) -> None:
        super().__init__("iperf3 runs through WireGuard")
        sizes = ["--bytes", str(_SIZE), "--length", str(_BLOCK), "--bitrate", _RATE]
        self._command = ["iperf3", "--client", host, "--json", *sizes]
        self._running = threading.Lock()

    def _live(self, number: int) -> None:
        for options in itertools.cycle(((), ("--reverse",))):
            if self._stopping.wait(_PAUSE):
                return
            try:
                with self._running:
                    self._run(options)
            except (subprocess.TimeoutExpired, ValueError, WrongAnswerError) as error:
                self._lose(repr(error), None)
            else:
                self._count(number)

    def _run(self, options: Sequence[str]) -> None:
        result = run(*self._command, *options, timeout=LONGEST)
        report = json.loads(result.stdout)
        if "error" in report:
            raise WrongAnswerError(report["error"])
        sent, received = (report["end"][end]["bytes"] for end in ("sum_sent", "sum_received"))
        # What is still on its way does not count: the word that all was sent has a connection of its own, and may
        # overtake it.
        if sent < _SIZE or not 0 < received <= sent:
            raise WrongAnswerError(f"{received} bytes of {sent} {options}")

    def rest(self) -> None:
        """Finish the run that is under way, and begin no other for a while."""
        assert self._running.acquire(timeout=LONGEST)

    def go_on(self) -> None:
        """Begin runs again."""
        self._running.release()

    def _wake(self) -> None:
        """Do nothing: it looks after each run."""
