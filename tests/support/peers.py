"""Other people's programs as clients and targets: finding, starting and ending them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import pytest

from tests.support.waiting import PATIENCE, eventually

# Debian keeps what administrators run out of an ordinary user's PATH.
_PATH: Final = os.environ.get("PATH", os.defpath) + os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))

_LISTENING: Final = "0A"  # TCP_LISTEN, include/net/tcp_states.h


def missing(what: str) -> NoReturn:
    """Skip the test; in CI, fail it: there everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; `make programs` installs what the tests need")
    pytest.skip(f"{what} is missing; `make programs` installs what the tests need")


def program(name: str) -> str:
    """Return the path of a program, or end the test with :func:`missing`."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        missing(name)
    return path


def run(*command: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said. The status is the caller's to judge."""
    options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
    if "input" in options:
        del options["stdin"]
    return subprocess.run(
        [program(command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        check=False,
        **options,
    )


class Program:
    """A program that serves while the block runs. Its output stands in a file, and in the failure's text."""

    def __init__(self, *command: str, tcp: int | None = None, udp: int | None = None, netns: str | None = None) -> None:
        """Entering waits until something listens on port ``tcp`` or ``udp``, looked up without connecting to it."""
        self._command = [program(command[0]), *command[1:]]
        if netns is not None:
            self._command = [program("ip"), "netns", "exec", netns, *self._command]
        self._tcp, self._udp = tcp, udp
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,  # openssl s_server ends at end of file
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            eventually(self._serves, f"{self._command} listens")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _serves(self) -> bool:
        assert self._process.poll() is None, f"{self._command} ended:\n{self.output()}"
        if self._tcp is not None:
            return listens_on(self._process.pid, "tcp", self._tcp)
        return self._udp is None or listens_on(self._process.pid, "udp", self._udp)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """What it has written so far."""
        return os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="backslashreplace")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._output.close()


def listens_on(pid: int, kind: str, port: int) -> bool:
    """Whether a socket in the network namespace of ``pid`` is bound to this port (TCP: and listens)."""
    for family in (kind, f"{kind}6"):
        try:
            table = Path(f"/proc/{pid}/net/{family}").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in table.splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port and (kind == "udp" or state == _LISTENING):
                return True
    return False
