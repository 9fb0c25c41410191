"""The frames of a client's QUIC Initial packets: RFC 9000 12.4 and 19."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from rpxy_l4.probes.quic_packets import read_varint

# PADDING and PING are single bytes; a client's Initial holds hundreds of the former.
_FILLER: Final = re.compile(rb"[\x00\x01]*")
_FILLERS: Final = (b"\x00", b"\x01")
_ACK: Final = 0x02
_ACK_ECN: Final = 0x03
_CRYPTO: Final = 0x06
_CONNECTION_CLOSE: Final = 0x1C
_ECN_COUNTS: Final = 3

# A frame may be as short as three bytes, and costs as much time as a datagram of a thousand bytes of PADDING. Clients
# that cut their hello up to keep middleboxes from relying on its form make some tens of frames.
MAX_FRAMES: Final = 256
# A client that is still sending its hello has had next to nothing to acknowledge.
_MAX_ACK_RANGES: Final = 2


class Frames(NamedTuple):
    """What one packet carries."""

    crypto: list[tuple[int, bytes]]
    """Offset and data of each CRYPTO frame, in the order of the frames."""
    total: int
    """How many frames there are, PADDING and PING left out."""


def read_frames(payload: bytes) -> Frames | None:
    """Read the frames of an Initial packet.

    None if a frame is cut off by the end of the payload or is of a type that an Initial packet must not carry, or if
    there are more than MAX_FRAMES.
    """
    pieces: list[tuple[int, bytes]] = []
    at = 0
    for total in range(MAX_FRAMES + 1):
        if payload.startswith(_FILLERS, at):
            at = _behind_filler(payload, at)
        if at == len(payload):
            return Frames(pieces, total)
        kind = payload[at]
        if kind == _CRYPTO:
            offset = read_varint(payload, at + 1)
            length = read_varint(payload, offset[1]) if offset else None
            if offset is None or length is None:
                return None
            start = length[1]
            at = start + length[0]
            if at > len(payload):
                return None
            pieces.append((offset[0], payload[start:at]))
            continue
        if kind in {_ACK, _ACK_ECN}:
            behind = _behind_ack(payload, at)
        elif kind == _CONNECTION_CLOSE:
            behind = _behind_connection_close(payload, at)
        else:
            return None
        if behind is None:
            return None
        at = behind
    return None


def _behind_filler(payload: bytes, at: int) -> int:
    """Skip PADDING and PING frames."""
    end = len(payload)
    # The padding behind the last frame is often most of the packet; comparing it takes a third of a regex's time.
    if payload.endswith(bytes(end - at)):
        return end
    filler = _FILLER.match(payload, at)
    return filler.end() if filler else at


def _behind_varints(payload: bytes, at: int, count: int) -> int | None:
    """Offset behind ``count`` integers; None if the payload ends first."""
    for _ in range(count):
        read = read_varint(payload, at)
        if read is None:
            return None
        at = read[1]
    return at


def _behind_ack(payload: bytes, at: int) -> int | None:
    """Skip an ACK frame (RFC 9000 19.3); None if it is cut off or too long to be believed."""
    count_at = _behind_varints(payload, at + 1, 2)  # largest acknowledged, delay
    ranges = read_varint(payload, count_at) if count_at is not None else None
    if ranges is None or ranges[0] > _MAX_ACK_RANGES:
        return None
    numbers = 1 + 2 * ranges[0]  # the first range, then gap and length of each other
    if payload[at] == _ACK_ECN:
        numbers += _ECN_COUNTS
    return _behind_varints(payload, ranges[1], numbers)


def _behind_connection_close(payload: bytes, at: int) -> int | None:
    """Skip a CONNECTION_CLOSE frame of the transport (RFC 9000 19.19); None if it is cut off."""
    length_at = _behind_varints(payload, at + 1, 2)  # error code, frame type
    reason = read_varint(payload, length_at) if length_at is not None else None
    if reason is None or reason[1] + reason[0] > len(payload):
        return None
    return reason[1] + reason[0]
