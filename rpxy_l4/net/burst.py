"""Bursts: datagrams of one length, but for the last, that go through the kernel together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rpxy_l4.net.ancillary import Ancillary

Message = tuple[bytes, memoryview, int, Ancillary | None]
"""A datagram, or several of one length from one sender that the kernel joined.

The sender, as the kernel writes it, for ``inbox.address_of``; the data, valid until more is received; the length of
each datagram but the last; what makes an answer leave from the address that this was sent to, None unless the socket
asks for it.
"""

Burst = tuple[list[memoryview], int, int, int]
"""Pieces that belong together, their length in all, the length of each datagram but the last, and how many they are."""

# What the kernel takes in one call: UDP_MAX_SEGMENTS of include/linux/udp.h when it was smallest, and what fits in an
# IPv4 packet.
_MOST_SEGMENTS: Final = 64
_MOST_BYTES: Final = 65_507
# Longer datagrams mostly have to be fragmented, which the kernel does not do to those of a burst.
_MOST_JOINED: Final = 1500


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


def cut(row: memoryview, segment: int) -> list[Burst]:
    """Return datagrams of ``segment`` bytes that stand end to end, but for a shorter last one, as bursts."""
    step = segment
    if segment <= _MOST_JOINED:
        step *= min(_MOST_SEGMENTS, _MOST_BYTES // segment)
    if len(row) <= step:
        return [([row], len(row), segment, count(len(row), segment))]
    pieces = (row[start : start + step] for start in range(0, len(row), step))
    return [([piece], len(piece), segment, count(len(piece), segment)) for piece in pieces]
