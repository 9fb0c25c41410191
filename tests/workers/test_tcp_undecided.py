"""Connections that do not say what they are: how many there may be, and how much of them is kept."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.detect.tcp import DETECT_LIMIT
from rpxy_l4.endings import Rejection
from rpxy_l4.metrics.layout import L_REJECTED, REJECTION_INDEX, Cell, listener_offset
from rpxy_l4.snapshot import Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers import tcp
from tests.support.hellos import flight, message, records, sni
from tests.support.in_process import InProcess, side
from tests.support.ports import free_port

HALF = flight(sni(b"a.example"))[:40]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def serve(folder: Path, stack: ExitStack, max_sessions: int, workers: int = 1) -> InProcess:
    port = free_port()
    target = Target(f"127.0.0.1:{port}", "127.0.0.1", port, is_name=False)
    proxy = InProcess(
        folder, side(Transport.TCP, Protocol.TLS, target, max_sessions=max_sessions), None, workers=workers
    )

    def close() -> None:
        proxy.tcp.close()
        for session in list(proxy.sessions):
            session.end()
        proxy.context.poller.end_batch()
        proxy.loop.close()

    stack.callback(close)
    return proxy


def connect(proxy: InProcess, stack: ExitStack, data: bytes = b"") -> socket.socket:
    """A client that sent ``data``, and was looked at."""
    client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
    client.sendall(data)
    for _ in range(2):
        proxy.context.poller.dispatch()
    return client


def rejected(proxy: InProcess, rejection: Rejection) -> int:
    return proxy.context.row[listener_offset(0) + L_REJECTED + REJECTION_INDEX[rejection]]


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    return False


def test_the_oldest_undecided_connection_gives_way_to_a_new_one(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=6)
    clients = [connect(proxy, stack, HALF) for _ in range(5)]

    assert [is_open(client) for client in clients] == [False, False, True, True, True]
    assert len(proxy.context.undecided) == 3 == len(proxy.sessions)
    assert rejected(proxy, Rejection.EVICTED) == 2
    row = proxy.context.row
    assert row[Cell.TCP_OPENED] - row[Cell.TCP_CLOSED] == 3
    assert proxy.context.demand == 6


def test_of_many_that_come_at_once_none_gives_way_that_has_said_what_it_is(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=20)
    for _ in range(15):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        client.sendall(flight(sni(b"a.example")))
    for _ in range(2):
        proxy.context.poller.dispatch()

    assert proxy.context.row[Cell.TCP_OPENED] == 15
    assert rejected(proxy, Rejection.EVICTED) == rejected(proxy, Rejection.LIMIT) == 0


def test_none_that_has_said_what_it_is_gives_way_to_those_that_wait_when_a_worker_stops(
    tmp_path: Path, stack: ExitStack
) -> None:
    proxy = serve(tmp_path, stack, max_sessions=20)
    for _ in range(15):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        client.sendall(flight(sni(b"a.example")))
    proxy.tcp.close()
    proxy.context.poller.dispatch()

    assert proxy.context.row[Cell.TCP_OPENED] == 15
    assert rejected(proxy, Rejection.EVICTED) == rejected(proxy, Rejection.LIMIT) == 0


def test_silent_clients_are_undecided_too(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=2)
    first, second = (connect(proxy, stack) for _ in range(2))

    assert not is_open(first)
    assert is_open(second)


def test_workers_share_the_places_for_undecided_connections(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=8, workers=2)
    proxy.slab.row(1)[Cell.HEARTBEAT] = 1
    for _ in range(5):
        connect(proxy, stack, HALF)

    assert len(proxy.context.undecided) == 2


@pytest.mark.interpreted
def test_there_are_never_more_than_a_fixed_number(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_MAX_UNDECIDED", 3)
    proxy = serve(tmp_path, stack, max_sessions=1_000_000)
    for _ in range(5):
        connect(proxy, stack, HALF)

    assert len(proxy.context.undecided) == 3


def test_a_decided_connection_is_not_among_them(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=100)
    connect(proxy, stack, b"no hello")
    gone = connect(proxy, stack, HALF)
    gone.close()
    proxy.context.poller.dispatch()

    assert not proxy.context.undecided


def test_no_more_is_kept_than_detection_looks_at(tmp_path: Path, stack: ExitStack) -> None:
    proxy = serve(tmp_path, stack, max_sessions=100)
    client = connect(proxy, stack, b"\x16\x03\x01")
    (session,) = proxy.sessions
    kept = 0
    hello = records(message(bytes(16_000)), 16)
    assert len(hello) > DETECT_LIMIT + 500
    for start in range(3, len(hello), 500):
        if not proxy.context.undecided:
            break
        kept = max(kept, len(session._buffer))
        client.sendall(hello[start : start + 500])
        proxy.context.poller.dispatch()

    assert DETECT_LIMIT - 500 <= kept <= DETECT_LIMIT
