"""A configuration as the workers use it: compiled, immutable, free of file syntax.

A snapshot is made by ``config.compile``, carried to each worker through the control channel, and swapped in whole.
Sessions keep the snapshot, route and targets they began with.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from rpxy_l4.verdict import Protocol, Transport

DEFAULT_ROUTE = "default"
"""Name of the route made from ``tcp_target`` or ``udp_target``, in metrics and logs."""


class LoadBalance(enum.StrEnum):
    """How a route picks among its targets."""

    SOURCE_IP = "source_ip"
    SOURCE_SOCKET = "source_socket"
    RANDOM = "random"
    NONE = "none"


class AtLimit(enum.StrEnum):
    """What becomes of TCP connections beyond a limit."""

    RESET = "reset"
    """They are accepted and reset."""
    WAIT = "wait"
    """They wait in the accept queue."""


class OnRouteRemoved(enum.StrEnum):
    """What becomes of sessions whose route or target leaves the configuration."""

    KEEP = "keep"
    """They go on until they end."""
    DRAIN = "drain"
    """They end when the drain timeout has passed."""


class OnSupervisorLoss(enum.StrEnum):
    """What workers do without a supervisor."""

    DRAIN = "drain"
    """They accept nothing new, finish their TCP sessions and end."""
    SERVE = "serve"
    """They go on as before, until they are told to end by TERM."""


NEAR_LIMIT: Final = 64
"""So near to ``tcp_max_connections`` at least, user space decides about each connection."""


class KernelPath(enum.StrEnum):
    """Whether decided traffic may be forwarded without coming to user space."""

    AUTO = "auto"
    """Where it is possible."""
    ON = "on"
    """And where it is not, the configuration is refused."""
    OFF = "off"


class ProxyVersion(enum.StrEnum):
    """Version of the PROXY protocol header sent to a target."""

    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True, order=True)
class Bind:
    """One address to listen on. Hashable and stable: the identity of listening sockets over reloads."""

    transport: Transport
    host: str
    """An IP literal in its canonical text, without brackets."""
    port: int

    def __str__(self) -> str:
        """``tcp 127.0.0.1:8448`` or ``udp [::1]:8448``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport} {host}:{self.port}"


def covers(bind: Bind, other: Bind) -> bool:
    """Whether ``bind`` receives what is sent to ``other`` when nothing listens there."""
    same_family = (":" in bind.host) == (":" in other.host)
    is_wildcard = bind.host in {"0.0.0.0", "::"}  # noqa: S104  compared, not bound
    same_place = (bind.transport, bind.port) == (other.transport, other.port)
    return same_place and (bind.host == other.host or (is_wildcard and same_family))


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a route connects to. Names are resolved elsewhere; see ``Addresses`` in the workers."""

    text: str
    """As written in the configuration; the metric label and the log field."""
    host: str
    """An IP literal in canonical text without brackets, or a host name in lower case."""
    port: int
    is_name: bool
    series: int = 0
    """Index of this (listener, transport, route, target) in the counters' target table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A rule that recognised traffic can take. ``protocol`` None is the listener's default."""

    name: str
    transport: Transport
    protocol: Protocol | None
    targets: tuple[Target, ...]
    load_balance: LoadBalance = LoadBalance.NONE
    server_names: frozenset[str] = frozenset()
    """Lower case. Empty: no filter."""
    alpn: frozenset[bytes] = frozenset()
    """Lower case. Empty: no filter."""
    idle_lifetime: float = 30.0
    """UDP: seconds without a datagram in either direction before a flow is forgotten; ``math.inf``: never."""
    proxy_version: ProxyVersion | None = None
    """TCP: the PROXY header to send first; None sends none."""
    kernel_path: KernelPath = KernelPath.OFF
    """Whether what it takes may be forwarded in the kernel; never what is detected on TCP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The TCP or the UDP half of a listener."""

    transport: Transport
    routes: tuple[Route, ...]
    """The ``[protocols.*]`` entries, in the order of the file."""
    default: Route | None
    series: int
    """Index of (listener, transport) in the counters' listener table."""
    max_sessions: int
    max_new_per_second: int = 0
    """New sessions a second, over all workers; 0: any number."""
    at_limit: AtLimit = AtLimit.RESET
    """TCP: what becomes of connections beyond either limit."""

    @property
    def wanted(self) -> frozenset[Protocol]:
        """The protocols to probe for. Empty: nothing is to be detected, do not wait for a byte."""
        return frozenset(route.protocol for route in self.routes if route.protocol is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One configuration in force."""

    generation: int
    sha256: str
    """Hex digest of the file's content."""
    listener: str
    """Metric label and log field, ``:8448``."""
    binds: tuple[Bind, ...]
    tcp: Side | None
    udp: Side | None
    tcp_backlog: int = 1024
    tcp_balance_workers: bool = False
    """Whether a worker hands connections to one with fewer sessions."""
    tcp_detect_timeout: float = 3.0
    tcp_connect_timeout: float = 5.0
    drain_timeout: float = 30.0
    on_route_removed: OnRouteRemoved = OnRouteRemoved.KEEP
    on_supervisor_loss: OnSupervisorLoss = OnSupervisorLoss.DRAIN
    recv_proxy_protocol: bool = False
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    workers: int = 1
    slots: int = 1
    """Sets of listening sockets; never fewer than workers."""
    watch: bool = True
    access_log: bool = True
    """Whether sessions that begin under this configuration have a line when they end or are refused."""
    admin: Bind | None = None
    """The admin process's HTTP address; None turns it off."""
    control: str = ""
    """Path of the control socket; empty turns it off."""
    dns_min_ttl: float = 30.0
    dns_max_ttl: float = 3600.0

    @property
    def _all_routes(self) -> list[Route]:
        sides = [side for side in (self.tcp, self.udp) if side is not None]
        return [route for side in sides for route in (*side.routes, side.default) if route is not None]

    @property
    def names(self) -> frozenset[str]:
        """Every target host that must be resolved."""
        return frozenset(target.host for route in self._all_routes for target in route.targets if target.is_name)

    @property
    def why_tcp_stays(self) -> str | None:
        """Why no TCP connection may go through the kernel path; None: it may, from its first packet on."""
        if self.tcp is None or self.tcp.default is None:
            return "there is no default target"
        if self.tcp.routes:
            return "protocols are detected"
        if self.tcp.default.kernel_path is KernelPath.OFF:
            return "it is turned off"
        if self.recv_proxy_protocol or self.tcp.default.proxy_version is not None:
            return "PROXY headers are read or written"
        if self.tcp.max_sessions <= NEAR_LIMIT:
            return f"tcp_max_connections is not above {NEAR_LIMIT}"
        if self.tcp.max_new_per_second:
            return "tcp_max_new_per_second is kept"
        targets = self.tcp.default.targets
        if all(target.is_name for target in targets):
            return "targets are given by name"
        kinds = {(target.is_name, ":" in target.host) for target in targets}
        if self.tcp.default.load_balance is LoadBalance.RANDOM and len(kinds) > 1:
            return "targets that are chosen at random are of several kinds"
        return None

    @property
    def why_udp_stays(self) -> str | None:
        """Why no flow may go through the kernel path; None: those of one route at least may."""
        if self.udp is None:
            return "there is no target"
        if all(route.kernel_path is KernelPath.OFF for route in self._all_routes if route.transport is Transport.UDP):
            return "it is turned off"
        return None

    @property
    def kernel_path(self) -> KernelPath:
        """What most is asked for by a route: ``on``, or ``auto``, or ``off`` where none has a use for it."""
        wishes = {route.kernel_path for route in self._all_routes if route.transport is Transport.UDP}
        if self.tcp is not None and self.tcp.default is not None and self.why_tcp_stays is None:
            wishes.add(self.tcp.default.kernel_path)
        return next((wish for wish in (KernelPath.ON, KernelPath.AUTO) if wish in wishes), KernelPath.OFF)
