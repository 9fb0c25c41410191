"""Workers that hand connections to each other, as ``tcp_balance_workers`` allows them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, echo, read_all, read_exactly, reports
from tests.support.waiting import PATIENCE, eventually

SESSIONS = 200
BOUND = 4
"""Between the most and the fewest sessions: two that one worker must have less, and what is seen a moment late."""


def config(target: TcpTarget, *, on: bool = True, workers: int = 4, more: str = "") -> str:
    return (
        f'tcp_target = ["{target.text}"]\nworkers = {workers}\nslots = 8\ndrain_timeout = "20s"\n'
        f"tcp_balance_workers = {str(on).lower()}\n{more}"
    )


@pytest.fixture
def target() -> Iterator[TcpTarget]:
    with TcpTarget(echo) as made:
        yield made


def shares(proxy: Proxy) -> dict[str, int]:
    """Open TCP sessions of each worker."""
    return {
        dict(labels)["worker"]: int(value)
        for (name, labels), value in proxy.metrics().items()
        if name == "rpxy_l4_worker_sessions" and ("protocol", "tcp") in labels
    }


def ask(client: socket.socket, text: bytes) -> None:
    client.sendall(text)
    assert read_exactly(client, len(text)) == text


def connect(proxy: Proxy, stack: contextlib.ExitStack, count: int) -> list[socket.socket]:
    """Sessions through which bytes have flowed."""
    clients = [stack.enter_context(proxy.connect()) for _ in range(count)]
    for number, client in enumerate(clients):
        ask(client, b"number %d" % number)
    return clients


def test_long_sessions_of_one_host_are_spread_evenly(tmp_path: Path, target: TcpTarget) -> None:
    with Proxy(tmp_path, config(target)) as proxy, contextlib.ExitStack() as stack:
        clients = connect(proxy, stack, SESSIONS)
        held = shares(proxy)
        assert sum(held.values()) == SESSIONS
        assert max(held.values()) - min(held.values()) <= BOUND
        handed = proxy.metric("connections_handed_total")
        assert 0 < handed < SESSIONS
        assert proxy.metric("sessions_total") == SESSIONS

        bulk = os.urandom(1 << 20)
        for client in clients[::40]:
            threading.Thread(target=client.sendall, args=(bulk,)).start()
            assert read_exactly(client, len(bulk)) == bulk
        stack.close()
        proxy.wait_for_sessions(SESSIONS, reason="client_eof")


def test_a_half_close_reaches_the_other_side_of_a_session_that_was_handed_over(tmp_path: Path) -> None:
    with TcpTarget(reports("got")) as target, Proxy(tmp_path, config(target)) as proxy, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect()) for _ in range(40)]
        proxy.wait_for_metric("worker_sessions", 40, protocol="tcp")
        for client in clients:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"got\nabc"
        assert proxy.metric("connections_handed_total") > 0


def test_the_clients_address_travels_with_the_connection(tmp_path: Path) -> None:
    with TcpTarget(reports("got")) as target:
        text = config(target, more='tcp_send_proxy_protocol = "v1"\n')
        with Proxy(tmp_path, text) as proxy, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(proxy.connect()) for _ in range(40)]
            proxy.wait_for_metric("worker_sessions", 40, protocol="tcp")
            assert proxy.metric("connections_handed_total") > 0
            for client in clients:
                client.shutdown(socket.SHUT_WR)
                port = client.getsockname()[1]
                assert read_all(client) == f"got\nPROXY TCP4 127.0.0.1 127.0.0.1 {port} {proxy.port}\r\n".encode()


def test_what_waits_for_a_worker_that_is_killed_is_served_by_the_one_that_follows_it(
    tmp_path: Path, target: TcpTarget
) -> None:
    with Proxy(tmp_path, config(target, workers=2)) as proxy, contextlib.ExitStack() as stack:
        proxy.expect_trouble("has died")
        connect(proxy, stack, 40)
        pids = proxy.worker_pids()
        os.kill(pids[1], signal.SIGSTOP)
        before = proxy.metric("connections_handed_total", worker="2")
        # It is known to be silent only after a while. Meanwhile half of the connections wait in its listening sockets,
        # and the other worker gives it a share of those that it accepts.
        waiting = [stack.enter_context(proxy.connect()) for _ in range(60)]
        for number, client in enumerate(waiting):
            client.sendall(b"waiting %02d" % number)
        proxy.wait_for_metric("connections_handed_total", before + 1, worker="2")
        os.kill(pids[1], signal.SIGKILL)

        for number, client in enumerate(waiting):
            assert read_exactly(client, 10) == b"waiting %02d" % number
        assert proxy.worker_pids()[2] == pids[2]


class Stream:
    """New connections one after another, in threads, each with a question that must be answered."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._ends = threading.Event()
        self.done = [0] * 6
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._drive, args=(number,)) for number in range(len(self.done))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _drive(self, number: int) -> None:
        # Some stay open, so that there is something to balance.
        kept: list[socket.socket] = []
        while not self._ends.is_set():
            try:
                client = self._proxy.connect()
                ask(client, b"x%d" % self.done[number])
            except (OSError, AssertionError) as error:
                self.lost.append(f"{number} after {self.done[number]}: {error!r}")
                break
            kept.append(client)
            self.done[number] += 1
            if len(kept) > 5:
                kept.pop(0).close()
        for client in kept:
            client.close()

    def wait_for_more(self) -> None:
        before = sum(self.done)
        eventually(lambda: sum(self.done) > before + 200 or self.lost, "connections")


def test_no_connection_is_lost_while_workers_come_and_go(tmp_path: Path, target: TcpTarget) -> None:
    with Proxy(tmp_path, config(target, workers=3)) as proxy, Stream(proxy) as stream:
        orders = (signal.SIGTTOU, signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU)
        for moves, order in enumerate(orders, 1):
            stream.wait_for_more()
            proxy.signal(order)
            proxy.wait_for("slots have moved", count=moves)
        stream.wait_for_more()
        assert proxy.metric("connections_handed_total") > 0
        assert not stream.lost


def test_no_connection_is_lost_in_an_upgrade(tmp_path: Path, target: TcpTarget) -> None:
    with Proxy(tmp_path, config(target, workers=3)) as proxy, Stream(proxy) as stream:
        stream.wait_for_more()
        before = set(proxy.worker_pids().values())
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        eventually(lambda: not before & set(proxy.worker_pids().values()), "the old workers have ended")
        numbers = sorted(proxy.worker_pids())
        handed = [proxy.metric("connections_handed_total", worker=str(number)) for number in numbers]
        stream.wait_for_more()
        eventually(
            lambda: [proxy.metric("connections_handed_total", worker=str(number)) for number in numbers] > handed,
            "new workers hand connections over",
        )
        assert not stream.lost


def test_a_reload_turns_it_on_and_off(tmp_path: Path, target: TcpTarget) -> None:
    off, on = config(target, on=False), config(target)
    with Proxy(tmp_path, off) as proxy, contextlib.ExitStack() as stack:
        connect(proxy, stack, 60)
        assert proxy.metric("connections_handed_total") == 0

        proxy.reload(on, 2)

        def is_handed() -> bool:
            connect(proxy, stack, 8)
            return proxy.metric("connections_handed_total") > 0

        eventually(is_handed, "connections are handed over")
        connect(proxy, stack, SESSIONS)
        held = shares(proxy)
        assert max(held.values()) - min(held.values()) <= BOUND

        proxy.reload(off, 3)
        before = proxy.metric("connections_handed_total")
        connect(proxy, stack, 100)
        assert proxy.metric("connections_handed_total") == before


def test_the_limit_holds_while_connections_are_handed_over(tmp_path: Path, target: TcpTarget) -> None:
    text = config(target, more='tcp_max_connections = 20\ntcp_at_limit = "wait"\n')
    with Proxy(tmp_path, text) as proxy, contextlib.ExitStack() as stack:
        first = [stack.enter_context(proxy.connect()) for _ in range(20)]
        for client in first:
            ask(client, b"one")
        others = [stack.enter_context(proxy.connect()) for _ in range(30)]
        for client in others:
            client.sendall(b"two")
        assert sum(shares(proxy).values()) == 20
        while others:
            while len(first) >= 20:
                first.pop().close()
            served = eventually(lambda: [client for client in others if _has_something(client)], "one is served")
            for client in served:
                assert read_exactly(client, 3) == b"two"
                others.remove(client)
            first += served
            # Each of four workers may see the same place get free.
            assert sum(shares(proxy).values()) <= 23
        assert proxy.metric("sessions_rejected_total") == 0


def _has_something(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])
