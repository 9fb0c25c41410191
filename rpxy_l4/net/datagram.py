"""UDP sockets towards targets, and sending bursts.

With ``UDP_SEGMENT`` the kernel takes several datagrams as one buffer and cuts it (udp(7),
Documentation/networking/segmentation-offloads.rst).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Final

from rpxy_l4.addresses import SocketAddress
from rpxy_l4.net.ancillary import SOL_UDP, UDP_GRO, UDP_SEGMENT, Ancillary
from rpxy_l4.net.burst import Burst, split

_SEGMENT: Final = struct.Struct("=H")
# The kernel or the device cannot segment here (no checksum offload, an old virtio): plain sends work.
_CANNOT_SEGMENT: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})


def open_towards(host: str, port: int) -> socket.SocketType:
    """Return a non-blocking UDP socket connected to an IP literal, the caller's to close.

    No address-reuse option is ever set: two such sockets could otherwise be given the same local port, and one flow's
    answers would reach the other. Raises OSError when out of descriptors, when there is no way there, or, with
    EADDRNOTAVAIL, when out of ports.
    """
    # Not socket.socket: that class costs more to make than the system call.
    sock = socket.SocketType(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    )
    try:
        sock.connect((host, port))
    except BlockingIOError as error:
        # What connect(2) says for UDP where TCP says EADDRNOTAVAIL: no port is left in ip_local_port_range.
        sock.close()
        raise OSError(errno.EADDRNOTAVAIL, "no local port is left") from error
    except BaseException:
        sock.close()
        raise
    return sock


def coalesce(sock: socket.SocketType) -> None:
    """Let the kernel hand over datagrams that arrive together as one message, if it can."""
    with contextlib.suppress(OSError):  # kernels before 5.0, some sandboxes: one datagram at a time
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)


class Sender:
    """Sends through one socket, a burst in one call while the kernel can segment it. Owns nothing."""

    __slots__ = ("_ancillary", "_segments", "_socket", "_to")

    def __init__(
        self, sock: socket.SocketType, to: SocketAddress | None = None, reply: Ancillary | None = None
    ) -> None:
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
