"""The memory that ``recvmmsg(2)`` fills: for each message a header, which points to room for what comes."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from typing import Final

from rpxy_l4.net import libc
from rpxy_l4.net.ancillary import ANCILLARY_BYTES

MOST: Final = 64
"""Messages of one call."""
DATAGRAM_BYTES: Final = 65_535
NAME_BYTES: Final = 32
"""Room for the address of a sender."""

# struct mmsghdr where pointers have 64 bits: name, its length, vector, its length, control, its length, flags, and
# then the number of bytes received.
_HEADER: Final = struct.Struct("=QI4xQQQQi4xI4x")
_VECTOR: Final = struct.Struct("=QQ")
_IS_LAID_OUT_SO: Final = struct.calcsize("P") == struct.calcsize("Q")
_CONTROL_LENGTH: Final = 5  # of 8 words of 64 bits
_LENGTH: Final = 14  # of 16 words of 32 bits
# Not EACCES: an ICMPv6 error may leave that on a socket.
_NOT_HERE: Final = frozenset({errno.ENOSYS, errno.EPERM})


class NotHereError(Exception):
    """This machine or sandbox has no ``recvmmsg`` for us, and the text says why; other ways to receive work."""


class Headers:
    """Headers for ``MOST`` messages, with room for control messages and, if wanted, for names."""

    def __init__(self, vectors: int, *, names: bool) -> None:
        """Give each message ``vectors`` rooms for its data, to be filled in order; :meth:`lay_out` says where."""
        self.names = bytearray(MOST * NAME_BYTES if names else 0)
        self.control = bytearray(MOST * ANCILLARY_BYTES)
        self._vectors = bytearray(MOST * vectors * _VECTOR.size)
        self._headers = bytearray(MOST * _HEADER.size)
        name_at = address_of_room(self.names) if names else 0
        control_at, vectors_at = address_of_room(self.control), address_of_room(self._vectors)
        for index in range(MOST):
            _HEADER.pack_into(
                self._headers,
                index * _HEADER.size,
                name_at + index * NAME_BYTES if names else 0,
                NAME_BYTES if names else 0,
                vectors_at + index * vectors * _VECTOR.size,
                vectors,
                control_at + index * ANCILLARY_BYTES,
                ANCILLARY_BYTES,
                0,
                0,
            )
        self._address = address_of_room(self._headers)
        self._fresh = bytes(self._headers)
        self._lengths = memoryview(self._headers).cast("I")
        self._controls = memoryview(self._headers).cast("Q")

    def lay_out(self, rooms: bytes) -> None:
        """Say where the data goes: what :func:`room` returns for every room of every message, in order."""
        self._vectors[:] = rooms

    def receive(self, sock: socket.SocketType, most: int) -> tuple[list[int], list[int]]:
        """Receive up to ``most`` messages without waiting; return their lengths, and those of their control messages.

        Raises OSError: BlockingIOError when there is none, another when an ICMP error was waiting. Raises NotHereError.
        """
        if not _IS_LAID_OUT_SO:
            raise NotHereError("pointers do not have 64 bits")
        try:
            number = libc.recvmmsg(sock.fileno(), self._address, most)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            raise NotHereError(error.strerror) from error
        lengths = self._lengths[_LENGTH : 16 * number : 16].tolist()
        controls = self._controls[_CONTROL_LENGTH : 8 * number : 8].tolist()
        # The kernel wrote how much of each room it used, where it looks for how much there is.
        used = number * _HEADER.size
        self._headers[:used] = self._fresh[:used]
        return lengths, controls


def room(address: int, length: int) -> bytes:
    """Return a ``struct iovec``."""
    return _VECTOR.pack(address, length)


def address_of_room(memory: bytearray | memoryview) -> int:
    """Return where in memory a writable buffer begins; the caller keeps it alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
