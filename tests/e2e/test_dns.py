"""dig, through the proxy, to dnsmasq."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, run
from tests.support.ports import free_port


@pytest.fixture(scope="module")
def dns_port() -> Iterator[int]:
    port = free_port()
    with Program(
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--log-facility=-",
        "--pid-file=",
        "--user=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        f"--port={port}",
        "--host-record=name.test,192.0.2.1,2001:db8::1",
        udp=port,
    ):
        yield port


def test_dig_over_udp_and_tcp(start_proxy: StartProxy, dns_port: int) -> None:
    target = f'["127.0.0.1:{dns_port}"]'
    proxy = start_proxy(f"udp_target = {target}\ntcp_target = {target}\n")

    for options, answer in (
        (("A",), "192.0.2.1\n"),
        (("AAAA",), "2001:db8::1\n"),
        (("A", "+tcp"), "192.0.2.1\n"),
    ):
        result = run("dig", "@127.0.0.1", "-p", str(proxy.port), "+short", "+tries=1", "name.test", *options)
        assert result.stdout == answer

    assert proxy.metric("sessions_total", protocol="udp") == 2
    assert proxy.metric("sessions_total", protocol="tcp") == 1


def test_dig_asks_beside_wireguard_and_quic_entries(start_proxy: StartProxy, dns_port: int) -> None:
    proxy = start_proxy(f"""
udp_target = ["127.0.0.1:{dns_port}"]
[protocols.vpn]
protocol = "wireguard"
target = ["127.0.0.1:1"]
[protocols.web]
protocol = "quic"
target = ["127.0.0.1:1"]
""")

    result = run("dig", "@127.0.0.1", "-p", str(proxy.port), "+short", "+tries=1", "name.test")

    assert result.stdout == "192.0.2.1\n"
