"""The vocabulary of detection: protocols, and the three answers a detector can give."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


class Protocol(enum.StrEnum):
    """A protocol that an entry of the configuration can ask for. Each value is also a metric label."""

    # That of the text, which is kept in it; an enumeration's own is computed, in Python, for each look into a dict.
    __hash__ = str.__hash__

    HTTP = "http"
    TLS = "tls"
    SSH = "ssh"
    SOCKS5 = "socks5"
    QUIC = "quic"
    WIREGUARD = "wireguard"


class Transport(enum.StrEnum):
    """What carries a session. Each value is also a metric label."""

    TCP = "tcp"
    UDP = "udp"


TRANSPORT_OF: Final = {
    Protocol.HTTP: Transport.TCP,
    Protocol.TLS: Transport.TCP,
    Protocol.SSH: Transport.TCP,
    Protocol.SOCKS5: Transport.TCP,
    Protocol.QUIC: Transport.UDP,
    Protocol.WIREGUARD: Transport.UDP,
}


@dataclass(frozen=True, slots=True)
class Match:
    """The bytes are this protocol, whatever follows."""

    protocol: Protocol
    server_name: str | None = None
    """TLS and QUIC: the SNI host name, lower case; None when absent or not a legal host name."""
    alpn: tuple[bytes, ...] = ()
    """TLS and QUIC: the ALPN protocol names offered, in the client's order, as sent."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """Undecided. Asking again below ``total`` bytes would give the same answer."""

    total: int


@dataclass(frozen=True, slots=True)
class NoMatch:
    """The bytes cannot become this protocol, whatever follows."""


NO_MATCH: Final = NoMatch()

Verdict = Match | NeedMore | NoMatch
