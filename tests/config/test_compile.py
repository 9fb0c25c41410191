from __future__ import annotations

import math
import pickle
from ipaddress import ip_network
from typing import Any

import pytest

from rpxy_l4.config.compile import compile_snapshot, routes, summary
from rpxy_l4.config.model import Config
from rpxy_l4.errors import ConfigError
from rpxy_l4.metrics.layout import MAX_TARGETS, Directory, ListenerSeries, TargetSeries
from rpxy_l4.snapshot import AtLimit, Bind, KernelPath, LoadBalance, ProxyVersion, Route, Side, Snapshot, Target
from rpxy_l4.verdict import Protocol, Transport

TCP, UDP = Transport.TCP, Transport.UDP


def entry(protocol: str, *targets: str, **keys: Any) -> dict[str, Any]:
    return {"protocol": protocol, "target": list(targets) or ["a:1"], **keys}


def config(**keys: Any) -> Config:
    return Config.model_validate({"listen_port": 8448, **keys})


def compiled(directory: Directory | None = None, **keys: Any) -> Snapshot:
    return compile_snapshot(config(**keys), sha256="ab" * 32, generation=3, directory=directory or Directory(), cpus=4)


def side(snapshot: Snapshot, transport: Transport) -> Side:
    found = snapshot.tcp if transport is TCP else snapshot.udp
    assert found is not None
    return found


def test_every_key_reaches_the_snapshot() -> None:
    snapshot = compiled(
        listen_address_v4="127.0.0.1",
        listen_ipv6=True,
        tcp_backlog=7,
        tcp_max_connections=8,
        udp_max_connections=9,
        tcp_max_new_per_second=10,
        udp_max_new_per_second=11,
        tcp_at_limit="wait",
        tcp_balance_workers=True,
        tcp_target=["10.0.0.1:80", "Name.example:81"],
        udp_target=["[::1]:53"],
        tcp_load_balance="source_ip",
        udp_load_balance="random",
        udp_idle_lifetime=10,
        dns_cache_min_ttl="11s",
        dns_cache_max_ttl="12s",
        tcp_send_proxy_protocol="v2",
        tcp_recv_proxy_protocol=True,
        tcp_trusted_proxies=["10.0.0.0/8"],
        tcp_detect_timeout="250ms",
        tcp_connect_timeout="2s",
        drain_timeout=0,
        kernel_path="off",
        workers=2,
        slots=3,
        watch=False,
        access_log=False,
        admin={"listen": "[::1]:9000"},
        protocols={
            "web": entry("tls", "b:443", server_names=["B.example"], alpn=["H2"], load_balance="source_socket"),
            "vpn": entry("wireguard", "c:51820", idle_lifetime=180, kernel_path="on"),
        },
    )

    assert snapshot == Snapshot(
        generation=3,
        sha256="ab" * 32,
        listener=":8448",
        binds=(
            Bind(TCP, "127.0.0.1", 8448),
            Bind(TCP, "::", 8448),
            Bind(UDP, "127.0.0.1", 8448),
            Bind(UDP, "::", 8448),
        ),
        tcp=Side(
            transport=TCP,
            routes=(
                Route(
                    name="web",
                    transport=TCP,
                    protocol=Protocol.TLS,
                    targets=(Target("b:443", "b", 443, is_name=True, series=0),),
                    load_balance=LoadBalance.SOURCE_SOCKET,
                    server_names=frozenset({"b.example"}),
                    alpn=frozenset({b"h2"}),
                    proxy_version=ProxyVersion.V2,
                ),
            ),
            default=Route(
                name="default",
                transport=TCP,
                protocol=None,
                targets=(
                    Target("10.0.0.1:80", "10.0.0.1", 80, is_name=False, series=1),
                    Target("Name.example:81", "name.example", 81, is_name=True, series=2),
                ),
                load_balance=LoadBalance.SOURCE_IP,
                idle_lifetime=10.0,
                proxy_version=ProxyVersion.V2,
            ),
            series=0,
            max_sessions=8,
            max_new_per_second=10,
            at_limit=AtLimit.WAIT,
        ),
        udp=Side(
            transport=UDP,
            routes=(
                Route(
                    name="vpn",
                    transport=UDP,
                    protocol=Protocol.WIREGUARD,
                    targets=(Target("c:51820", "c", 51820, is_name=True, series=3),),
                    idle_lifetime=180.0,
                    kernel_path=KernelPath.ON,
                ),
            ),
            default=Route(
                name="default",
                transport=UDP,
                protocol=None,
                targets=(Target("[::1]:53", "::1", 53, is_name=False, series=4),),
                load_balance=LoadBalance.RANDOM,
                idle_lifetime=10.0,
                kernel_path=KernelPath.OFF,
            ),
            series=1,
            max_sessions=9,
            max_new_per_second=11,
            at_limit=AtLimit.WAIT,
        ),
        tcp_backlog=7,
        tcp_balance_workers=True,
        tcp_detect_timeout=0.25,
        tcp_connect_timeout=2.0,
        drain_timeout=0.0,
        recv_proxy_protocol=True,
        trusted_proxies=(ip_network("10.0.0.0/8"),),
        workers=2,
        slots=3,
        watch=False,
        access_log=False,
        admin=Bind(TCP, "::1", 9000),
        dns_min_ttl=11.0,
        dns_max_ttl=12.0,
    )


def test_a_side_exists_where_something_is_forwarded() -> None:
    only_tcp = compiled(protocols={"x": entry("ssh")})
    only_udp = compiled(udp_target=["a:1"])

    assert only_tcp.udp is None
    assert only_tcp.binds == (Bind(TCP, "0.0.0.0", 8448),)
    assert side(only_tcp, TCP).default is None
    assert only_udp.tcp is None
    assert only_udp.binds == (Bind(UDP, "0.0.0.0", 8448),)
    assert side(only_udp, UDP).wanted == frozenset()


def test_entries_keep_the_order_of_the_file() -> None:
    names = [f"n{i}" for i in (3, 1, 2)]
    snapshot = compiled(protocols={name: entry("tls", server_names=[name]) for name in names})

    assert [route.name for route in side(snapshot, TCP).routes] == names
    assert [route.name for route in routes(config(protocols={n: entry("tls") for n in names}), TCP)] == names


@pytest.mark.parametrize(
    ("top", "own", "sent"),
    [
        (None, None, None),
        ("v1", None, ProxyVersion.V1),
        ("v1", "v2", ProxyVersion.V2),
        ("v1", "none", None),
        (None, "2", ProxyVersion.V2),
    ],
)
def test_an_entry_inherits_the_proxy_header_unless_it_says_otherwise(
    top: str | None, own: str | None, sent: ProxyVersion | None
) -> None:
    keys: dict[str, Any] = {"tcp_send_proxy_protocol": top} if top else {}
    own_keys = {"send_proxy_protocol": own} if own else {}
    snapshot = compiled(**keys, protocols={"x": entry("ssh", **own_keys), "y": entry("quic", **own_keys)})

    assert side(snapshot, TCP).routes[0].proxy_version is sent
    assert side(snapshot, UDP).routes[0].proxy_version is None


@pytest.mark.parametrize(
    ("top", "own", "used"),
    [(None, None, "auto"), ("off", None, "off"), ("on", None, "on"), ("off", "auto", "auto"), ("on", "off", "off")],
)
def test_an_entry_inherits_the_kernel_path_unless_it_says_otherwise(
    top: str | None, own: str | None, used: str
) -> None:
    keys: dict[str, Any] = {"kernel_path": top} if top else {}
    own_keys = {"kernel_path": own} if own else {}
    snapshot = compiled(**keys, protocols={"x": entry("quic", **own_keys), "y": entry("ssh")})

    assert side(snapshot, UDP).routes[0].kernel_path == used
    assert side(snapshot, TCP).routes[0].kernel_path == "off"
    assert snapshot.kernel_path == used


def test_an_idle_lifetime_of_zero_is_infinite() -> None:
    snapshot = compiled(udp_target=["a:1"], udp_idle_lifetime=0, protocols={"x": entry("quic")})

    assert snapshot.udp is not None
    assert snapshot.udp.default is not None
    assert snapshot.udp.default.idle_lifetime == math.inf
    assert snapshot.udp.routes[0].idle_lifetime == 30.0


@pytest.mark.parametrize(
    ("keys", "bounds"),
    [
        ({}, (30.0, 3600.0)),
        ({"dns_cache_max_ttl": "10s"}, (10.0, 10.0)),
        ({"dns_cache_min_ttl": "2h"}, (7200.0, 7200.0)),
        ({"dns_cache_min_ttl": 1, "dns_cache_max_ttl": 2}, (1.0, 2.0)),
    ],
)
def test_one_ttl_moves_the_default_of_the_other_out_of_its_way(
    keys: dict[str, Any], bounds: tuple[float, float]
) -> None:
    snapshot = compiled(tcp_target=["a:1"], **keys)

    assert (snapshot.dns_min_ttl, snapshot.dns_max_ttl) == bounds


@pytest.mark.parametrize(("cpus", "workers"), [(0, 1), (1, 1), (64, 64), (1000, 256)])
def test_automatic_workers_are_one_per_cpu_within_bounds(cpus: int, workers: int) -> None:
    snapshot = compile_snapshot(config(tcp_target=["a:1"]), sha256="", generation=1, directory=Directory(), cpus=cpus)

    assert snapshot.workers == workers


def test_an_admin_address_can_be_off() -> None:
    assert compiled(tcp_target=["a:1"]).admin == Bind(TCP, "127.0.0.1", 9448)
    assert compiled(tcp_target=["a:1"], admin={"listen": ""}).admin is None


def test_series_outlive_a_configuration() -> None:
    directory = Directory()
    compiled(directory, tcp_target=["a:1", "b:1"])
    later = compiled(directory, tcp_target=["b:1", "c:1"], udp_target=["b:1"])

    assert later.tcp is not None
    assert later.tcp.default is not None
    assert [target.series for target in later.tcp.default.targets] == [1, 2]
    assert directory.targets[TargetSeries(":8448", UDP, "default", "b:1")] == 3
    assert directory.listeners == {ListenerSeries(":8448", TCP): 0, ListenerSeries(":8448", UDP): 1}


def test_a_target_that_stands_twice_in_a_route_has_one_series() -> None:
    snapshot = compiled(tcp_target=["a:1", "a:1"])

    assert snapshot.tcp is not None
    assert snapshot.tcp.default is not None
    assert [target.series for target in snapshot.tcp.default.targets] == [0, 0]


def test_a_full_directory_is_said_to_need_a_restart() -> None:
    full = Directory(targets={TargetSeries("", TCP, "", str(i)): i for i in range(MAX_TARGETS)})

    with pytest.raises(ConfigError, match=r"too many different targets .*restart"):
        compiled(full, tcp_target=["a:1"])


def test_a_snapshot_can_be_sent_to_a_worker() -> None:
    snapshot = compiled(udp_target=["a:1"], udp_idle_lifetime=0, tcp_trusted_proxies=["::/0"])

    assert pickle.loads(pickle.dumps(snapshot)) == snapshot  # noqa: S301  our own bytes


def test_the_summary_counts_the_routes() -> None:
    assert summary(compiled(tcp_target=["a:1"])) == "OK (listener :8448, 1 route)"
    assert summary(compiled(tcp_target=["a:1"], udp_target=["a:1"], protocols={"x": entry("ssh")})) == (
        "OK (listener :8448, 3 routes)"
    )
