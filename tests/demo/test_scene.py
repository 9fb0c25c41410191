"""The demo's configuration file is one that the proxy takes, and says what the demo needs."""

from __future__ import annotations

from rpxy_l4.demo import scene
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import Bind, Snapshot
from rpxy_l4.supervisor.reload import Content, load
from rpxy_l4.verdict import Protocol, Transport

NAMES = [
    scene.WEB,
    scene.TLS_NAME,
    scene.TLS_ALPN,
    scene.SSH,
    scene.SOCKS5,
    scene.WIREGUARD,
    scene.TCP_ECHO,
    scene.UDP_ECHO,
    scene.QUIC,
]
PORTS = {name: 40_000 + i for i, name in enumerate(NAMES)}


def loaded(ports: dict[str, int]) -> Snapshot:
    text = scene.configuration(port=8448, admin_port=9448, workers=3, targets=ports)
    snapshot, _ = load(Content(text.encode(), ""), "config.toml", generation=1, known=Directory(), cpus=1)
    return snapshot


def test_the_proxy_takes_it() -> None:
    snapshot = loaded(PORTS)
    assert snapshot.binds == (Bind(Transport.TCP, "127.0.0.1", 8448), Bind(Transport.UDP, "127.0.0.1", 8448))
    assert snapshot.admin == Bind(Transport.TCP, "127.0.0.1", 9448)
    assert snapshot.workers == 3
    assert snapshot.watch


def test_every_target_has_a_route() -> None:
    snapshot = loaded(PORTS)
    assert snapshot.tcp is not None
    assert snapshot.udp is not None
    assert snapshot.tcp.default is not None
    assert snapshot.udp.default is not None
    used = {route.name: route.targets[0].port for side in (snapshot.tcp, snapshot.udp) for route in side.routes}
    used[scene.TCP_ECHO] = snapshot.tcp.default.targets[0].port
    used[scene.UDP_ECHO] = snapshot.udp.default.targets[0].port
    assert used == PORTS


def test_without_a_quic_target_there_is_no_route_for_it() -> None:
    snapshot = loaded({name: port for name, port in PORTS.items() if name != scene.QUIC})
    assert snapshot.udp is not None
    assert snapshot.udp.wanted == {Protocol.WIREGUARD}
