"""The stream of handshake bytes that CRYPTO frames carry in pieces: RFC 9000 19.6."""

from __future__ import annotations

from typing import Final

# A ClientHello with a post-quantum key share is about 2 KiB. A sender may count on 4 KiB (RFC 9000 7.5); past
# this bound, also that of TCP detection, we stop guessing.
MAX_CRYPTO: Final = 16_384

_KNOWN: Final = b"\xff"


class CryptoStream:
    """Puts pieces together that come in any order, more than once, and overlapping."""

    __slots__ = ("_data", "_known", "_ready")

    def __init__(self) -> None:
        """Start with nothing known."""
        self._data = bytearray()
        self._known = bytearray()  # for each byte of _data 0xff if it has arrived, else 0: a mask, so that comparing
        self._ready = 0  # costs the same in however many pieces a client has cut its hello

    def __len__(self) -> int:
        """How far the pieces reach, gaps included."""
        return len(self._data)

    @property
    def ready(self) -> int:
        """How many bytes are known from the start on without a gap."""
        return self._ready

    def add(self, offset: int, piece: bytes) -> bool:
        """Take in a piece. False, and nothing of it taken, if it contradicts an earlier one or ends past MAX_CRYPTO."""
        end = offset + len(piece)
        if end > MAX_CRYPTO:
            return False
        if offset == 0 and not self._data:
            # Most hellos come in one piece, with which nothing is to be compared.
            self._data += piece
            self._known += _KNOWN * end
            self._ready = end
            return True
        if end > len(self._data):
            growth = bytes(end - len(self._data))
            self._data += growth
            self._known += growth
        known = self._known[offset:end]
        if known.count(0) < len(known):
            change = int.from_bytes(self._data[offset:end], "big") ^ int.from_bytes(piece, "big")
            if change & int.from_bytes(known, "big"):
                return False
        self._data[offset:end] = piece
        self._known[offset:end] = _KNOWN * len(piece)
        gap = self._known.find(0, self._ready)
        self._ready = gap if gap >= 0 else len(self._known)
        return True

    def read(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end``, which must be ``ready``."""
        return bytes(self._data[start:end])
