"""iperf3 through the proxy: bulk in both directions, TCP and UDP, on one port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def iperf_port() -> Iterator[int]:
    port = free_port()
    with Program("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port), tcp=port):
        yield port


def measure(proxy: Proxy, *options: str) -> dict[str, Any]:
    result = run("iperf3", "--client", "127.0.0.1", "--port", str(proxy.port), "--time", "1", "--json", *options)
    report: dict[str, Any] = json.loads(result.stdout)
    assert "error" not in report, result.stdout
    end: dict[str, Any] = report["end"]
    return end


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--reverse",), ("--parallel", "4"), ("--bidir",)])
def test_tcp(start_proxy: StartProxy, iperf_port: int, options: tuple[str, ...]) -> None:
    # One worker: iperf3 tells its data connections apart by the order in which they arrive, which two may change.
    proxy = start_proxy(f'tcp_target = ["127.0.0.1:{iperf_port}"]\nworkers = 1\n')

    end = measure(proxy, *options)

    assert end["sum_received"]["bytes"] > 10_000_000


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("options", [(), ("--reverse",)])
def test_udp(start_proxy: StartProxy, iperf_port: int, options: tuple[str, ...]) -> None:
    target = f'["127.0.0.1:{iperf_port}"]'
    proxy = start_proxy(f"tcp_target = {target}\nudp_target = {target}\n")

    end = measure(proxy, "--udp", "--bitrate", "20M", "--length", "1200", *options)

    assert end["sum"]["packets"] > 1000
    assert end["sum"]["lost_percent"] < 1
