"""HTTP/1.x: the request line, RFC 9112 3."""

from __future__ import annotations

import re
import string
from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

FIRST_BYTES: Final[bytes] = b"\r" + string.ascii_uppercase.encode()

_EMPTY_LINE: Final = b"\r\n"
# A token (RFC 9110 5.6.2) that begins as every registered method does; the longest of those has 17 characters.
_METHOD: Final = re.compile(rb"(?:[A-Z][!#$%&'*+.^_`|~0-9A-Za-z-]{0,23})?")
# No control characters and no space. Bytes of 0x80 and above are illegal in a URI, but clients send them.
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]*")
# The dot of each shape stands for a digit.
_VERSIONS: Final = (b"HTTP/1..\r\n", b"HTTP/1..\n")
_MINOR_AT: Final = 7
_SPACE: Final = 0x20
_MATCH: Final = Match(Protocol.HTTP)


class Http1Probe:
    """Recognises one client's first request line.

    Called with all bytes so far, then with all of them and more. The answer is that of a first call with the same
    bytes; the part of the target that was legal in an earlier call is not looked at again, so a long one that
    arrives byte by byte costs time in proportion to its length.
    """

    __slots__ = ("_at", "_target")

    def __init__(self) -> None:
        """Begin at the method."""
        self._target = 0
        self._at = 0

    def __call__(self, data: bytes | bytearray, eof: bool) -> Verdict:
        """Match on a whole line ``method SP target SP HTTP/1.x``; headers are not looked at.

        One empty line may come before it (RFC 9112 2.2). The line may end in a bare LF (there, too). Other versions
        (RTSP/, SIP/, ICAP/, none) are no match.
        """
        more = NO_MATCH if eof else NeedMore(len(data) + 1)
        if self._target == 0:
            start = len(_EMPTY_LINE) if data.startswith(_EMPTY_LINE) else 0
            if start == 0 and _EMPTY_LINE.startswith(data):
                return more
            stop = _end_of(_METHOD, data, start)
            if stop == len(data):
                return more
            if stop == start or data[stop] != _SPACE:
                return NO_MATCH
            self._target = self._at = stop + 1
        self._at = _end_of(_TARGET, data, self._at)
        if self._at == len(data):
            return more
        if self._at == self._target or data[self._at] != _SPACE:
            return NO_MATCH
        return _version(data[self._at + 1 : self._at + 1 + len(_VERSIONS[0])], more)


def probe_http1(data: bytes | bytearray, eof: bool) -> Verdict:
    """Answer as a fresh ``Http1Probe`` does."""
    return Http1Probe()(data, eof)


def _end_of(pattern: re.Pattern[bytes], data: bytes | bytearray, start: int) -> int:
    """Where the longest run of ``pattern`` from ``start`` ends; the pattern matches nothing, too."""
    found = pattern.match(data, start)
    return start if found is None else found.end()


def _version(tail: bytes | bytearray, more: Verdict) -> Verdict:
    """Judge what stands behind the target."""
    minor = tail[_MINOR_AT : _MINOR_AT + 1]
    if minor and not minor.isdigit():
        return NO_MATCH
    shape = tail[:_MINOR_AT] + b"." * len(minor) + tail[_MINOR_AT + 1 :]
    if shape.startswith(_VERSIONS):
        return _MATCH
    return more if any(version.startswith(shape) for version in _VERSIONS) else NO_MATCH
