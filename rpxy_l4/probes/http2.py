"""HTTP/2 with prior knowledge: the connection preface, RFC 9113 3.4."""

from __future__ import annotations

from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

FIRST_BYTES: Final[bytes] = b"P"

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MATCH: Final = Match(Protocol.HTTP)


def probe_http2(data: bytes | bytearray, eof: bool) -> Verdict:
    """Match on the whole preface."""
    if data.startswith(_PREFACE):
        return _MATCH
    if eof or not _PREFACE.startswith(data[: len(_PREFACE)]):
        return NO_MATCH
    return NeedMore(len(data) + 1)
