"""UDP flows outlive the worker that served them, and their own idle lifetime."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.udp_echo import UdpEcho, ask
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

WIREGUARD_DATA = b"\x04\0\0\0" + bytes(60)
WIREGUARD_BEGIN = b"\x01\0\0\0" + bytes(range(144))
DNS_QUERY = bytes.fromhex("beef01000001000000000000") + b"\x07example\x00\x00\x01\x00\x01"


@pytest.fixture
def echoes() -> Iterator[tuple[UdpEcho, UdpEcho]]:
    with UdpEcho() as tunnel, UdpEcho() as other:
        yield tunnel, other


def config(tunnel: UdpEcho, other: UdpEcho, lifetime: str = "30s") -> str:
    return f"""
workers = 1
udp_target = ["127.0.0.1:{other.port}"]
[protocols.tunnel]
protocol = "wireguard"
target = ["127.0.0.1:{tunnel.port}"]
idle_lifetime = "{lifetime}"
"""


def routes(proxy: Proxy) -> dict[str, float]:
    return {name: proxy.metric("sessions_total", route=name) for name in ("tunnel", "default")}


def test_a_client_of_a_killed_worker_goes_on_with_its_target(tmp_path: Path, echoes: tuple[UdpEcho, UdpEcho]) -> None:
    with Proxy(tmp_path, config(*echoes)) as proxy, proxy.udp() as client, proxy.udp() as stranger:
        proxy.expect_trouble("has died: SIGKILL")
        ask(client, WIREGUARD_BEGIN)
        ask(client, WIREGUARD_DATA)
        (victim,) = proxy.worker_pids().values()
        os.kill(victim, signal.SIGKILL)
        client.send(WIREGUARD_DATA)
        assert client.recv(9999).endswith(WIREGUARD_DATA)
        ask(stranger, WIREGUARD_DATA)

        eventually(
            lambda: routes(proxy) == {"tunnel": 2, "default": 1}, "the stranger alone goes to the default target"
        )
        assert proxy.metric("detections_total", result="remembered") == 1


def test_a_client_that_comes_back_after_the_idle_lifetime_goes_on_with_its_target(
    tmp_path: Path, echoes: tuple[UdpEcho, UdpEcho]
) -> None:
    with Proxy(tmp_path, config(*echoes, lifetime="200ms")) as proxy, proxy.udp() as client:
        ask(client, WIREGUARD_BEGIN)
        ask(client, WIREGUARD_DATA)
        proxy.wait_for_session(route="tunnel", reason="idle")
        ask(client, WIREGUARD_DATA)
        proxy.wait_for_session(route="tunnel", reason="idle", detected="remembered")


def test_another_program_on_the_clients_port_is_not_taken_for_the_one_before(
    tmp_path: Path, echoes: tuple[UdpEcho, UdpEcho]
) -> None:
    with Proxy(tmp_path, config(*echoes, lifetime="200ms")) as proxy, proxy.udp() as client:
        ask(client, WIREGUARD_BEGIN)
        ask(client, WIREGUARD_DATA)
        proxy.wait_for_session(route="tunnel", reason="idle")
        ask(client, DNS_QUERY)

        eventually(lambda: routes(proxy) == {"tunnel": 1, "default": 1}, "the query goes to the default target")


def test_what_was_routed_away_by_a_reload_is_not_remembered(tmp_path: Path, echoes: tuple[UdpEcho, UdpEcho]) -> None:
    tunnel, other = echoes
    with Proxy(tmp_path, config(tunnel, other, lifetime="200ms")) as proxy, proxy.udp() as client:
        ask(client, WIREGUARD_BEGIN)
        ask(client, WIREGUARD_DATA)
        proxy.wait_for_session(route="tunnel", reason="idle")
        proxy.reload(f'workers = 1\nudp_target = ["127.0.0.1:{other.port}"]\n', 2)
        ask(client, WIREGUARD_DATA)

        eventually(lambda: routes(proxy)["default"] == 1, "it goes to the default target")


def test_a_flow_that_is_remembered_for_ever_goes_on_after_its_worker_was_killed(
    tmp_path: Path, echoes: tuple[UdpEcho, UdpEcho]
) -> None:
    text = config(*echoes).replace('idle_lifetime = "30s"', "idle_lifetime = 0")
    with Proxy(tmp_path, text) as proxy, proxy.udp() as client:
        proxy.expect_trouble("has died: SIGKILL")
        ask(client, WIREGUARD_BEGIN)
        ask(client, WIREGUARD_DATA)
        (victim,) = proxy.worker_pids().values()
        os.kill(victim, signal.SIGKILL)
        ask(client, WIREGUARD_DATA)
        ask(client, WIREGUARD_DATA)

        eventually(lambda: routes(proxy) == {"tunnel": 2, "default": 0}, "one flow before, and one after")
