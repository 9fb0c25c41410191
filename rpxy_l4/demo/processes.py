"""The demo's two child processes: the proxy as anybody would run it, and the targets."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rpxy_l4.demo.scene import DRAIN_SECONDS, HOST
from rpxy_l4.demo.targets import Served
from rpxy_l4.logs import EVENT_FILE

_STARTING: Final = 30.0
"""Seconds until a child that does not serve yet is given up."""
_STOPPING: Final = DRAIN_SECONDS + 8.0
_POLL: Final = 0.05
_TAIL_LINES: Final = 20
_ANY_PORT_TRIES: Final = 20
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_LIBC: Final = ctypes.CDLL(None)


class DemoError(Exception):
    """The demo cannot go on; the text is for its user."""


class Child:
    """A process that is stopped when this object is left.

    It has a process group of its own: Ctrl-C reaches only this process, which then stops the others in order. Should
    this process be killed, they end by themselves.
    """

    def __init__(self, name: str, command: Sequence[str], said: Path, *, talks: bool = False) -> None:
        """Start it. What it says goes to the file ``said``; with ``talks`` its standard input and output are pipes."""
        self.name = name
        self._said = said
        with said.open("ab") as file:
            self.process: Final = subprocess.Popen(  # noqa: S603  this very program
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else file,
                stderr=file,
                process_group=0,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  one system call, and this process has no threads
            )
        self._pidfd = os.pidfd_open(self.process.pid)

    def fileno(self) -> int:
        """Return a descriptor that is readable once the process has ended."""
        return self._pidfd

    def said(self) -> str:
        """Return the end of what it said."""
        return tail(self._said)

    def __enter__(self) -> Self:
        """Hand out this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process: TERM, and KILL when it does not end in a decent time."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOPPING)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self._pidfd)


def pause(children: Sequence[Child], seconds: float) -> None:
    """Wait. Raises DemoError as soon as one of the children has ended."""
    ended, _, _ = select.select(children, (), (), seconds)
    for child in ended:
        status = child.process.wait()
        raise DemoError(f"the {child.name} ended unexpectedly, status {status}; its last words:\n{child.said()}")


@contextlib.contextmanager
def running_targets(directory: Path) -> Iterator[tuple[Child, Served]]:
    """Run the targets, with their files in this directory. Raises DemoError when they do not start."""
    command = [sys.executable, "-m", "rpxy_l4.demo.targets", str(directory)]
    with Child("targets", command, directory / "targets.log", talks=True) as child:
        output = child.process.stdout
        if output is None or not select.select([output], (), (), _STARTING)[0]:
            raise DemoError(f"the targets do not start; they say:\n{child.said()}")
        line = output.readline()
        if not line:
            pause([child], _STARTING)
        yield child, Served(**json.loads(line))


@contextlib.contextmanager
def running_proxy(config: Path, log_dir: Path, admin_port: int, targets: Child) -> Iterator[Child]:
    """Run the proxy as a shell would; it is ready inside.

    Raises DemoError when it does not get ready, or one of the two processes ends before.
    """
    command = [sys.executable, "-m", "rpxy_l4", "--config", str(config), "--log-dir", str(log_dir)]
    with Child("proxy", command, config.parent / "proxy.out") as child:
        deadline = time.monotonic() + _STARTING
        while not _is_ready(admin_port):
            if time.monotonic() > deadline:
                raise DemoError(f"the proxy does not get ready; it says:\n{child.said()}\n{tail(log_dir / EVENT_FILE)}")
            pause([child, targets], _POLL)
        yield child


def choose_port(preferred: int, kinds: Sequence[socket.SocketKind]) -> int:
    """Return the preferred port of loopback, or where that is taken, any that is free for all these kinds of socket.

    Raises DemoError when there is none.
    """
    if is_free(preferred, kinds):
        return preferred
    for _ in range(_ANY_PORT_TRIES):
        with socket.socket(socket.AF_INET, kinds[0]) as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if is_free(port, kinds):
            return port
    raise DemoError("there is no free port")


def is_free(port: int, kinds: Sequence[socket.SocketKind]) -> bool:
    """Return whether the port of loopback can be bound by all these kinds of socket."""
    for kind in kinds:
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind is socket.SOCK_STREAM:
                # The proxy does the same: connections of an earlier run in TIME_WAIT do not matter.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True


def tail(path: Path) -> str:
    """Return the end of a text file, indented; a note when there is nothing."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    return "\n".join(f"  {line}" for line in lines) or "  (nothing)"


def _is_ready(admin_port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, admin_port, timeout=_STARTING)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
