"""WireGuard: the handshake initiation that opens a session."""

from __future__ import annotations

from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, Protocol, Verdict

# Message type 1 and three reserved zero bytes; sender index, ephemeral, static, timestamp, mac1 and mac2 follow
# (WireGuard white paper 5.4.2).
_INITIATION: Final = b"\x01\x00\x00\x00"
_INITIATION_LENGTH: Final = 4 + 4 + 32 + (32 + 16) + (12 + 16) + 16 + 16


def probe_wireguard(datagram: bytes) -> Verdict:
    """Judge the first datagram of a flow; never NeedMore.

    Match for a handshake initiation. The other messages answer one or follow one, so they cannot open a flow; and
    their few fixed bits are too weak a sign.
    """
    if len(datagram) == _INITIATION_LENGTH and datagram.startswith(_INITIATION):
        return Match(Protocol.WIREGUARD)
    return NO_MATCH
