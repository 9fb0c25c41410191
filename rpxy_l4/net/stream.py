"""TCP sockets towards targets, and the pipes through which the kernel moves bulk data."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from rpxy_l4.addresses import SocketAddress
from rpxy_l4.endings import ConnectResult

PIPE_BYTES: Final = 1 << 20
"""Wanted capacity of a pipe: /proc/sys/fs/pipe-max-size allows this to unprivileged users by default."""

KEEPALIVE_SECONDS: Final = 60
"""A silent connection is asked for a sign of life after this time, and then every 75 seconds, nine times (tcp(7))."""

_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
# The socket object of the C module: the class on top of it costs more to make than the system call.
_Socket: Final = socket.SocketType


def acceptor(listening: socket.socket) -> Callable[[], tuple[int, SocketAddress]]:
    """Return a function that accepts one connection as ``listening.accept`` does, but returns a bare descriptor.

    The descriptor is the caller's to close, and blocking. The address is that of ``accept``.
    """
    # What accept itself is made of, in the C module: the socket object on top costs more than the system call.
    accept: Callable[[], tuple[int, SocketAddress]] = listening._accept  # type: ignore[attr-defined]  # noqa: SLF001
    return accept


def connect(host: str, port: int) -> int:
    """Begin a connection to an IP literal and return the descriptor of its non-blocking socket, the caller's to close.

    The outcome is known when the socket becomes writable; ask :func:`connect_error`. Raises OSError when the attempt
    fails at once.
    """
    sock = _Socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex((host, port))
    except BaseException:
        sock.close()
        raise
    if number not in _UNDER_WAY:
        sock.close()
        raise OSError(number, os.strerror(number))
    return sock.detach()


def connect_error(descriptor: int) -> int:
    """Return the errno with which a connection attempt ended, 0 for success. Reading it clears it."""
    with _borrowed(descriptor) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def connect_result(number: int) -> ConnectResult:
    """Return what an errno of a connection attempt means."""
    match number:
        case 0:
            return ConnectResult.OK
        case errno.ECONNREFUSED | errno.ECONNRESET:
            return ConnectResult.REFUSED
        case errno.ETIMEDOUT:
            return ConnectResult.TIMEOUT
        case errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EHOSTDOWN | errno.ENETDOWN:
            return ConnectResult.UNREACHABLE
        case errno.EADDRNOTAVAIL:
            return ConnectResult.PORTS_EXHAUSTED
        case _:
            return ConnectResult.OTHER


def local_address(descriptor: int) -> tuple[str, int]:
    """Return address and port of this end. Raises OSError as getsockname(2) does."""
    with _borrowed(descriptor) as sock:
        host, port = sock.getsockname()[:2]
        return host, port


def keep_alive(descriptor: int) -> None:
    """Ask a silent other end for a sign of life, so that a machine that is gone does not hold a session for ever."""
    with contextlib.suppress(OSError), _borrowed(descriptor) as sock:  # already disconnected: nothing to keep
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Two hours by default.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)


def reset_on_close(descriptor: int) -> None:
    """Make the coming close send RST instead of FIN, so that a cut-off stream does not look complete."""
    with contextlib.suppress(OSError), _borrowed(descriptor) as sock:  # already disconnected: nobody to tell
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket object for a descriptor that stays the caller's. For what is rare."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


class Pipe:
    """A pipe whose both ends are ours, empty whenever it is in the pool."""

    __slots__ = ("read_end", "write_end")

    def __init__(self) -> None:
        """Make a pipe. Raises OSError when descriptors are used up."""
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # pipe(7): an unprivileged user's pages may be used up (fs.pipe-user-pages-soft), or the maximum be lower.
        # Then the pipe keeps its size: less at a time, nothing else.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """Keeps a few empty pipes: a pipe costs three system calls to make, and a bulk stream needs one only in bursts."""

    def __init__(self, keep: int) -> None:
        """Keep at most ``keep`` idle pipes."""
        self._keep = keep
        self._idle: list[Pipe] = []
        self.lent = 0
        """Pipes in use."""

    def take(self) -> Pipe | None:
        """Return an empty pipe, to be given back with :meth:`give_back`; None when there are no descriptors."""
        try:
            pipe = self._idle.pop() if self._idle else Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        """Take a pipe back; one that still holds data is closed, because the data belongs to a dead session."""
        self.lent -= 1
        if empty and len(self._idle) < self._keep:
            self._idle.append(pipe)
        else:
            pipe.close()
