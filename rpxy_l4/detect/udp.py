"""What the datagrams of a new UDP flow are."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from rpxy_l4.probes.wireguard import probe_wireguard
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

if TYPE_CHECKING:
    from rpxy_l4.probes.quic import QuicProbe

# A flow's datagrams are held until it is decided. A ClientHello with a post-quantum key share fills two datagrams;
# these bounds leave room for copies, 0-RTT and a second attempt, and no more for strangers to fill.
MAX_DATAGRAMS: Final = 8
MAX_BYTES: Final = 16_384


def preload(wanted: frozenset[Protocol]) -> None:
    """Import what detecting these protocols needs, so that the first flow does not wait for it.

    QUIC brings the library ``cryptography`` (about 70 ms and 16 MiB), which a process without QUIC routes never loads.
    """
    if Protocol.QUIC in wanted:
        _quic_probe()


class UdpDetector:
    """Decides about one flow; make one for each. Protocols that are not wanted, or not of UDP, are not probed."""

    __slots__ = ("_bytes", "_datagrams", "_quic", "_wants_wireguard")

    def __init__(self, wanted: frozenset[Protocol]) -> None:
        """Start a flow of which nothing has come. See ``preload``."""
        self._datagrams = 0
        self._bytes = 0
        self._wants_wireguard = Protocol.WIREGUARD in wanted
        self._quic = _quic_probe()() if Protocol.QUIC in wanted else None

    def feed(self, datagram: bytes) -> Verdict:
        """Take the next datagram, in the order of arrival; not to be called again after a Match.

        NeedMore says that the next datagram may decide; its ``total`` has no meaning here. It is the caller who holds
        the datagrams meanwhile, and whose patience has a limit. NoMatch is final, and also the answer at the eighth
        undecided datagram and for whatever exceeds 16 KiB in all.
        """
        self._datagrams += 1
        self._bytes += len(datagram)
        # Only the first message of a WireGuard session can be recognised, so it is the first datagram or none.
        if self._wants_wireguard and self._datagrams == 1:
            verdict = probe_wireguard(datagram)
            if isinstance(verdict, Match):
                return verdict
        if self._quic is None:
            return NO_MATCH
        verdict = self._quic.feed(datagram) if self._bytes <= MAX_BYTES else NO_MATCH
        if isinstance(verdict, Match) or (isinstance(verdict, NeedMore) and self._datagrams < MAX_DATAGRAMS):
            return verdict
        self._quic = None
        return NO_MATCH


@functools.cache
def _quic_probe() -> type[QuicProbe]:
    from rpxy_l4.probes.quic import QuicProbe  # noqa: PLC0415 -- costly, and for nothing where QUIC is not wanted

    return QuicProbe
