"""From the model of the file to what the workers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rpxy_l4.addresses import Endpoint
from rpxy_l4.config.model import MAX_WORKERS, Config, Entry
from rpxy_l4.errors import ConfigError, Problem
from rpxy_l4.metrics.layout import Directory, DirectoryFullError, ListenerSeries, TargetSeries
from rpxy_l4.snapshot import DEFAULT_ROUTE, Bind, KernelPath, Route, Side, Snapshot, Target
from rpxy_l4.verdict import TRANSPORT_OF, Transport


def compile_snapshot(
    config: Config, *, sha256: str, generation: int, directory: Directory, cpus: int, slots: int | None = None
) -> Snapshot:
    """Return the configuration as workers use it.

    ``cpus`` is what ``workers = "auto"`` means. ``slots`` is what ``slots = "auto"`` means; None: twice the workers.

    New series are entered in ``directory``, and stay there whatever becomes of the snapshot. Raises ConfigError when it
    has no room for them.
    """
    listener = f":{config.listen_port}"
    try:
        sides = {transport: _side(config, transport, listener, directory) for transport in Transport}
    except DirectoryFullError:
        message = (
            "too many different targets since the program started, each of which keeps its counters; "
            "restart to use this configuration"
        )
        raise ConfigError([Problem(message=message)]) from None
    min_ttl, max_ttl = _ttl_bounds(config)
    workers, slots = _workers_and_slots(config, cpus, slots)
    return Snapshot(
        generation=generation,
        sha256=sha256,
        listener=listener,
        binds=tuple(
            Bind(transport, address, config.listen_port)
            for transport, side in sides.items()
            if side is not None
            for address in config.addresses
        ),
        tcp=sides[Transport.TCP],
        udp=sides[Transport.UDP],
        tcp_backlog=config.tcp_backlog,
        tcp_balance_workers=config.tcp_balance_workers,
        tcp_detect_timeout=config.tcp_detect_timeout,
        tcp_connect_timeout=config.tcp_connect_timeout,
        drain_timeout=config.drain_timeout,
        on_route_removed=config.on_route_removed,
        on_supervisor_loss=config.on_supervisor_loss,
        recv_proxy_protocol=config.tcp_recv_proxy_protocol,
        trusted_proxies=config.tcp_trusted_proxies,
        workers=workers,
        slots=slots,
        watch=config.watch,
        access_log=config.access_log,
        admin=_admin(config.admin.listen),
        control=config.admin.control,
        dns_min_ttl=min_ttl,
        dns_max_ttl=max_ttl,
    )


def _workers_and_slots(config: Config, cpus: int, present: int | None) -> tuple[int, int]:
    slots = present if config.slots == "auto" else config.slots
    workers = max(1, min(cpus, slots or MAX_WORKERS)) if config.workers == "auto" else config.workers
    return workers, slots or min(2 * workers, MAX_WORKERS)


def routes(config: Config, transport: Transport) -> list[Route]:
    """Return the entries that travel on this transport, in the order in which ties are decided, without series."""
    return [
        _route(config, name, entry)
        for name, entry in config.entries.items()
        if TRANSPORT_OF[entry.protocol] is transport
    ]


def summary(snapshot: Snapshot) -> str:
    """Return what ``--check`` says of a good file, ``OK (listener :8448, 7 routes)``."""
    sides = [side for side in (snapshot.tcp, snapshot.udp) if side is not None]
    count = sum(len(side.routes) + (side.default is not None) for side in sides)
    return f"OK (listener {snapshot.listener}, {count} {'route' if count == 1 else 'routes'})"


def _side(config: Config, transport: Transport, listener: str, directory: Directory) -> Side | None:
    """Return the half of the listener; None when nothing is forwarded there."""
    found = routes(config, transport)
    default = _default(config, transport)
    if not found and default is None:
        return None
    is_tcp = transport is Transport.TCP
    counted: Callable[[Route], Route] = partial(_counted, listener=listener, directory=directory)
    return Side(
        transport=transport,
        routes=tuple(map(counted, found)),
        default=default and counted(default),
        series=directory.listener(ListenerSeries(listener, transport)),
        max_sessions=config.tcp_max_connections if is_tcp else config.udp_max_connections,
        max_new_per_second=config.tcp_max_new_per_second if is_tcp else config.udp_max_new_per_second,
        at_limit=config.tcp_at_limit,
    )


def _default(config: Config, transport: Transport) -> Route | None:
    is_tcp = transport is Transport.TCP
    targets = config.tcp_target if is_tcp else config.udp_target
    if not targets:
        return None
    return Route(
        name=DEFAULT_ROUTE,
        transport=transport,
        protocol=None,
        targets=tuple(map(_target, targets)),
        load_balance=config.tcp_load_balance if is_tcp else config.udp_load_balance,
        idle_lifetime=config.udp_idle_lifetime,
        proxy_version=config.tcp_send_proxy_protocol if is_tcp else None,
        kernel_path=config.kernel_path,
    )


def _route(config: Config, name: str, entry: Entry) -> Route:
    transport = TRANSPORT_OF[entry.protocol]
    # Left out means inherit, written "none" means off; both leave None in the field.
    own = "send_proxy_protocol" in entry.model_fields_set
    version = entry.send_proxy_protocol if own else config.tcp_send_proxy_protocol
    return Route(
        name=name,
        transport=transport,
        protocol=entry.protocol,
        targets=tuple(map(_target, entry.target)),
        load_balance=entry.load_balance,
        server_names=frozenset(entry.server_names),
        alpn=entry.alpn_filter,
        idle_lifetime=entry.idle_lifetime,
        proxy_version=version if transport is Transport.TCP else None,
        kernel_path=KernelPath.OFF if transport is Transport.TCP else entry.kernel_path or config.kernel_path,
    )


def _target(endpoint: Endpoint) -> Target:
    return Target(endpoint.text, endpoint.host, endpoint.port, endpoint.is_name)


def _counted(route: Route, listener: str, directory: Directory) -> Route:
    """Return the route with the series of its targets."""
    return replace(
        route,
        targets=tuple(
            replace(target, series=directory.target(TargetSeries(listener, route.transport, route.name, target.text)))
            for target in route.targets
        ),
    )


def _ttl_bounds(config: Config) -> tuple[float, float]:
    """Return the bounds; where only one is given, it moves the other's default out of its way."""
    low, high = config.dns_cache_min_ttl, config.dns_cache_max_ttl
    if "dns_cache_max_ttl" not in config.model_fields_set:
        high = max(low, high)
    return min(low, high), high


def _admin(endpoint: Endpoint | None) -> Bind | None:
    return None if endpoint is None else Bind(Transport.TCP, endpoint.host, endpoint.port)
