"""UDP sockets towards targets, and bursts: datagrams of one length that go through the kernel together.

With ``UDP_SEGMENT`` the kernel takes several datagrams as one buffer and cuts it (udp(7),
Documentation/networking/segmentation-offloads.rst).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from rpxy_l4.net.ancillary import SOL_UDP, UDP_GRO, UDP_SEGMENT, Ancillary
from rpxy_l4.net.inbox import Message

Address = tuple[str, int] | tuple[str, int, int, int]

Burst = tuple[list[memoryview], int, int, int]
"""Pieces that belong together, their length in all, the length of each datagram but the last, and how many they are."""

_SEGMENT: Final = struct.Struct("=H")
# What the kernel takes in one call: UDP_MAX_SEGMENTS of include/linux/udp.h when it was smallest, and what fits in an
# IPv4 packet.
_MOST_SEGMENTS: Final = 64
_MOST_BYTES: Final = 65_507
# Longer datagrams mostly have to be fragmented, which the kernel does not do to those of a burst.
_MOST_JOINED: Final = 1500

# The kernel or the device cannot segment here (no checksum offload, an old virtio): plain sends work.
_CANNOT_SEGMENT: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})


def open_towards(host: str, port: int) -> socket.SocketType:
    """Return a non-blocking UDP socket connected to an IP literal, the caller's to close.

    No address-reuse option is ever set: two such sockets could otherwise be given the same local port, and one flow's
    answers would reach the other. Raises OSError when out of descriptors or ports, or when there is no way there.
    """
    # Not socket.socket: that class costs more to make than the system call.
    sock = socket.SocketType(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    )
    try:
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def coalesce(sock: socket.SocketType) -> None:
    """Let the kernel hand over datagrams that arrive together as one message, if it can."""
    with contextlib.suppress(OSError):  # kernels before 5.0, some sandboxes: one datagram at a time
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)


def split(data: memoryview, segment: int) -> Iterator[memoryview]:
    """Yield the datagrams of a message; an empty datagram is one datagram."""
    if not data:
        yield data
        return
    for start in range(0, len(data), segment):
        yield data[start : start + segment]


def count(amount: int, segment: int) -> int:
    """Return how many datagrams a message of ``amount`` bytes is."""
    return 1 if amount <= segment else -(-amount // segment)


def bursts(messages: Iterable[Message]) -> Iterator[Burst]:
    """Join messages of one flow into bursts that can be sent in one call each, in their order."""
    pieces: list[memoryview] = []
    total = size = parts = 0
    for _, data, segment, _ in messages:
        length = len(data)
        number = count(length, segment)
        # Only the last datagram of a burst may be shorter than the others, and none may be empty.
        fits = pieces and 0 < segment <= size <= _MOST_JOINED and total % size == 0 and (segment == size or number == 1)
        if not (fits and total + length <= _MOST_BYTES and parts + number <= _MOST_SEGMENTS):
            if pieces:
                yield pieces, total, size, parts
            pieces, total, size, parts = [], 0, segment, 0
        pieces.append(data)
        total += length
        parts += number
    if pieces:
        yield pieces, total, size, parts


class Sender:
    """Sends through one socket, a burst in one call while the kernel can segment it. Owns nothing."""

    __slots__ = ("_ancillary", "_segments", "_socket", "_to")

    def __init__(self, sock: socket.SocketType, to: Address | None = None, reply: Ancillary | None = None) -> None:
        """Send through a connected socket, or to ``to`` with the source address that ``reply`` names."""
        self._socket = sock
        self._to = to
        self._ancillary: tuple[Ancillary, ...] = () if reply is None else (reply,)
        self._segments = True

    def send(self, datagram: bytes | memoryview) -> None:
        """Send one datagram.

        Raises BlockingIOError when the socket's buffer is full, another OSError as sendmsg(2) does: an ICMP error that
        was waiting, a datagram too long.
        """
        if self._to is None:
            self._socket.send(datagram)
        elif self._ancillary:
            self._socket.sendmsg((datagram,), self._ancillary, 0, self._to)
        else:
            self._socket.sendto(datagram, self._to)

    def send_burst(self, burst: Burst) -> None:
        """Send a burst. Raises OSError as :meth:`send` does; some of its datagrams may then have been sent."""
        pieces, _, segment, parts = burst
        if parts > 1 and self._segments:
            cut = (SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))
            try:
                if self._to is None:
                    self._socket.sendmsg(pieces, (cut,))
                else:
                    self._socket.sendmsg(pieces, (*self._ancillary, cut), 0, self._to)
            except OSError as error:
                if error.errno not in _CANNOT_SEGMENT:
                    raise
                self._segments = False
            else:
                return
        for piece in pieces:
            for datagram in split(piece, segment):
                self.send(datagram)
