"""More and fewer workers: slots move with their flows, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.udp_echo import UdpEcho, ask, clients
from tests.support.waiting import PATIENCE, eventually, pass_time

pytestmark = pytest.mark.e2e

FLOWS = 300


@pytest.fixture
def echo() -> Iterator[UdpEcho]:
    with UdpEcho() as target:
        yield target


def wait_for_workers(proxy: Proxy, count: int) -> None:
    eventually(lambda: len(proxy.worker_pids()) == count, f"{count} workers")


def wait_for_shares(proxy: Proxy, count: int) -> None:
    """Wait until the metrics show all flows, shared by so many workers; they are told of a new worker by and by."""

    def are_shared() -> bool:
        held = owners(proxy)
        return sum(held.values()) == FLOWS and sum(1 for value in held.values() if value) == count

    eventually(are_shared, "flows of each worker")


def wait_for_more(done: list[int], lost: list[str]) -> None:
    before = sum(done)
    eventually(lambda: sum(done) > before + 200 or lost, "traffic")


def config(echo: UdpEcho, **keys: str) -> str:
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([*lines, f'udp_target = ["127.0.0.1:{echo.port}"]', ""])


def owners(proxy: Proxy) -> dict[str, float]:
    """Open UDP flows of each worker."""
    return {
        dict(labels)["worker"]: value
        for (name, labels), value in proxy.metrics().items()
        if name == "rpxy_l4_worker_sessions" and ("protocol", "udp") in labels
    }


def test_flows_move_with_their_slots_and_keep_their_sockets(tmp_path: Path, echo: UdpEcho) -> None:
    with Proxy(tmp_path, config(echo, workers="1", slots="8")) as proxy, clients(proxy, FLOWS) as flows:
        ports = [ask(client, b"one") for client in flows]
        for count, order in ((2, signal.SIGTTIN), (3, signal.SIGTTIN), (2, signal.SIGTTOU), (1, signal.SIGTTOU)):
            moved = sum("slots have moved" in line for line in proxy.log())
            proxy.signal(order)
            proxy.wait_for("slots have moved", count=moved + 1)
            assert [ask(client, b"more") for client in flows] == ports
            wait_for_workers(proxy, count)
            wait_for_shares(proxy, count)

        assert proxy.metric("sessions_total", protocol="udp") == FLOWS
        assert proxy.metric("sessions", protocol="udp") == FLOWS


def test_the_number_of_workers_may_change_by_a_reload(tmp_path: Path, echo: UdpEcho) -> None:
    with Proxy(tmp_path, config(echo, workers="1", slots="4")) as proxy, clients(proxy, 50) as flows:
        ports = [ask(client, b"one") for client in flows]
        proxy.reload(config(echo, workers="4", slots="4"), 2)
        proxy.wait_for("slots have moved")
        assert [ask(client, b"two") for client in flows] == ports
        proxy.reload(config(echo, workers="2", slots="4"), 3)
        proxy.wait_for("slots have moved", count=2)
        assert [ask(client, b"three") for client in flows] == ports


def test_no_flow_of_an_address_that_left_is_lost_before_its_time(tmp_path: Path, echo: UdpEcho) -> None:
    both = config(echo, workers="2", slots="16", listen_address_v4='["127.0.0.1", "127.0.0.2"]', drain_timeout='"20s"')
    one = config(echo, workers="2", slots="16", listen_address_v4='["127.0.0.2"]', drain_timeout='"20s"')
    with Proxy(tmp_path, both) as proxy, clients(proxy, 8) as flows:
        ports = [ask(client, b"one") for client in flows]
        proxy.reload(one, 2)
        assert [ask(client, b"two") for client in flows] == ports
        # Longer than a worker takes to look what it may close.
        pass_time(1.2)
        assert [ask(client, b"three") for client in flows] == ports
        proxy.signal(signal.SIGQUIT)  # flows would be waited for


def test_sockets_of_an_address_that_left_move_with_their_slots_even_without_flows(
    tmp_path: Path, echo: UdpEcho
) -> None:
    both = config(echo, workers="2", slots="16", listen_address_v4='["127.0.0.1", "127.0.0.2"]', drain_timeout='"20s"')
    one = config(echo, workers="2", slots="16", listen_address_v4='["127.0.0.2"]', drain_timeout='"20s"')
    with Proxy(tmp_path, both) as proxy, clients(proxy, 8) as flows:
        ports = [ask(client, b"one") for client in flows]
        proxy.reload(one, 2)
        for moves, order in enumerate((signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU), 1):
            proxy.signal(order)
            proxy.wait_for("slots have moved", count=moves)
            assert [ask(client, b"two") for client in flows] == ports
        proxy.signal(signal.SIGQUIT)  # flows would be waited for


def test_no_datagram_is_lost_while_slots_move_under_traffic(tmp_path: Path, echo: UdpEcho) -> None:
    with Proxy(tmp_path, config(echo, workers="2", slots="6")) as proxy, clients(proxy, 16) as flows:
        ends, done, lost = threading.Event(), [0] * len(flows), []

        def drive(number: int) -> None:
            port = ask(flows[number], b"first")
            while not ends.is_set():
                try:
                    if ask(flows[number], b"x%d" % done[number]) != port:
                        lost.append(f"flow {number} has another source port")
                except OSError as error:
                    lost.append(f"flow {number}: {error}")
                    return
                done[number] += 1

        threads = [threading.Thread(target=drive, args=(number,)) for number in range(len(flows))]
        for thread in threads:
            thread.start()
        for moves, order in enumerate(
            (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGTTOU), 1
        ):
            wait_for_more(done, lost)
            proxy.signal(order)
            proxy.wait_for("slots have moved", count=moves)
        ends.set()
        for thread in threads:
            thread.join(PATIENCE)

        assert not lost


def test_tcp_sessions_of_a_worker_that_leaves_go_on_and_its_queue_is_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        text = f'tcp_target = ["127.0.0.1:{target.getsockname()[1]}"]\nworkers = 2\nslots = 2\ndrain_timeout = "20s"\n'
        with Proxy(tmp_path, text) as proxy, contextlib.ExitStack() as stack:
            pairs = []
            for _ in range(20):
                client = stack.enter_context(proxy.connect())
                pairs.append((client, stack.enter_context(target.accept()[0])))
            proxy.signal(signal.SIGTTOU)
            proxy.wait_for("slots have moved")
            for _ in range(20):
                client = stack.enter_context(proxy.connect())
                pairs.append((client, stack.enter_context(target.accept()[0])))
            for client, served in pairs:
                client.sendall(b"ping")
                assert served.recv(9) == b"ping"
                served.sendall(b"pong")
                assert client.recv(9) == b"pong"
            assert len(proxy.worker_pids()) == 2
            stack.close()
            eventually(lambda: len(proxy.worker_pids()) == 1, "the worker that leaves has ended")
