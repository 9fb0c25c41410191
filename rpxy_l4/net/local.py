"""A socket with a name in the file system, for orders of operators: whole packets (unix(7), SOCK_SEQPACKET)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final, Self

_BACKLOG: Final = 128
_OURS_ALONE: Final = 0o600
_SUFFIX: Final = ".new"
"""Of the name that a socket has until it is ready."""


class LocalConnection:
    """One end of a connection. Does not block, unless made by :func:`connect`."""

    def __init__(self, end: socket.socket) -> None:
        """Take ownership."""
        self._socket = end

    @classmethod
    def of(cls, descriptor: int) -> Self:
        """Return the connection that a descriptor stands for, which is owned from now on."""
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        return cls(end)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, packet: bytes) -> bool:
        """Send a packet; False when nobody is there or it finds no room."""
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self, size: int) -> bytes:
        """Return the next packet, or its first ``size`` bytes; empty when there will be none.

        Raises BlockingIOError when there is none as yet, TimeoutError when none came in time.
        """
        try:
            return self._socket.recv(size)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Close it at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close this end."""
        self.close()


class LocalListener:
    """A listening socket that only the user of this process, and root, may connect to."""

    def __init__(self, path: str, listening: socket.socket) -> None:
        """Take ownership of a socket that is, or is going to be, known by a path."""
        listening.setblocking(False)
        self.path = path
        self._socket = listening
        self._identity: tuple[int, int] | None = None
        """What its name stands for in the file system."""

    @classmethod
    def prepare(cls, path: str) -> Self:
        """Return one that listens and can be reached after :meth:`publish`. Raises OSError.

        EADDRINUSE: somebody listens there, or something that is no socket has that name. What a process that is gone
        has left there does not matter.
        """
        _check_free(path)
        fresh = path + _SUFFIX
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(fresh).unlink()
            listening.bind(fresh)
            # Before anybody can connect.
            Path(fresh).chmod(_OURS_ALONE)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        return cls(path, listening)

    @classmethod
    def of(cls, path: str, descriptor: int) -> Self:
        """Return the one that a descriptor stands for, which is owned from now on."""
        listener = cls(path, socket.socket(fileno=descriptor))
        with contextlib.suppress(OSError):
            listener._identity = _identity(path)
        return listener

    def publish(self) -> None:
        """Give it its name. Raises OSError."""
        Path(self.path + _SUFFIX).rename(self.path)
        self._identity = _identity(self.path)

    def withdraw(self) -> None:
        """Close it before it was published."""
        self.close()
        with contextlib.suppress(OSError):
            Path(self.path + _SUFFIX).unlink()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def accept(self) -> LocalConnection | None:
        """Return a connection, which the caller owns; None when there is none, or no descriptor for it."""
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return None
        connection.setblocking(False)
        return LocalConnection(connection)

    def unlink(self) -> None:
        """Take its name away, unless that is somebody else's by now."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                Path(self.path).unlink()

    def close(self) -> None:
        """Close this process's copy."""
        self._socket.close()


def connect(path: str, timeout: float) -> LocalConnection:
    """Return a connection to who listens at a path, whose calls wait for up to ``timeout`` seconds. Raises OSError."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        end.settimeout(timeout)
        end.connect(path)
    except OSError:
        end.close()
        raise
    return LocalConnection(end)


def _check_free(path: str) -> None:
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, "there is a file of this name that is no socket")
    try:
        connect(path, 1.0).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return
    except OSError as error:
        # It has a full queue, or is of another kind: somebody's, anyway.
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).lstat()
    return found.st_dev, found.st_ino
