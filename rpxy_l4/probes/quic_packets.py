"""Long headers of QUIC packets: RFC 8999 5.1, RFC 9000 17.2, RFC 9369 3.2."""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

VERSION_1: Final = 0x00000001
VERSION_2: Final = 0x6B3343CF

# A client pads every datagram that carries an Initial packet to this; shorter ones are discarded (RFC 9000 14.1).
MIN_INITIAL_DATAGRAM: Final = 1200

_NEGOTIATION: Final = 0  # the version field of a Version Negotiation packet, which only a target sends
_LONG: Final = 0x80  # set in the first byte, of which it is the uppermost bit
_START: Final = struct.Struct(">BIB")  # first byte, version, length of the destination id
_MAX_ID: Final = 20  # RFC 9000 17.2
_MIN_RANDOM_ID: Final = 8  # the id that a client makes up for its first packets (RFC 9000 7.2)
_MIN_PACKET: Final = 21  # shorter packets are never valid (RFC 9000 10.3)


class Kind(enum.Enum):
    """What a long header packet with a length carries. Retry has none, and no client sends one."""

    INITIAL = enum.auto()
    ZERO_RTT = enum.auto()
    HANDSHAKE = enum.auto()


# Size in bytes, and the bits of the value, by the two uppermost bits of the first byte (RFC 9000 table 4).
_VARINTS: Final = tuple((1 << power, (1 << (8 << power) - 2) - 1) for power in range(4))

# By version, then by the two type bits of the first byte (RFC 9000 table 5, RFC 9369 3.2).
_KINDS: Final[dict[int, tuple[Kind | None, ...]]] = {
    VERSION_1: (Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE, None),
    VERSION_2: (None, Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE),
}


class LongHeader(NamedTuple):
    """What stands in the clear before a packet of a known version. Offsets count from the start of the datagram."""

    kind: Kind
    version: int
    destination_id: bytes
    number_at: int
    """Where the protected packet number begins."""
    end: int
    """Where the packet ends; the next one of the datagram begins there."""


def read_varint(data: bytes, at: int) -> tuple[int, int] | None:
    """Read a variable-length integer (RFC 9000 16): its value and the offset behind it. None if the data end first."""
    if at >= len(data):
        return None
    size, value_bits = _VARINTS[data[at] >> 6]
    end = at + size
    if end > len(data):
        return None
    return int.from_bytes(data[at:end], "big") & value_bits, end


def read_long_header(datagram: bytes, at: int) -> LongHeader | None:
    """Read the header of the version 1 or 2 packet that begins at ``at``.

    None for anything else: a short header, padding, another version, a Retry, fields or a length that reach beyond
    the datagram, an Initial whose ids no client would send. The fixed bit is not looked at, since clients may clear
    it (RFC 9287 3.1).
    """
    ids = _read_ids(datagram, at)
    if ids is None:
        return None
    version, destination_id, number_at = ids
    kinds = _KINDS.get(version)
    kind = kinds[datagram[at] >> 4 & 0b11] if kinds else None
    if kind is None:
        return None
    if kind is Kind.INITIAL:
        token = read_varint(datagram, number_at)
        if token is None:
            return None
        token_length, token_at = token
        # With a token the id may be one that a target chose, in a Retry, of any length.
        if token_length == 0 and len(destination_id) < _MIN_RANDOM_ID:
            return None
        number_at = token_at + token_length
    length = read_varint(datagram, number_at)
    if length is None:
        return None
    rest, number_at = length
    end = number_at + rest
    if end > len(datagram):
        return None
    return LongHeader(kind, version, destination_id, number_at, end)


def asks_for_unknown_version(datagram: bytes) -> bool:
    """Whether this may be the first datagram of a QUIC version other than 1 and 2.

    All that is certain of such a version is its long header (RFC 8999 5.1). The bounds on size and ids are those of
    version 1, which a client has to keep if it wants Version Negotiation from an endpoint that only knows that one.
    """
    if len(datagram) < MIN_INITIAL_DATAGRAM:
        return False
    ids = _read_ids(datagram, 0)
    if ids is None:
        return False
    version, destination_id, _ = ids
    return version not in _KINDS and len(destination_id) >= _MIN_RANDOM_ID


def may_be_in_session(datagram: bytes) -> bool:
    """Whether a client may send this in the middle of a session: all that can be said without its ids and keys.

    That is a long header of any version with ids of at most 20 bytes, and whatever else has 21 bytes or more. The
    fixed bit is no help: clients clear it in half of their packets for a target that allows it (RFC 9287 3.1), and to
    ask for it would break every second of such sessions. Without it the short header has one certain bit.
    """
    return len(datagram) >= _MIN_PACKET and (datagram[0] < _LONG or _read_ids(datagram, 0) is not None)


def _read_ids(datagram: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Read version, destination id, and the offset behind the source id. None unless a client may send them."""
    id_at = at + _START.size
    size = len(datagram)
    if id_at > size:
        return None
    first, version, length = _START.unpack_from(datagram, at)
    source_at = id_at + length
    if first < _LONG or version == _NEGOTIATION or length > _MAX_ID or source_at >= size:
        return None
    source_length = datagram[source_at]
    end = source_at + 1 + source_length
    if source_length > _MAX_ID or end > size:
        return None
    return version, datagram[id_at:source_at], end
