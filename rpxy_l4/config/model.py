"""Every key of the file: its name, meaning, form and default. The JSON Schema is made from the same lines.

A model holds what is written in one place. What several keys mean together is ``config.checks`` and ``config.compile``.
"""

from __future__ import annotations

import math
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rpxy_l4.addresses import (
    MAX_PORT,
    Endpoint,
    parse_endpoint,
    parse_ip,
    parse_network,
    parse_server_name,
)
from rpxy_l4.config.forms import (
    DURATION,
    FLAG,
    POSITIVE_DURATION,
    Form,
    describe,
    member,
    show_number,
    text,
    whole,
    word,
)
from rpxy_l4.errors import quote
from rpxy_l4.snapshot import AtLimit, KernelPath, LoadBalance, OnRouteRemoved, OnSupervisorLoss, ProxyVersion
from rpxy_l4.verdict import Protocol

MAX_WORKERS: Final = 256
# Each address is one descriptor per transport and slot, handed to a worker in one message.
MAX_ADDRESSES: Final = 100
# listen(2) takes a C int.
_MAX_BACKLOG: Final = 2**31 - 1
_MAX_SESSIONS: Final = 2**32 - 1
MAX_CONTROL_PATH: Final = 103
"""Bytes. A path of a socket has 107 at most (unix(7)), and this one has a longer name before it is ready."""
# RFC 7301 section 3.1: a protocol name is a vector of 1 to 255 bytes.
_MAX_ALPN: Final = 255
# The name of an entry is a metric label and a log field.
_MAX_ENTRY_NAME: Final = 100
_ANY_V4: Final = "0.0.0.0"  # noqa: S104  the documented default
_ANY: Final = (_ANY_V4, "::")

_ENDPOINT_PATTERN: Final = r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}$"


def _read_alpn(value: str) -> bytes:
    name = value.lower().encode()
    if not 0 < len(name) <= _MAX_ALPN or not value.strip():
        raise ValueError(f"an ALPN protocol name has 1 to {_MAX_ALPN} bytes")
    return name


def _read_admin_listen(value: str) -> Endpoint | None:
    if not value:
        return None
    endpoint = parse_endpoint(value)
    if endpoint.is_name:
        raise ValueError(f"{quote(value)} is a name; listen on an IP address, such as 127.0.0.1:{endpoint.port}")
    return endpoint


def _read_control(value: str) -> str:
    if value and (not value.startswith("/") or value.endswith("/") or "\0" in value):
        raise ValueError(f"{quote(value)} is not the absolute path of a file")
    if (size := len(value.encode())) > MAX_CONTROL_PATH:
        raise ValueError(f"a path of {size} bytes is too long for a socket: {MAX_CONTROL_PATH} at most")
    return value


def _read_workers(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS:
        return value
    got = quote(value) if isinstance(value, str) else show_number(value)
    raise ValueError(f'expected "auto" or a whole number from 1 to {MAX_WORKERS}, got {got}')


def _read_idle_lifetime(value: object) -> float:
    return float(DURATION.read(value)) or math.inf


def _read_entry_name(value: str) -> str:
    if not 0 < len(value) <= _MAX_ENTRY_NAME or not value.isprintable():
        raise ValueError(f"the name of an entry has 1 to {_MAX_ENTRY_NAME} printable characters")
    return value


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise ValueError(f"expected an address or an array of addresses, got {describe(value)}")


def _distinct_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(addresses))
    if len(distinct) > 1 and any(wildcard in distinct for wildcard in _ANY):
        wildcard = next(address for address in distinct if address in _ANY)
        raise ValueError(f"{wildcard} means every address: it must stand alone")
    return distinct


Port = Annotated[int, whole(1, MAX_PORT)]
Sessions = Annotated[int, whole(1, _MAX_SESSIONS)]
Rate = Annotated[int, whole(0, _MAX_SESSIONS)]
Flag = Annotated[bool, FLAG]
Duration = Annotated[float, DURATION]
PositiveDuration = Annotated[float, POSITIVE_DURATION]
IdleLifetime = Annotated[float, Form(_read_idle_lifetime, DURATION.json)]
Balance = Annotated[LoadBalance, member("load balance", LoadBalance)]
ProtocolName = Annotated[Protocol, member("protocol", Protocol)]
ProxyHeader = Annotated[
    ProxyVersion | None,
    word(
        "PROXY protocol version",
        {"none": None, "v1": ProxyVersion.V1, "v2": ProxyVersion.V2, "1": ProxyVersion.V1, "2": ProxyVersion.V2},
        any_case=True,
    ),
]
IPv4 = Annotated[str, text("an IPv4 address", lambda value: parse_ip(value, 4), pattern=r"^[0-9.]+$")]
IPv6 = Annotated[str, text("an IPv6 address", lambda value: parse_ip(value, 6), pattern=r"^\[?[0-9A-Fa-f:.]+\]?$")]
IPv4Addresses = Annotated[
    tuple[IPv4, ...],
    Field(min_length=1, max_length=MAX_ADDRESSES),
    AfterValidator(_distinct_addresses),
    BeforeValidator(
        _one_or_more,
        json_schema_input_type=IPv4 | Annotated[list[IPv4], Field(min_length=1, max_length=MAX_ADDRESSES)],
    ),
]
IPv6Addresses = Annotated[
    tuple[IPv6, ...],
    Field(min_length=1, max_length=MAX_ADDRESSES),
    AfterValidator(_distinct_addresses),
    BeforeValidator(
        _one_or_more,
        json_schema_input_type=IPv6 | Annotated[list[IPv6], Field(min_length=1, max_length=MAX_ADDRESSES)],
    ),
]
Network = Annotated[
    IPv4Network | IPv6Network,
    text("a network such as 10.0.0.0/8", parse_network, pattern=r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"),
]
TargetAddress = Annotated[
    Endpoint,
    text("a target such as 192.0.2.1:80, [2001:db8::1]:80 or name:80", parse_endpoint, pattern=_ENDPOINT_PATTERN),
]
Targets = Annotated[tuple[TargetAddress, ...], Field(min_length=1)]
ServerName = Annotated[str, text("a host name", parse_server_name, minLength=1, maxLength=253)]
AlpnName = Annotated[bytes, text("the name of an application protocol", _read_alpn, minLength=1, maxLength=_MAX_ALPN)]
EntryName = Annotated[str, text("a name", _read_entry_name)]
AdminListen = Annotated[
    Endpoint | None,
    text("an IP address and port such as 127.0.0.1:9448", _read_admin_listen, pattern=f"^$|{_ENDPOINT_PATTERN}"),
]
ControlPath = Annotated[str, text("the absolute path of a socket", _read_control, pattern="^$|^/.*[^/]$")]
Workers = Annotated[
    int | Literal["auto"],
    Form(_read_workers, {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}]}),
]


KernelPathWish = Annotated[KernelPath, member("way to use the kernel path", KernelPath)]
EntrysKernelPath = Annotated[KernelPath | None, member("way to use the kernel path", KernelPath)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        field_title_generator=lambda name, _: name,
    )


class Entry(_Table):
    """One route: traffic of a protocol, and where it goes."""

    protocol: ProtocolName
    """The protocol that this entry takes. http, tls, ssh and socks5 travel on TCP; quic and wireguard on UDP."""
    target: Targets
    """Where its traffic goes: "ip:port", "[v6]:port" or "name:port"."""
    load_balance: Balance = LoadBalance.NONE
    """How one of several targets is picked: "source_ip" and "source_socket" keep a client on its target, "random" does
    not, "none" takes the first. Not inherited from tcp_load_balance or udp_load_balance."""
    idle_lifetime: IdleLifetime = Field(30.0, json_schema_extra={"default": 30})
    """quic and wireguard: how long a flow without a datagram in either direction is remembered. 0: for ever. Not
    inherited from udp_idle_lifetime, and without effect on TCP."""
    server_names: tuple[ServerName, ...] = ()
    """tls and quic: take only clients that ask for one of these names (SNI). Empty: any name, or none."""
    alpn: tuple[AlpnName, ...] = ()
    """tls and quic: take only clients that offer one of these application protocols (ALPN), such as "h2". Empty: any
    client."""
    alpns: tuple[AlpnName, ...] = ()
    """Another spelling of alpn."""
    send_proxy_protocol: ProxyHeader = None
    """TCP: begin with a PROXY protocol header of this version, "v1" or "v2"; "none" sends none. Left out:
    tcp_send_proxy_protocol decides."""

    kernel_path: EntrysKernelPath = None
    """quic and wireguard: whether its flows may be forwarded in the kernel, "auto", "on" or "off". Left out: the
    kernel_path of the whole file decides."""

    @property
    def alpn_filter(self) -> frozenset[bytes]:
        """The ALPN names of either spelling."""
        return frozenset(self.alpn or self.alpns)


class Admin(_Table):
    """Administration: the HTTP server for /metrics, /livez and /readyz, and the control socket."""

    listen: AdminListen = Field(
        parse_endpoint("127.0.0.1:9448"),
        json_schema_extra={"default": "127.0.0.1:9448"},
    )
    """IP address and port to listen on. "" turns it off. Whoever reaches it can read all metrics."""
    control: ControlPath = ""
    """Path of the socket for `rpxy-l4 ctl`. Its folder must be there; only the user who runs the program, and root, can
    use it. "": none."""


class Config(_Table):
    """Configuration of rpxy-l4."""

    model_config = ConfigDict(title="rpxy-l4 configuration")

    listen_port: Port
    """The one port to listen on, for TCP and UDP alike."""
    listen_address_v4: IPv4Addresses = (_ANY_V4,)
    """IPv4 address or addresses to listen on; 0.0.0.0 is every one and stands alone."""
    listen_address_v6: IPv6Addresses = ()
    """IPv6 address or addresses to listen on, with or without brackets; :: is every one and stands alone. Turns IPv6 on
    whatever listen_ipv6 says."""
    listen_ipv6: Flag = False
    """Listen on :: where listen_address_v6 is left out."""
    tcp_backlog: Annotated[int, whole(0, _MAX_BACKLOG)] = 1024
    """TCP connections that may wait to be accepted, on each address. The kernel caps it at net.core.somaxconn."""
    tcp_max_connections: Sessions = 1024
    """TCP connections open at a time; tcp_at_limit says what becomes of those that come on top."""
    tcp_max_new_per_second: Rate = 0
    """New TCP connections a second, over all addresses; tcp_at_limit says what becomes of more. 0: any number."""
    tcp_at_limit: Annotated[AtLimit, member("way to meet a limit", AtLimit)] = AtLimit.RESET
    """What becomes of TCP connections beyond one of these limits: "reset" resets them at once, "wait" leaves them in
    the queue of tcp_backlog until there is room."""
    tcp_balance_workers: Flag = False
    """A worker hands a TCP connection that it accepted to another one that has clearly fewer sessions. That evens out
    long sessions, and costs a little for each connection."""
    udp_max_connections: Sessions = 2048
    """UDP flows remembered at a time. On top, a new flow takes the place of the oldest one whose client has not sent
    again; where all have, its datagrams are dropped."""
    udp_max_new_per_second: Rate = 0
    """New UDP flows a second, over all addresses; datagrams of more are dropped. 0: any number."""
    tcp_target: Targets = ()
    """Where TCP goes that no entry takes. Left out: it is closed."""
    udp_target: Targets = ()
    """Where UDP goes that no entry takes. Left out: it is dropped."""
    tcp_load_balance: Balance = LoadBalance.NONE
    """How one of several tcp_target is picked: "source_ip" and "source_socket" keep a client on its target, "random"
    does not, "none" takes the first."""
    udp_load_balance: Balance = LoadBalance.NONE
    """How one of several udp_target is picked, as tcp_load_balance."""
    udp_idle_lifetime: IdleLifetime = Field(30.0, json_schema_extra={"default": 30})
    """How long a flow to udp_target without a datagram in either direction is remembered. 0: for ever; its number is
    bounded by udp_max_connections alone then."""
    dns_cache_min_ttl: Duration = Field(30.0, json_schema_extra={"default": "30s"})
    """Addresses of a name are kept at least this long."""
    dns_cache_max_ttl: Duration = Field(3600.0, json_schema_extra={"default": "1h"})
    """Addresses of a name are looked up again after this time at the latest."""
    tcp_send_proxy_protocol: ProxyHeader = Field(None, json_schema_extra={"default": "none"})
    """Tell TCP targets the client's address in a PROXY protocol header of this version, "v1" or "v2"."""
    tcp_recv_proxy_protocol: Flag = False
    """Expect a PROXY protocol header, of either version, at the start of every TCP connection. Connections of others
    than tcp_trusted_proxies are closed."""
    tcp_trusted_proxies: tuple[Network, ...] = ()
    """Networks, or single addresses, whose PROXY headers are believed. Required with tcp_recv_proxy_protocol."""
    tcp_detect_timeout: PositiveDuration = Field(3.0, json_schema_extra={"default": "3s"})
    """How long to wait for enough bytes to recognise a protocol. Then the connection goes to tcp_target with what has
    arrived, or is closed if there is none. Without entries for TCP nothing is waited for."""
    tcp_connect_timeout: PositiveDuration = Field(5.0, json_schema_extra={"default": "5s"})
    """How long to wait for a target to accept a connection before the next one is tried."""
    drain_timeout: Duration = Field(30.0, json_schema_extra={"default": "30s"})
    """How long open sessions may go on after the order to stop, TCP sessions in a worker that leaves, and UDP flows of
    an address that left the configuration, and with on_route_removed = "drain" sessions whose target did. 0: not at
    all."""
    kernel_path: KernelPathWish = KernelPath.AUTO
    """Whether UDP flows that are decided, and TCP connections where nothing is to be detected, are forwarded in the
    kernel. There they cost no CPU of this program: "auto" does so where the kernel and the privileges allow it, "on"
    refuses the configuration where they do not, "off" never does."""
    on_route_removed: Annotated[OnRouteRemoved, member("way to remove a route", OnRouteRemoved)] = OnRouteRemoved.KEEP
    """What becomes of open sessions when their route, or their target in it, leaves the configuration: "keep" lets them
    go on until they end, "drain" ends them after drain_timeout."""
    on_supervisor_loss: Annotated[OnSupervisorLoss, member("way to go on without a supervisor", OnSupervisorLoss)] = (
        OnSupervisorLoss.DRAIN
    )
    """What workers do when the supervisor has died: "drain" lets them finish their TCP sessions and accept nothing new,
    so that another instance can begin; "serve" lets them go on until each is ended by TERM."""
    workers: Workers = "auto"
    """Worker processes; "auto" is one per available CPU."""
    slots: Workers = "auto"
    """Sets of listening sockets that workers share out, so many that there may be more workers one day without a UDP
    flow changing its place; "auto" is twice the workers. Fixed while the program runs."""
    watch: Flag = True
    """Reload when the file changes. SIGHUP reloads in any case."""
    access_log: Flag = True
    """Write a line for each session that ended or was refused. A reload decides for sessions that begin after it."""
    admin: Admin = Admin()
    """Administration: the HTTP server for /metrics, /livez and /readyz, and the control socket."""
    protocols: dict[EntryName, Entry] = Field(default_factory=dict)
    """One table per route, [protocols.NAME]; the name appears in metrics and logs. For tls and quic, entries with
    server_names and alpn come first, then those with server_names, then those with alpn, then the rest; among equals
    the order of the file decides."""
    protocol: dict[EntryName, Entry] = Field(default_factory=dict)
    """Another spelling of protocols. Where both are used, the entries of protocols come first."""

    @property
    def entries(self) -> dict[str, Entry]:
        """The routes of both spellings, in the order in which ties are decided."""
        return {**self.protocols, **self.protocol}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address to listen on, as canonical IP literals."""
        v6 = self.listen_address_v6 or (("::",) if self.listen_ipv6 else ())
        return self.listen_address_v4 + v6


def contains_all(address: str) -> bool:
    """Tell whether listening on this address is listening on all of its family."""
    return address in _ANY
