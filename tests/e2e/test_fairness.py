"""Bulk and small exchanges in one worker: neither starves."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, program
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, UdpTarget, echo, read_exactly
from tests.support.waiting import PATIENCE

STREAMS_EACH_WAY: Final = 4
EXCHANGES: Final = 300
"""Of each kind, one after another."""
ENOUGH: Final = 100
"""Where the machine is too slow for all of them while the bulk runs."""
BULK_SECONDS: Final = 6

# A tenth of a second is a hundred times what an exchange takes on a quiet machine, and what people begin to notice.
SLOWEST_PERCENT: Final = 0.1
FAIR_SHARE: Final = 1 / 20
"""Of an equal share, what each bulk stream must have got: streams of TCP are not equal to begin with."""

GREETING: Final = b"SSH-2.0-small\r\n"
QUESTION: Final = b"still there?"


def greet(proxy: Proxy) -> socket.socket:
    """A connection to the target of small exchanges, after its first one."""
    client = proxy.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(GREETING)
    assert read_exactly(client, len(GREETING)) == GREETING
    return client


def ask(client: socket.socket) -> None:
    client.sendall(QUESTION)
    assert client.recv(100) == QUESTION


def timed(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.alone
def test_small_exchanges_are_answered_in_time_beside_bulk_that_moves_on(start_proxy: StartProxy) -> None:
    iperf_port = free_port()
    with (
        Program("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(iperf_port), tcp=iperf_port),
        TcpTarget(echo) as small,
        UdpTarget() as datagrams,
    ):
        # One slot: iperf3 goes by the order in which its streams are accepted, which two queues do not keep.
        proxy = start_proxy(f"""
workers = 1
slots = 1
tcp_target = ["127.0.0.1:{iperf_port}"]
udp_target = ["{datagrams.text}"]
[protocols.small]
protocol = "ssh"
target = ["{small.text}"]
""")
        # In processes of its own: threads of this one would keep the small exchanges waiting themselves.
        command = [program("iperf3"), "--client", "127.0.0.1", "--port", str(proxy.port), "--json", "--bidir"]
        command += ["--parallel", str(STREAMS_EACH_WAY), "--time", str(BULK_SECONDS)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bulk,
            greet(proxy) as kept,
            proxy.udp() as flow,
        ):
            proxy.wait_for_metric("bytes_total", 1e8)

            taken: dict[str, list[float]] = {"kept": [], "new": [], "udp": []}
            while bulk.poll() is None and len(taken["udp"]) < EXCHANGES:
                taken["kept"].append(timed(lambda: ask(kept)))
                taken["new"].append(timed(lambda: greet(proxy).close()))
                taken["udp"].append(timed(lambda: ask(flow)))
            report = json.loads(bulk.communicate(timeout=BULK_SECONDS + PATIENCE)[0])

    assert len(taken["udp"]) >= ENOUGH
    for kind, times in taken.items():
        assert statistics.quantiles(times, n=100)[-1] < SLOWEST_PERCENT, (kind, sorted(times)[-10:])
    moved = [stream["receiver"]["bytes"] for stream in report["end"]["streams"]]
    assert len(moved) == 2 * STREAMS_EACH_WAY
    assert min(moved) > FAIR_SHARE * statistics.mean(moved), moved
