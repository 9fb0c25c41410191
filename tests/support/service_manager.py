"""systemd's part of sd_notify(3) and sd_listen_fds(3), on real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.waiting import PATIENCE

_ROOT: Final = Path(__file__).parent.parent.parent
_MOST: Final = 253
# Moves what it was given to the numbers from 3 on and becomes the program, as a service manager's child does.
_LAUNCH: Final = """
import fcntl, os, sys
numbers = [int(number) for number in sys.argv[1].split()]
for place, copy in enumerate([fcntl.fcntl(number, fcntl.F_DUPFD, 600) for number in numbers], 3):
    os.dup2(copy, place)
os.closerange(3 + len(numbers), 1200)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceManager:
    """Takes messages, keeps descriptors under their names, and hands them to the program that it starts."""

    def __init__(self, address: str) -> None:
        """Listen on a path, or on ``@`` and an abstract name."""
        self.environ = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)
        self.kept: list[tuple[str, int]] = []
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            self.kill(process)
        self._socket.close()
        for _, descriptor in self.kept:
            os.close(descriptor)

    def hear(self) -> str:
        """Wait for the next message, do what it says, and return its text."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, _MOST)
        text = data.decode()
        fields = dict(line.split("=", 1) for line in text.splitlines())
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields:
            known = {os.fstat(number).st_ino for _, number in self.kept}
            new = [number for number in descriptors if os.fstat(number).st_ino not in known]
            self.kept += [(name, number) for number in new]
            descriptors = [number for number in descriptors if number not in new]
        if "FDSTOREREMOVE" in fields:
            descriptors = [descriptor for known, descriptor in self.kept if known == name]
            self.kept = [(known, descriptor) for known, descriptor in self.kept if known != name]
        for descriptor in descriptors:  # that of BARRIER, too: it is lifted by being closed
            os.close(descriptor)
        return text

    def hear_until(self, wanted: str) -> None:
        """Go on until a message holds this."""
        while wanted not in self.hear():
            pass

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Python with these arguments, and with all that is kept. It lives no longer than this block."""
        process = subprocess.Popen(
            [*self.launcher(), sys.executable, *arguments],
            cwd=_ROOT,
            env={**os.environ, **self.environment()},
            pass_fds=self.descriptors(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    # What a program that others start has to be given: these three together.

    def launcher(self) -> list[str]:
        """The command that becomes the one behind it, once what is kept is where that looks for it."""
        return [sys.executable, "-I", "-S", "-c", _LAUNCH, " ".join(map(str, self.descriptors()))]

    def environment(self) -> dict[str, str]:
        """To be added to that of the program."""
        if not self.kept:
            return self.environ
        names = ":".join(name for name, _ in self.kept)
        return {**self.environ, "LISTEN_FDS": str(len(self.kept)), "LISTEN_FDNAMES": names}

    def descriptors(self) -> list[int]:
        """To be inherited, under these numbers."""
        return [descriptor for _, descriptor in self.kept]

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        """End a process that was started here as if it had crashed."""
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
