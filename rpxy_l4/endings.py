"""Why sessions end and why traffic is refused: closed sets, each value metric label and log field at once.

Never add free text here: the number of time series is known before the program starts.
"""

from __future__ import annotations

import enum


class Word(enum.StrEnum):
    """A word of a closed set."""

    # That of the text, which is kept in it; an enumeration's own is computed, in Python, for each look into a dict.
    __hash__ = str.__hash__


class Reason(Word):
    """Why a session that was given to a target ended. The order is the layout of the counters: append only."""

    CLIENT_EOF = "client_eof"
    """Both directions ended in order; the client ended its own first."""
    TARGET_EOF = "target_eof"
    """Both directions ended in order; the target ended its own first."""
    CLIENT_RESET = "client_reset"
    """The client reset the connection, or vanished."""
    TARGET_RESET = "target_reset"
    """The target reset the connection, or vanished."""
    IDLE = "idle"
    """A UDP flow without a datagram in either direction for its route's idle lifetime; a TCP connection in the kernel
    path without a packet for two hours and four minutes."""
    CONNECT_REFUSED = "connect_refused"
    """Every target was tried; the last one refused."""
    CONNECT_TIMEOUT = "connect_timeout"
    """Every target was tried; the last one did not answer in ``tcp_connect_timeout``."""
    CONNECT_UNREACHABLE = "connect_unreachable"
    """Every target was tried; there was no way to the last one."""
    DRAIN = "drain"
    """Still open when the drain timeout passed, or at an immediate stop."""
    WORKER_LOST = "worker_lost"
    """Held by a worker process that died."""
    INTERNAL = "internal"
    """A fault of this program or a limit of the machine; the event log has the details."""
    UNCONFIRMED = "unconfirmed"
    """A UDP flow whose client had not sent again after an answer, and had been quiet for a moment; there were many."""
    EVICTED = "evicted"
    """An unconfirmed UDP flow gave way to a new one when there was no room."""


class Rejection(Word):
    """Why a session was refused before a target was chosen. Append only."""

    LIMIT = "limit"
    """``tcp_max_connections`` or ``udp_max_connections`` was reached."""
    ACL = "acl"
    """A PROXY header is required and the client is not in ``tcp_trusted_proxies``."""
    PROXY_HEADER = "proxy_header"
    """The PROXY header is missing, malformed or late."""
    NO_ROUTE = "no_route"
    """Nothing matched and there is no default target."""
    DETECT_TIMEOUT = "detect_timeout"
    """Too little arrived in ``tcp_detect_timeout`` to decide, and there is no default target."""
    NO_TARGET = "no_target"
    """The name of every target of the route is without an address."""
    CLIENT_GONE = "client_gone"
    """The client closed or reset the connection before it could be routed."""
    DRAINING = "draining"
    """The worker is stopping."""
    RESOURCES = "resources"
    """Out of descriptors, memory or ports; the event log has the details."""
    EVICTED = "evicted"
    """Undecided, the oldest one, and it gave way to a new one when there were too many."""
    RATE = "rate"
    """More came in a second than ``tcp_max_new_per_second`` or ``udp_max_new_per_second`` allows."""


class Drop(Word):
    """Why single datagrams were not forwarded. Append only."""

    NO_ROUTE = "no_route"
    LIMIT = "limit"
    NO_TARGET = "no_target"
    SNDBUF = "sndbuf"
    """The socket towards the client or the target had no room."""
    TOO_BIG = "too_big"
    """Longer than the path allows (EMSGSIZE)."""
    ICMP = "icmp"
    """An ICMP error came back: port, host or network unreachable."""
    DRAINING = "draining"
    RESOURCES = "resources"
    """Out of descriptors, memory or ports."""
    UNDECIDED = "undecided"
    """Held for a first flight of which the rest had not come when the flow had to give way to a new one."""
    RATE = "rate"


class Detected(Word):
    """What detection said about a session. Append only."""

    HTTP = "http"
    TLS = "tls"
    SSH = "ssh"
    SOCKS5 = "socks5"
    QUIC = "quic"
    WIREGUARD = "wireguard"
    UNKNOWN = "unknown"
    """None of the protocols that the listener's routes ask for, or none that the first bytes could prove."""
    TIMEOUT = "timeout"
    """Undecided when the time for it was used up."""
    SKIPPED = "skipped"
    """Nothing was to be detected: the listener has only a default route."""
    REMEMBERED = "remembered"
    """UDP: not to be recognised, but the client had a flow before, and this may go on with it."""


class ConnectResult(Word):
    """How one attempt to connect to a target ended. Append only."""

    OK = "ok"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    PORTS_EXHAUSTED = "ports_exhausted"
    OTHER = "other"
