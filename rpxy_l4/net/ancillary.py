"""Control messages of UDP sockets: how a burst is cut, and which of our addresses a client used.

With ``UDP_GRO`` the kernel hands over several datagrams of one flow as one buffer and says how long each is (udp(7),
Documentation/networking/segmentation-offloads.rst). On a wildcard address, ``IP_PKTINFO``/``IPV6_RECVPKTINFO`` says
which of our addresses the client used, and the answer must leave from there (ip(7), ipv6(7), RFC 3542 section 6).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

# No constants in Python's socket module: include/uapi/linux/udp.h and in.h.
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_PKTINFO: Final = 8
IPV6_PKTINFO: Final = 50

Ancillary = tuple[int, int, bytes]
"""Level, type and data of a control message, as ``sendmsg`` takes it."""

_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16sI")
_INT: Final = struct.Struct("=i")
_LINK_LOCAL: Final = b"\xfe\x80"
ANCILLARY_BYTES: Final = (
    socket.CMSG_SPACE(_PKTINFO4.size) + socket.CMSG_SPACE(_PKTINFO6.size) + socket.CMSG_SPACE(_INT.size)
)
"""Room for all of them."""

# struct cmsghdr where size_t has 64 bits; the data of each begins at a multiple of its size (cmsg(3)).
_HEADER: Final = struct.Struct("=Qii")
_ALIGNMENT: Final = 8
_MOST_KNOWN: Final = 1024


def source_of(reply: Ancillary) -> bytes:
    """Return the packed address that an answer leaves from, of what :meth:`AncillaryReader.pick` returned."""
    level, _, data = reply
    address: bytes = (_PKTINFO4.unpack(data)[1]) if level == socket.IPPROTO_IP else _PKTINFO6.unpack(data)[0]
    return address


class AncillaryReader:
    """Reads control messages, and remembers what it read: they repeat with every datagram."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._known: dict[bytes, tuple[int, Ancillary | None]] = {}

    def read(self, control: bytes, length: int) -> tuple[int, Ancillary | None]:
        """Return what ``pick`` does, from the control messages of a datagram as the kernel writes them."""
        known = self._known.get(control)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[control] = self.pick(_messages(control), 0)
        segment, reply = known
        return segment or length, reply

    def pick(self, ancillary: Iterable[Ancillary], length: int) -> tuple[int, Ancillary | None]:
        """Return the length of each datagram in a buffer of ``length`` bytes, and what an answer is to be sent with.

        The latter is None where nothing says which of our addresses was used.
        """
        segment = length
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
        return segment, reply


def _messages(control: bytes) -> Iterator[Ancillary]:
    start = 0
    while start + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, start)
        if length < _HEADER.size:
            return
        yield level, kind, control[start + _HEADER.size : start + length]
        start += -(-length // _ALIGNMENT) * _ALIGNMENT
