"""What lies in the maps of the kernel path, as ``path.bpf.c`` has it. Pure."""

from __future__ import annotations

import enum
import socket
import struct
import sys
from typing import Final, NamedTuple

_ADDRESSES: Final = struct.Struct("!16s16sHH")
"""Source and destination, and their ports."""
_KIND: Final = struct.Struct("=BBxx")
"""Protocol and family."""
_WAY: Final = struct.Struct("=IIHHII")
"""Interface, counter, MTU, flags, and what the addresses and the ports add to a checksum."""
_PORT_BYTES: Final = 4
_MOST_SUM: Final = 0xFFFF

KEY_BYTES: Final = _ADDRESSES.size + _KIND.size
FLOW_BYTES: Final = _ADDRESSES.size + _WAY.size

_TO_LOCAL: Final = 1
_FROM_CLIENT: Final = 2
_MOST_MTU: Final = 0xFFFF

COUNTER_WORDS: Final = 8
COUNTER_BYTES: Final = 8 * COUNTER_WORDS
PACKETS: Final = 0
BYTES: Final = 1
LAST: Final = 2
"""CLOCK_MONOTONIC in nanoseconds."""
PROOF: Final = 3
"""0: no packet of this direction has been seen; 1: one has; 2: one of each has, and this direction is forwarded."""
SERIES: Final = 4
"""User space's: that of the flow's target in the counters of the program, plus 1; 0 is a counter that is free."""
TOLD_PACKETS: Final = 5
TOLD_BYTES: Final = 6
"""User space's: how much is in the counters of the program already."""


class MapKind(enum.IntEnum):
    """Kinds of maps: ``enum bpf_map_type`` in linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6


class Why(enum.IntEnum):
    """Why a packet that belongs to a flow in the kernel path was left to the sockets."""

    FRAGMENT = 0
    OPTIONS = 1
    """It has IP options."""
    HOP_LIMIT = 2
    """It has no hop left."""
    TOO_BIG = 3
    """For the way to its destination."""
    AFTER_PAUSE = 4
    """It comes from a client who was silent, and is to be looked at."""
    MALFORMED = 5
    UNPROVEN = 6
    """No packet of the other direction has been seen as yet."""
    FAULT = 7
    """The kernel had no memory to change it."""
    BROKEN = 8
    """The kernel could not go on to change it, which cannot be; the only ones to be dropped."""


class MapDefinition(NamedTuple):
    """How a map is made."""

    kind: MapKind
    key_bytes: int
    value_bytes: int
    flags: int


_NO_PREALLOC: Final = 1
_MMAPABLE: Final = 1 << 10

MAPS: Final = {
    "flows": MapDefinition(MapKind.HASH, KEY_BYTES, FLOW_BYTES, _NO_PREALLOC),
    "counters": MapDefinition(MapKind.ARRAY, 4, COUNTER_BYTES, _MMAPABLE),
    "left": MapDefinition(MapKind.PERCPU_ARRAY, 4, 8, 0),
}
"""By name in the program; how many entries each has is decided where it is made."""


class Address(NamedTuple):
    """An IP address and a port, ready to be put in a map."""

    packed: bytes
    port: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.packed) == 4 else 6  # noqa: PLR2004  bytes of an IPv4 address


def address(host: str, port: int) -> Address:
    """Return an address from an IP literal; the zone of a link-local one is left out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return Address(socket.inet_pton(family, host.partition("%")[0]), port)


def flow_key(source: Address, destination: Address, protocol: int) -> bytes:
    """Return the key of the packets that arrive with these addresses, which must be of one family."""
    both = _ADDRESSES.pack(source.packed, destination.packed, source.port, destination.port)
    return both + _KIND.pack(protocol, source.family)


def flow_value(
    key: bytes,
    source: Address,
    destination: Address,
    *,
    interface: int,
    counter: int,
    mtu: int,
    is_local: bool,
    is_from_client: bool,
) -> bytes:
    """Return what the packets of a key become: their new addresses, and the way that they take."""
    flags = _TO_LOCAL * is_local + _FROM_CLIENT * is_from_client
    both = _ADDRESSES.pack(source.packed, destination.packed, source.port, destination.port)
    return both + _WAY.pack(interface, counter, mtu if mtu <= _MOST_MTU else 0, flags, *_changes(key, both))


def _changes(before: bytes, after: bytes) -> tuple[int, int]:
    """Return what addresses and ports add to a sum over them (RFC 1624).

    That is a sum of 16-bit words with the carry added at the end, which is a remainder by 65535.
    """
    ports = _ADDRESSES.size - _PORT_BYTES
    return (
        (_number(after[:ports]) - _number(before[:ports])) % _MOST_SUM,
        (_number(after[ports:]) - _number(before[ports : _ADDRESSES.size])) % _MOST_SUM,
    )


def _number(words: bytes) -> int:
    return int.from_bytes(words, sys.byteorder)


def counter_of(value: bytes) -> int:
    """Return the index of the counter that a flow's value names."""
    counter: int = _WAY.unpack_from(value, _ADDRESSES.size)[1]
    return counter
