"""SOCKS version 5: the client's list of authentication methods, RFC 1928 3."""

from __future__ import annotations

from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

FIRST_BYTES: Final[bytes] = b"\x05"

_METHODS_AT: Final = 2
# IANA has assigned methods up to 9; 0x80 to 0xFE are private; 0xFF is an answer, never an offer.
_METHODS: Final = frozenset([*range(0x0A), *range(0x80, 0xFF)])
_MATCH: Final = Match(Protocol.SOCKS5)


def probe_socks5(data: bytes | bytearray, eof: bool) -> Verdict:
    """Match on the whole list: at least one method, each one known or private, none twice.

    A client waits for the answer before it sends more, but what follows is not held against it: otherwise the
    verdict would depend on how many bytes one read brought.
    """
    count = data[1] if len(data) >= _METHODS_AT else 1
    end = _METHODS_AT + count
    methods = data[_METHODS_AT:end]
    if (
        data[:1] not in (b"", b"\x05")
        or count == 0
        or len(set(methods)) != len(methods)
        or not _METHODS.issuperset(methods)
    ):
        return NO_MATCH
    if len(data) >= end:
        return _MATCH
    return NO_MATCH if eof else NeedMore(len(data) + 1)
