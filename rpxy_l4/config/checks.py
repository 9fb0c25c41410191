"""What several keys must mean together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from rpxy_l4.addresses import Endpoint
from rpxy_l4.config.compile import routes
from rpxy_l4.config.model import Config, Entry, contains_all
from rpxy_l4.config.positions import Path
from rpxy_l4.errors import quote
from rpxy_l4.router import unreachable
from rpxy_l4.snapshot import DEFAULT_ROUTE, KernelPath
from rpxy_l4.verdict import TRANSPORT_OF, Protocol, Transport

# The descriptors of a snapshot travel in one message: SCM_MAX_FD is 253, and one may carry the snapshot itself.
_MAX_SOCKETS: Final = 250

Finding = tuple[Path, str]


def check(config: Config, broken: frozenset[Path]) -> Iterator[Finding]:
    """Yield everything that is wrong between keys.

    ``broken`` are the paths of what was refused and left out of ``config``. Nothing is said that might change when they
    are repaired.
    """
    yield from _check_entries(config)
    yield from _check_globals(config, broken)
    yield from _check_unreachable(config, broken)
    top = {path[0] for path in broken}
    # An unknown key may be any of those that are missing.
    if not top & {"tcp_target", "udp_target", "protocols", "protocol"} and top <= Config.model_fields.keys():
        yield from _check_purpose(config)
    if not top & {"listen_port", "listen_address_v4", "listen_address_v6", "listen_ipv6"}:
        yield from _check_ports(config)


_PLAIN_NAME: Final = re.compile(r"""[^\s"'\\=]+""")


def _check_entries(config: Config) -> Iterator[Finding]:
    for path, entry in _entries(config):
        if path[1] == DEFAULT_ROUTE:
            yield path, f"metrics and logs call the default target {quote(DEFAULT_ROUTE)}; choose another name"
        if not _PLAIN_NAME.fullmatch(path[1]) or not path[1].isprintable():
            yield path, "metrics and logs show this name: no spaces, quotes, backslashes or equals signs"
        if path[0] == "protocol" and path[1] in config.protocols:
            yield path, "there is an entry of this name under protocols too"
        if entry.alpn and entry.alpns:
            yield (*path, "alpns"), 'this is another spelling of "alpn", which is given too; keep one of them'
        if entry.kernel_path is KernelPath.ON and TRANSPORT_OF[entry.protocol] is Transport.TCP:
            yield (*path, "kernel_path"), f"{quote(entry.protocol)} is recognised in user space, and stays there"
        if entry.protocol not in (Protocol.TLS, Protocol.QUIC):
            for key in ("server_names", "alpn", "alpns"):
                if getattr(entry, key):
                    yield (*path, key), f'only "tls" and "quic" can be told apart by this, not {quote(entry.protocol)}'


def _check_globals(config: Config, broken: frozenset[Path]) -> Iterator[Finding]:
    if (
        config.model_fields_set >= {"dns_cache_min_ttl", "dns_cache_max_ttl"}
        and config.dns_cache_min_ttl > config.dns_cache_max_ttl
    ):
        yield ("dns_cache_min_ttl",), "must not be greater than dns_cache_max_ttl"
    if config.tcp_recv_proxy_protocol and not config.tcp_trusted_proxies:
        if "tcp_trusted_proxies" in config.model_fields_set:
            yield ("tcp_trusted_proxies",), "must not be empty while tcp_recv_proxy_protocol is on"
        elif not any(path[0] == "tcp_trusted_proxies" for path in broken):
            yield ("tcp_recv_proxy_protocol",), "needs tcp_trusted_proxies: whose headers are to be believed?"
    if config.workers != "auto" and config.slots != "auto" and config.slots < config.workers:
        yield ("slots",), f"must not be less than workers, which is {config.workers}"


def _check_unreachable(config: Config, broken: frozenset[Path]) -> Iterator[Finding]:
    paths: dict[str, Path] = {name: (table, name) for (table, name), _ in _entries(config)}
    doubtful = {path[:2] for path in broken}
    for transport in Transport:
        sound = [route for route in routes(config, transport) if paths[route.name] not in doubtful]
        for route, taker in unreachable(sound):
            yield paths[route.name], f"no traffic can reach this entry: {quote(taker.name)} takes all of it"


def _check_purpose(config: Config) -> Iterator[Finding]:
    if not (config.tcp_target or config.udp_target or config.entries):
        yield (), "nothing to forward to; give tcp_target, udp_target or a [protocols.NAME] table"


def _check_ports(config: Config) -> Iterator[Finding]:
    transports = _transports(config)
    if len(config.addresses) * len(transports) > _MAX_SOCKETS:
        yield (
            ("listen_address_v4",),
            f"too many addresses: each one takes a socket for TCP and one for UDP, at most {_MAX_SOCKETS}",
        )
    admin = config.admin.listen
    if admin is not None and Transport.TCP in transports and _is_ours(config, admin):
        yield ("admin", "listen"), "this is where the proxy itself listens"
    for path, endpoint, transport in _targets(config):
        if transport in transports and _is_ours(config, endpoint):
            yield path, f"{quote(endpoint.text)} is where the proxy itself listens; it would connect to itself for ever"


def _transports(config: Config) -> frozenset[Transport]:
    wanted = {TRANSPORT_OF[entry.protocol] for entry in config.entries.values()}
    if config.tcp_target:
        wanted.add(Transport.TCP)
    if config.udp_target:
        wanted.add(Transport.UDP)
    return frozenset(wanted)


def _is_ours(config: Config, endpoint: Endpoint) -> bool:
    """Tell whether an endpoint is one of our own for certain. A name never is; it may mean anything."""
    if endpoint.is_name or endpoint.port != config.listen_port:
        return False
    address = ipaddress.ip_address(endpoint.host)
    for listening in config.addresses:
        if endpoint.host == listening:
            return True
        same_family = ipaddress.ip_address(listening).version == address.version
        # Connecting to the unspecified address is connecting to this machine.
        if same_family and contains_all(listening) and (address.is_loopback or address.is_unspecified):
            return True
    return False


def _entries(config: Config) -> Iterator[tuple[tuple[str, str], Entry]]:
    for table, entries in (("protocols", config.protocols), ("protocol", config.protocol)):
        for name, entry in entries.items():
            yield (table, name), entry


def _targets(config: Config) -> Iterator[tuple[Path, Endpoint, Transport]]:
    for key, targets, transport in (
        ("tcp_target", config.tcp_target, Transport.TCP),
        ("udp_target", config.udp_target, Transport.UDP),
    ):
        for i, target in enumerate(targets):
            yield (key, i), target, transport
    for path, entry in _entries(config):
        for i, target in enumerate(entry.target):
            yield (*path, "target", i), target, TRANSPORT_OF[entry.protocol]
