"""Datagrams and connections from very many addresses, which a test may have: all of 127.0.0.0/8 is this machine,
and what a network namespace owns beside (:meth:`tests.support.netns.Namespaces.own`)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from types import TracebackType
from typing import Final, Self

from rpxy_l4.net.ancillary import IP_PKTINFO

_PKTINFO: Final = struct.Struct("=i4s4s")


class UdpFlood:
    """Sends each datagram from an address that it never used before, without a socket for each."""

    def __init__(self, to: tuple[str, int], first: str = "127.1.0.0") -> None:
        """``first`` of the addresses, which have to be this machine's."""
        self._to = to
        self._first = int(ipaddress.IPv4Address(first))
        # Not bound: ip(7) takes the source of a datagram from IP_PKTINFO then.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, count: int, data: bytes = b"flood") -> None:
        """Send ``data`` from ``count`` further addresses."""
        for _ in range(count):
            source = struct.pack(">I", self._first + self.sent)
            self._socket.sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, source, b""))], 0, self._to)
            self.sent += 1
