"""What the datagrams of a UDP flow are: of a new one, and of one that is known from before."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Final

from rpxy_l4.probes import quic_packets, wireguard
from rpxy_l4.probes.wireguard import probe_wireguard
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

if TYPE_CHECKING:
    from rpxy_l4.probes.quic import QuicProbe

# A flow's datagrams are held until it is decided. A ClientHello with a post-quantum key share fills two datagrams;
# these bounds leave room for copies, 0-RTT and a second attempt, and no more for strangers to fill.
MAX_DATAGRAMS: Final = 8
MAX_BYTES: Final = 16_384

# Of a DNS message (RFC 1035 4.1.1): flags, and the numbers of questions, answers, authorities and additional records.
_DNS: Final = struct.Struct(">2x5H")
_NOT_OF_A_QUERY: Final = 0xFECF  # all flags but "recursion desired", "authentic data" and "checking disabled"


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


def may_continue(protocol: Protocol | None, datagram: bytes) -> bool:
    """Whether a client may send this in the middle of a session of a protocol; None, a flow not recognised: always.

    It errs towards yes, since a wrong no breaks a session. Any datagram of at least 21 bytes may continue QUIC if its
    uppermost bit is clear, and of others about one in 150; WireGuard, one in 2**30. A DNS query, the most frequent
    stranger, continues neither; but DNS responses, updates and zone transfers are not told from QUIC.
    """
    if protocol is None:
        return True
    if _is_dns_query(datagram):
        return False
    if protocol is Protocol.QUIC:
        return quic_packets.may_be_in_session(datagram)
    return protocol is Protocol.WIREGUARD and wireguard.may_be_in_session(datagram)


def may_begin(datagram: bytes) -> Protocol | None:
    """Return the protocol of which this looks like the first datagram of a session; None for anything else.

    Those are the WireGuard handshake initiation, and an Initial packet of QUIC version 1 or 2 in a datagram of at least
    1200 bytes. The protocol is as good as sure, but not that a session begins: WireGuard renews its keys with the same
    message every two minutes, and a QUIC client acknowledges the target's Initial packets in such ones of its own. To
    tell these from a new connection takes a detector, which opens only the latter.
    """
    if isinstance(probe_wireguard(datagram), Match):
        return Protocol.WIREGUARD
    if len(datagram) < quic_packets.MIN_INITIAL_DATAGRAM:
        return None
    header = quic_packets.read_long_header(datagram, 0)
    return Protocol.QUIC if header is not None and header.kind is quic_packets.Kind.INITIAL else None


def _is_dns_query(datagram: bytes) -> bool:
    """Whether the header is that of a query for one name: 76 bits as no QUIC or WireGuard datagram has them by chance.

    A QUIC packet shows its destination id there, so it would take an id of mostly zeros to be mistaken.
    """
    if len(datagram) < _DNS.size:
        return False
    flags, questions, answers, authorities, additional = _DNS.unpack_from(datagram)
    # One additional record is that of EDNS (RFC 6891 6.1.1).
    return not flags & _NOT_OF_A_QUERY and (questions, answers, authorities) == (1, 0, 0) and additional <= 1


@functools.cache
def _quic_probe() -> type[QuicProbe]:
    from rpxy_l4.probes.quic import QuicProbe  # noqa: PLC0415 -- costly, and for nothing where QUIC is not wanted

    return QuicProbe
