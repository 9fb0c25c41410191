"""UDP sockets towards targets, and datagrams in segmented bursts.

With ``UDP_GRO`` the kernel hands over several datagrams of one flow as one buffer and says how long each is; with
``UDP_SEGMENT`` it takes such a buffer and cuts it again (udp(7), Documentation/networking/segmentation-offloads.rst).
On a wildcard address, ``IP_PKTINFO``/``IPV6_RECVPKTINFO`` says which of our addresses the client used, and the answer
must leave from there (ip(7), ipv6(7), RFC 3542 section 6).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50

DATAGRAM_BYTES: Final = 65_535

_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16sI")
_INT: Final = struct.Struct("=i")
_SEGMENT: Final = struct.Struct("=H")
_ANCILLARY_BYTES: Final = (
    socket.CMSG_SPACE(_PKTINFO4.size) + socket.CMSG_SPACE(_PKTINFO6.size) + socket.CMSG_SPACE(_INT.size)
)
_LINK_LOCAL: Final = b"\xfe\x80"

# The kernel or the device cannot segment here (no checksum offload, an old virtio): plain sends work.
_CANNOT_SEGMENT: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})

Ancillary = tuple[int, int, bytes]


def open_towards(host: str, port: int) -> socket.socket:
    """Return a non-blocking UDP socket connected to an IP literal, the caller's to close.

    No address-reuse option is ever set: two such sockets could otherwise be given the same local port, and one flow's
    answers would reach the other. Raises OSError when out of descriptors or ports, or when there is no way there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # kernels before 5.0: one datagram at a time
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def receive(
    sock: socket.socket, buffer: memoryview
) -> tuple[int, int, Ancillary | None, tuple[str, int] | tuple[str, int, int, int]]:
    """Receive one datagram, or several of one length from one sender, into ``buffer``.

    Returns the number of bytes, the length of each datagram but the last, the control message that makes an answer
    leave from the address this was sent to (None unless the socket asks for it), and the sender.
    Raises BlockingIOError when there is none, another OSError when an ICMP error was waiting.
    """
    amount, ancillary, _, sender = sock.recvmsg_into([buffer], _ANCILLARY_BYTES)
    segment = amount
    reply: Ancillary | None = None
    for level, kind, data in ancillary:
        if level == SOL_UDP:
            if kind == UDP_GRO:
                segment = _INT.unpack_from(data)[0]
        elif level == socket.IPPROTO_IP:
            if kind == IP_PKTINFO:
                _, local, _ = _PKTINFO4.unpack_from(data)
                reply = (level, kind, _PKTINFO4.pack(0, local, bytes(4)))
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            local, interface = _PKTINFO6.unpack_from(data)
            # An interface is part of a link-local address, and of no other.
            reply = (level, kind, _PKTINFO6.pack(local, interface if local.startswith(_LINK_LOCAL) else 0))
    return amount, segment, reply, sender


def split(data: memoryview, segment: int) -> Iterator[memoryview]:
    """Yield the datagrams of a burst; an empty datagram is one datagram."""
    if not data:
        yield data
        return
    for start in range(0, len(data), segment):
        yield data[start : start + segment]


def count(amount: int, segment: int) -> int:
    """Return how many datagrams a burst of ``amount`` bytes is."""
    return 1 if amount <= segment else -(-amount // segment)


class Sender:
    """Sends bursts through one socket, in one call while the kernel can segment them."""

    __slots__ = ("_ancillary", "_segments", "_socket", "_to")

    def __init__(self, sock: socket.socket, to: tuple[str, int] | tuple[str, int, int, int] | None = None,
                 reply: Ancillary | None = None) -> None:  # fmt: skip
        """Send through a connected socket, or to ``to`` with the source address that ``reply`` names."""
        self._socket = sock
        self._to = to
        self._ancillary: list[Ancillary] = [] if reply is None else [reply]
        self._segments = True

    def send(self, data: memoryview, segment: int) -> None:
        """Send one datagram, or several of ``segment`` bytes each.

        Raises BlockingIOError when the socket's buffer is full, another OSError as sendmsg(2) does: an ICMP error that
        was waiting, a datagram too long. Some of a burst may then have been sent.
        """
        if segment < len(data):
            if self._segments:
                try:
                    cut = (SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))
                    self._message(data, [*self._ancillary, cut])
                    return
                except OSError as error:
                    if error.errno not in _CANNOT_SEGMENT:
                        raise
                    self._segments = False
            for datagram in split(data, segment):
                self._one(datagram)
            return
        self._one(data)

    def _one(self, datagram: memoryview) -> None:
        if self._to is None:
            self._socket.send(datagram)
        else:
            self._message(datagram, self._ancillary)

    def _message(self, data: memoryview, ancillary: list[Ancillary]) -> None:
        if self._to is None:
            self._socket.sendmsg([data], ancillary)
        else:
            self._socket.sendmsg([data], ancillary, 0, self._to)
