"""SSH: the client's identification string, RFC 4253 4.2."""

from __future__ import annotations

from typing import Final

from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

FIRST_BYTES: Final[bytes] = b"S"

# "SSH-" alone could still begin an HTTP method. 1.99 means "2.0 too" (RFC 4253 5.1); 1.x are the ancestors.
_VERSIONS: Final = (b"SSH-2.0-", b"SSH-1.")
_MATCH: Final = Match(Protocol.SSH)


def probe_ssh(data: bytes | bytearray, eof: bool) -> Verdict:
    """Match as soon as the protocol version is there."""
    if data.startswith(_VERSIONS):
        return _MATCH
    if eof or not any(version.startswith(data[: len(version)]) for version in _VERSIONS):
        return NO_MATCH
    return NeedMore(len(data) + 1)
