"""WireGuard: the handshake initiation that opens a session, and the messages that follow."""

from __future__ import annotations

from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, Protocol, Verdict

# Message type 1 and three reserved zero bytes; sender index, ephemeral, static, timestamp, mac1 and mac2 follow
# (WireGuard white paper 5.4.2).
_INITIATION: Final = b"\x01\x00\x00\x00"
_INITIATION_LENGTH: Final = 4 + 4 + 32 + (32 + 16) + (12 + 16) + 16 + 16
# Those of one length: the response (5.4.3), with two indices, ephemeral, nothing sealed and two macs; the cookie reply
# (5.4.7), with an index, a nonce and the cookie sealed.
_LENGTHS: Final = {
    _INITIATION: _INITIATION_LENGTH,
    b"\x02\x00\x00\x00": 4 + 4 + 4 + 32 + 16 + 16 + 16,
    b"\x03\x00\x00\x00": 4 + 4 + 24 + (16 + 16),
}
# Data (5.4.6): an index, a counter, and a packet sealed, which is empty to keep a session alive.
_DATA: Final = b"\x04\x00\x00\x00"
_MIN_DATA_LENGTH: Final = 4 + 4 + 8 + 16


def probe_wireguard(datagram: bytes) -> Verdict:
    """Judge the first datagram of a flow; never NeedMore.

    Match for a handshake initiation. The other messages answer one or follow one, so they cannot open a flow; and
    their few fixed bits are too weak a sign.
    """
    if len(datagram) == _INITIATION_LENGTH and datagram.startswith(_INITIATION):
        return Match(Protocol.WIREGUARD)
    return NO_MATCH


def may_be_in_session(datagram: bytes) -> bool:
    """Whether a client may send this in the middle of a session: a message of any type, with a length that fits it.

    That includes answers, for either side begins the next handshake. Data need not be a multiple of 16 bytes long:
    they are padded to that, but not beyond the MTU of the tunnel.
    """
    head = datagram[: len(_DATA)]
    return _LENGTHS.get(head) == len(datagram) or (head == _DATA and len(datagram) >= _MIN_DATA_LENGTH)
