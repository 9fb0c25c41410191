"""Datagrams, received many at a time: from many senders, or in bulk from one.

Memory stays laid out for ``recvmmsg(2)``, so that a call costs the same for one datagram as for many. Where there is no
such call, ``recvmsg(2)`` does the same one by one.
"""

from __future__ import annotations

import logging
import mmap
import socket
import struct
import sys
from typing import Final

from rpxy_l4.addresses import SocketAddress
from rpxy_l4.net.ancillary import ANCILLARY_BYTES, AncillaryReader
from rpxy_l4.net.burst import Burst, Message, bursts, cut
from rpxy_l4.net.mmsg import DATAGRAM_BYTES, MOST, NAME_BYTES, Headers, NotHereError, address_of_room, room

EVENTS: Final = logging.getLogger(__name__)

_NOT_HERE: Final = "recvmmsg is not possible here (%s); datagrams are received one by one"
# struct sockaddr_in without its padding, and sockaddr_in6 (ip(7), ipv6(7)).
_IPV4: Final = struct.Struct("=H2s4s")
_IPV6: Final = struct.Struct("=H2sI16sI")
_IPV4_WHOLE: Final = struct.Struct(f"{_IPV4.size}s")
_IPV6_WHOLE: Final = struct.Struct(f"{_IPV6.size}s")
_FAMILY_BYTE: Final = 0 if sys.byteorder == "little" else 1
# Not a multiple of a page: else the beginnings of all messages would share a few lines of the processor's cache.
_STRIDE: Final = DATAGRAM_BYTES + 1 + 192
# What a processor's cache holds besides other things.
_BULK_BYTES: Final = 1 << 19
_MOST_LAYOUTS: Final = 64
# A guess below this is no bulk.
_LEAST: Final = 512


def address_of(name: bytes) -> SocketAddress:
    """Return a sender's address as ``socket`` writes it."""
    if len(name) == _IPV4.size:
        _, port, host = _IPV4.unpack(name)
        return socket.inet_ntop(socket.AF_INET, host), int.from_bytes(port, "big")
    _, port, flow, host, scope = _IPV6.unpack(name)
    return socket.inet_ntop(socket.AF_INET6, host), int.from_bytes(port, "big"), socket.ntohl(flow), scope


def _name_of(address: SocketAddress) -> bytes:
    port = address[1].to_bytes(2, "big")
    if len(address) == 2:  # noqa: PLR2004  host and port: IPv4
        return _IPV4.pack(socket.AF_INET, port, socket.inet_pton(socket.AF_INET, address[0]))
    host = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    return _IPV6.pack(socket.AF_INET6, port, socket.htonl(address[2]), host, address[3])


class Inbox:
    """Room for one batch of messages from anybody; one serves all sockets of a worker in turn."""

    def __init__(self) -> None:
        """Lay out the memory. Pages that no datagram ever reaches are never touched and cost nothing."""
        self._reader = AncillaryReader()
        self._many = True
        self._data = memoryview(mmap.mmap(-1, MOST * _STRIDE))
        self._headers = Headers(1, names=True)
        first = address_of_room(self._data)
        self._headers.lay_out(b"".join(room(first + index * _STRIDE, DATAGRAM_BYTES) for index in range(MOST)))

    def receive(self, sock: socket.SocketType, most: int = MOST) -> list[Message]:
        """Return what is there, at most ``most`` messages, without waiting.

        Raises OSError: BlockingIOError when there is none, another error when an ICMP error was waiting.
        """
        if not self._many:
            return [self._one(sock)]
        try:
            lengths, controls = self._headers.receive(sock, most)
        except NotHereError as error:
            self._many = False
            EVENTS.warning(_NOT_HERE, error)
            return [self._one(sock)]
        names, data = self._headers.names, self._data
        messages: list[Message] = []
        start = name = control = 0
        for length, used in zip(lengths, controls, strict=True):
            segment, reply = length, None
            if used:
                segment, reply = self._reader.read(bytes(self._headers.control[control : control + used]), length)
            whole = _IPV4_WHOLE if names[name + _FAMILY_BYTE] == socket.AF_INET else _IPV6_WHOLE
            messages.append((whole.unpack_from(names, name)[0], data[start : start + length], segment, reply))
            start += _STRIDE
            name += NAME_BYTES
            control += ANCILLARY_BYTES
        return messages

    def _one(self, sock: socket.SocketType) -> Message:
        amount, ancillary, _, sender = sock.recvmsg_into([self._data[:DATAGRAM_BYTES]], ANCILLARY_BYTES)
        segment, reply = self._reader.pick(ancillary, amount)
        return _name_of(sender), self._data[:amount], segment, reply


class BulkInbox:
    """Room for one batch of messages from one sender, who sends much and mostly in one size.

    Messages of the expected size come to stand end to end, so that many of them are one piece to send on. What is
    longer goes on in a room of its own.
    """

    def __init__(self) -> None:
        """Lay out the memory, as :class:`Inbox` does."""
        self._reader = AncillaryReader()
        self._many = True
        self._row = memoryview(mmap.mmap(-1, _BULK_BYTES))
        self._rest = memoryview(mmap.mmap(-1, MOST * _STRIDE))
        self._headers = Headers(2, names=False)
        self._layouts: dict[int, bytes] = {}
        self._size = 0

    def receive(self, sock: socket.SocketType, size: int) -> tuple[list[Burst], int, bool]:
        """Receive what is there, without waiting.

        ``size`` is how long each message probably is; a wrong guess costs some copying. Returns what came as bursts,
        valid until the next call, a better guess (never 0), and whether there may be more. Raises OSError as
        :class:`Inbox` does.
        """
        size = min(max(size, _LEAST), DATAGRAM_BYTES)
        most = min(MOST, _BULK_BYTES // size)
        if self._many:
            if size != self._size:
                self._headers.lay_out(self._layout(size))
                self._size = size
            try:
                lengths, controls = self._headers.receive(sock, most)
            except NotHereError as error:
                self._many = False
                EVENTS.warning(_NOT_HERE, error)
            else:
                return self._bursts(lengths, controls), max(*lengths, _LEAST), len(lengths) == most
        amount, ancillary, _, _ = sock.recvmsg_into([self._row[:DATAGRAM_BYTES]], ANCILLARY_BYTES)
        segment, _ = self._reader.pick(ancillary, amount)
        return list(bursts([(b"", self._row[:amount], segment, None)])), max(amount, _LEAST), True

    def _bursts(self, lengths: list[int], controls: list[int]) -> list[Burst]:
        number, size, control = len(lengths), self._size, self._headers.control
        last = lengths[-1]
        # All as expected, but the last one may be shorter: no gap between them.
        if 0 < last <= size and lengths.count(size) == number - (last != size):
            whole = self._row[: (number - 1) * size + last]
            if not any(controls):
                return cut(whole, size)
            starts = range(0, number * ANCILLARY_BYTES, ANCILLARY_BYTES)
            kinds = {bytes(control[start : start + used]) for start, used in zip(starts, controls, strict=True)}
            segment, _ = self._reader.read(kinds.pop(), size)
            if not kinds and (number == 1 or size % segment == 0):
                return cut(whole, segment)
        return list(
            bursts(self._message(index, *each) for index, each in enumerate(zip(lengths, controls, strict=True)))
        )

    def _message(self, index: int, length: int, used: int) -> Message:
        size, start = self._size, index * self._size
        data = self._row[start : start + min(length, size)]
        if length > size:
            data = memoryview(bytes(data) + bytes(self._rest[index * _STRIDE :][: length - size]))
        control = index * ANCILLARY_BYTES
        segment, _ = self._reader.read(bytes(self._headers.control[control : control + used]), length)
        return b"", data, segment, None

    def _layout(self, size: int) -> bytes:
        """Return the rooms for messages of ``size`` bytes, made once for each size."""
        known = self._layouts.get(size)
        if known is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            row, rest = address_of_room(self._row), address_of_room(self._rest)
            # Those that no call uses, because the row is full, stand anywhere in it.
            starts = [min(index * size, _BULK_BYTES - size) for index in range(MOST)]
            known = self._layouts[size] = b"".join(
                room(row + start, size) + room(rest + index * _STRIDE, DATAGRAM_BYTES)
                for index, start in enumerate(starts)
            )
        return known
