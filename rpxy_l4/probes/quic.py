"""QUIC: the datagrams of a flow, up to the whole ClientHello.

A client's Initial packets are encrypted with keys that anyone can derive from what stands in their header, and that
they can be opened with those keys is the proof that they are QUIC. Their CRYPTO frames carry the ClientHello, in one
datagram or several. Sources: RFC 9000, RFC 9001 and, for version 2, RFC 9369.
"""

from __future__ import annotations

from typing import Final

from rpxy_l4.probes.client_hello import parse_client_hello
from rpxy_l4.probes.quic_crypto_stream import MAX_CRYPTO, CryptoStream
from rpxy_l4.probes.quic_frames import MAX_FRAMES, read_frames
from rpxy_l4.probes.quic_keys import InitialKeys
from rpxy_l4.probes.quic_packets import (
    MIN_INITIAL_DATAGRAM,
    Kind,
    LongHeader,
    asks_for_unknown_version,
    read_long_header,
)
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

_NEXT_DATAGRAM: Final = NeedMore(1)
_CLIENT_HELLO: Final = 1
_PACKET_WORK: Final = 8  # opening a packet takes the time of so many frames
_MESSAGE_HEADER: Final = 4  # handshake type and 24-bit length (RFC 8446 4)


class QuicProbe:
    """Judges a flow datagram by datagram; what an earlier one gave is kept, so none is decrypted twice."""

    __slots__ = ("_attempts", "_work")

    def __init__(self) -> None:
        """Start a flow of which nothing is known."""
        # By version and destination id, one for each beginning of a connection: a client that was told to retry, or
        # gave up and began again, uses a new id and sends its hello from the start.
        self._attempts: dict[tuple[int, bytes], tuple[InitialKeys, CryptoStream]] = {}
        self._work = 0  # frames read, and what opening their packets cost

    def feed(self, datagram: bytes) -> Verdict:
        """Take the next datagram of an undecided flow, whatever it is.

        Match, with SNI and ALPN, when the ClientHello is complete; Match without them at a plausible long header of
        an unknown version, for the target to negotiate. NeedMore, whose ``total`` means no more than "one more
        datagram", while the hello is incomplete or only 0-RTT packets, which may overtake it, have come. NoMatch when
        the contents of an authentic Initial packet are wrong, and for every other datagram as long as no authentic
        one has come; afterwards such a datagram is passed over.
        """
        may_be_early = False
        destination_id: bytes | None = None
        at = 0
        while (header := read_long_header(datagram, at)) is not None:
            if header.kind is Kind.INITIAL:
                # Packets of other connections are not to be coalesced, and to be ignored if they are (RFC 9000 12.2).
                if len(datagram) < MIN_INITIAL_DATAGRAM:
                    break
                if destination_id is None:
                    destination_id = header.destination_id
                elif destination_id != header.destination_id:
                    break
                verdict = self._read_initial(datagram, at, header)
                if verdict is None:
                    may_be_early = False
                    break
                if not isinstance(verdict, NeedMore):
                    return verdict
            elif header.kind is Kind.ZERO_RTT:
                may_be_early = True
            at = header.end
        if self._attempts or may_be_early:
            return _NEXT_DATAGRAM
        return Match(Protocol.QUIC) if asks_for_unknown_version(datagram) else NO_MATCH

    def _read_initial(self, datagram: bytes, at: int, header: LongHeader) -> Verdict | None:
        """Take in an Initial packet. None if it is not authentic."""
        name = header.version, header.destination_id
        attempt = self._attempts.get(name) or (InitialKeys(*name), CryptoStream())
        keys, stream = attempt
        payload = keys.open(datagram, at, header)
        if payload is None:
            return None
        self._attempts[name] = attempt
        frames = read_frames(payload)
        if frames is None:
            return NO_MATCH
        for offset, piece in frames.crypto:
            if not stream.add(offset, piece):
                return NO_MATCH
        # What bounds one packet bounds them all, or a few kilobytes in tiny ones would keep a worker busy for long.
        self._work += _PACKET_WORK + frames.total
        if self._work > MAX_FRAMES:
            return NO_MATCH
        # A stream alone keeps to this bound by itself.
        if len(self._attempts) > 1 and sum(len(each) for _, each in self._attempts.values()) > MAX_CRYPTO:
            return NO_MATCH
        return _judge(stream)


def _judge(stream: CryptoStream) -> Verdict:
    """Say what the handshake bytes are so far."""
    ready = stream.ready
    if ready < _MESSAGE_HEADER:
        return _NEXT_DATAGRAM
    header = stream.read(0, _MESSAGE_HEADER)
    end = _MESSAGE_HEADER + int.from_bytes(header[1:], "big")
    if header[0] != _CLIENT_HELLO or end > MAX_CRYPTO:
        return NO_MATCH
    if ready < end:
        return _NEXT_DATAGRAM
    hello = parse_client_hello(stream.read(_MESSAGE_HEADER, end))
    return NO_MATCH if hello is None else Match(Protocol.QUIC, hello.server_name, hello.alpn)
