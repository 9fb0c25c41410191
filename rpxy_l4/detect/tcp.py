"""Which protocol a TCP client speaks, from its first bytes.

The probes stand in a fixed order, the most specific first. The verdict is that of the first probe in this order
that does not say NoMatch, so it depends on the bytes alone: never on how TCP cut them, nor on which probe could
decide soonest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, assert_never

from rpxy_l4.probes import http1, http2, socks5, ssh, tls
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, NoMatch, Protocol, Verdict

# One TLS record at its greatest (RFC 8446 5.1), hence: any hello of up to 16 KiB in one record; one of 4 KiB, which is
# twice what a post-quantum key share needs, in records of 2 bytes or more; one of 2.7 KiB in records of one byte; an
# HTTP request line twice as long as common servers accept. Past it, guessing on only holds memory.
DETECT_LIMIT: Final = 16_384 + 5

Probe = Callable[[bytes | bytearray, bool], Verdict]
"""Given all bytes so far and whether the client ended its direction: never raises, and with ``eof`` always decides."""

_BYTE_VALUES: Final = 256

# Protocol, the first bytes that its probe does not refuse, and what makes a probe for one client.
_PROBES: Final[tuple[tuple[Protocol, bytes, Callable[[], Probe]], ...]] = (
    (Protocol.TLS, tls.FIRST_BYTES, tls.TlsProbe),
    (Protocol.SSH, ssh.FIRST_BYTES, lambda: ssh.probe_ssh),
    (Protocol.SOCKS5, socks5.FIRST_BYTES, lambda: socks5.probe_socks5),
    (Protocol.HTTP, http2.FIRST_BYTES, lambda: http2.probe_http2),
    (Protocol.HTTP, http1.FIRST_BYTES, http1.Http1Probe),
)
_ANY_BYTE: Final = NeedMore(1)


class TcpDetector:
    """Recognises one client. Keeps no bytes: the caller does."""

    __slots__ = ("_by_first_byte", "_limit", "_pending", "_undecided")

    def __init__(self, wanted: frozenset[Protocol], limit: int = DETECT_LIMIT) -> None:
        """Probe for the ``wanted`` protocols only, and within the first ``limit`` bytes."""
        self._by_first_byte = _probes_by_first_byte(wanted)
        self._limit = limit
        self._pending = _ANY_BYTE
        self._undecided: list[Probe] | None = None

    def feed(self, data: bytes | bytearray, eof: bool) -> Verdict:
        """Judge all bytes so far; each call must pass those of the call before, and may pass more behind them.

        NeedMore: call again with at least ``total`` bytes, or with ``eof`` (the client ended its direction); calls
        before that are cheap and say the same. NoMatch: none of the wanted protocols, or none that the first ``limit``
        bytes could prove. With ``eof`` never NeedMore.
        """
        if len(data) > self._limit:
            data = data[: self._limit]
        if not self._by_first_byte:
            return NO_MATCH
        if len(data) < self._pending.total and not eof:
            return self._pending
        if self._undecided is None:
            if not data:
                return NO_MATCH
            self._undecided = [start() for start in self._by_first_byte[data[0]]]
        while self._undecided:
            verdict = self._undecided[0](data, eof)
            match verdict:
                case Match():
                    return verdict
                case NeedMore():
                    if verdict.total <= self._limit:
                        self._pending = verdict
                        return verdict
                case NoMatch():
                    pass
                case never:
                    assert_never(never)
            del self._undecided[0]
        return NO_MATCH


@functools.cache  # a process sees few sets of protocols, and a client must not pay for the table
def _probes_by_first_byte(wanted: frozenset[Protocol]) -> tuple[tuple[Callable[[], Probe], ...], ...]:
    """Return what to start for each value of the first byte; empty when nothing that TCP carries is wanted."""
    probes = [(first_bytes, start) for protocol, first_bytes, start in _PROBES if protocol in wanted]
    if not probes:
        return ()
    return tuple(tuple(start for first_bytes, start in probes if value in first_bytes) for value in range(_BYTE_VALUES))
