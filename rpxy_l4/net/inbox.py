"""Datagrams, received many at a time.

``recvmmsg(2)`` fills what it is given: for each message a ``struct mmsghdr``, which points to room for the sender's
address, for the data and for control messages. They are laid out once, in memory that stays; a call then costs the
same for one datagram as for many. Where there is no such call, ``recvmsg(2)`` does the same one by one.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import struct
import sys
from typing import Final

from rpxy_l4.net import libc
from rpxy_l4.net.ancillary import ANCILLARY_BYTES, Ancillary, AncillaryReader

EVENTS: Final = logging.getLogger(__name__)

MOST: Final = 64
"""Messages of one call."""
DATAGRAM_BYTES: Final = 65_535

Message = tuple[bytes, memoryview, int, Ancillary | None]
"""A datagram, or several of one length from one sender that the kernel joined.

The sender, as the kernel writes it, for :func:`address_of`; the data, valid until the next call; the length of each
datagram but the last; what makes an answer leave from the address that this was sent to, None unless the socket asks
for it.
"""

# struct sockaddr_in without its padding, and sockaddr_in6 (ip(7), ipv6(7)).
_IPV4: Final = struct.Struct("=H2s4s")
_IPV6: Final = struct.Struct("=H2sI16sI")
_IPV4_WHOLE: Final = struct.Struct(f"{_IPV4.size}s")
_IPV6_WHOLE: Final = struct.Struct(f"{_IPV6.size}s")
_NAME_BYTES: Final = 32
_FAMILY_BYTE: Final = 0 if sys.byteorder == "little" else 1
# struct mmsghdr where pointers have 64 bits: name, its length, vector, its length, control, its length, flags, and
# then the number of bytes received.
_HEADER: Final = struct.Struct("=QI4xQQQQi4xI4x")
_VECTOR: Final = struct.Struct("=QQ")
_CONTROL_LENGTH: Final = 5  # of 8 words of 64 bits
_LENGTH: Final = 14  # of 16 words of 32 bits
# Not a multiple of a page: else the beginnings of all messages would share a few lines of the processor's cache.
_STRIDE: Final = DATAGRAM_BYTES + 1 + 192
_NOT_HERE: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EACCES})


def address_of(name: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return a sender's address as ``socket`` writes it."""
    if len(name) == _IPV4.size:
        _, port, host = _IPV4.unpack(name)
        return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big")
    _, port, flow, host, scope = _IPV6.unpack(name)
    return socket.inet_ntop(socket.AF_INET6, host), int.from_bytes(port, "big"), socket.ntohl(flow), scope


def _name_of(address: tuple[str, int] | tuple[str, int, int, int]) -> bytes:
    port = address[1].to_bytes(2, "big")
    if len(address) == 2:  # noqa: PLR2004  host and port: IPv4
        return _IPV4.pack(socket.AF_INET, port, socket.inet_pton(socket.AF_INET, address[0]))
    host = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    return _IPV6.pack(socket.AF_INET6, port, socket.htonl(address[2]), host, address[3])


class Inbox:
    """Room for one batch of messages; one serves all sockets of a worker in turn."""

    def __init__(self) -> None:
        """Lay out the memory. Pages that no datagram ever reaches are never touched and cost nothing."""
        self._reader = AncillaryReader()
        self._many = struct.calcsize("P") == struct.calcsize("Q")  # the layout above
        self._data = memoryview(bytearray(MOST * _STRIDE))
        self._names = bytearray(MOST * _NAME_BYTES)
        self._control = bytearray(MOST * ANCILLARY_BYTES)
        self._vectors = bytearray(MOST * _VECTOR.size)
        self._headers = bytearray(MOST * _HEADER.size)
        data, names = _address(self._data), _address(self._names)
        control, vectors = _address(self._control), _address(self._vectors)
        self._address = _address(self._headers)
        for index in range(MOST):
            _VECTOR.pack_into(self._vectors, index * _VECTOR.size, data + index * _STRIDE, DATAGRAM_BYTES)
            _HEADER.pack_into(
                self._headers,
                index * _HEADER.size,
                names + index * _NAME_BYTES,
                _NAME_BYTES,
                vectors + index * _VECTOR.size,
                1,
                control + index * ANCILLARY_BYTES,
                ANCILLARY_BYTES,
                0,
                0,
            )
        self._fresh = bytes(self._headers)
        self._lengths = memoryview(self._headers).cast("I")
        self._controls = memoryview(self._headers).cast("Q")

    def receive(self, sock: socket.SocketType, most: int = MOST) -> list[Message]:
        """Return what is there, at most ``most`` messages, without waiting.

        Raises OSError: BlockingIOError when there is none, another error when an ICMP error was waiting.
        """
        if not self._many:
            return [self._one(sock)]
        try:
            number = libc.recvmmsg(sock.fileno(), self._address, most)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            EVENTS.warning("recvmmsg is not possible here (%s); datagrams are received one by one", error.strerror)
            self._many = False
            return [self._one(sock)]
        names, data, lengths, controls = self._names, self._data, self._lengths, self._controls
        messages: list[Message] = []
        for index in range(number):
            length = lengths[16 * index + _LENGTH]
            segment, reply = length, None
            if used := controls[8 * index + _CONTROL_LENGTH]:
                control = index * ANCILLARY_BYTES
                segment, reply = self._reader.read(bytes(self._control[control : control + used]), length)
            name = index * _NAME_BYTES
            whole = _IPV4_WHOLE if names[name + _FAMILY_BYTE] == socket.AF_INET else _IPV6_WHOLE
            start = index * _STRIDE
            messages.append((whole.unpack_from(names, name)[0], data[start : start + length], segment, reply))
        # The kernel wrote how much of each room it used, where it looks for how much there is.
        used = number * _HEADER.size
        self._headers[:used] = self._fresh[:used]
        return messages

    def _one(self, sock: socket.SocketType) -> Message:
        amount, ancillary, _, sender = sock.recvmsg_into([self._data[:DATAGRAM_BYTES]], ANCILLARY_BYTES)
        segment, reply = self._reader.pick(ancillary, amount)
        return _name_of(sender), self._data[:amount], segment, reply


def _address(room: bytearray | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(room))
