"""How TCP sessions end, in the orders of data, FIN and RST that are easy to get wrong.

Stopping the worker for a moment makes several things reach it in one batch of events, as chance does now and then.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, echo, read_all, read_exactly, reset
from tests.support.waiting import PATIENCE, eventually


@contextlib.contextmanager
def standing_still(proxy: Proxy) -> Iterator[None]:
    """Whatever happens inside reaches the only worker at once."""
    (pid,) = proxy.worker_pids().values()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Handed:
    """A target that hands its connections to the test."""

    def __init__(self) -> None:
        self._connections: SimpleQueue[socket.socket] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self.target = TcpTarget(self._handle)

    def _handle(self, connection: socket.socket) -> None:
        self._connections.put(connection.dup())
        self._done.get(timeout=2 * PATIENCE)

    def next(self) -> socket.socket:
        connection = self._connections.get(timeout=PATIENCE)
        connection.settimeout(PATIENCE)
        self._done.put(None)
        return connection


@pytest.fixture
def handed() -> Iterator[Handed]:
    made = Handed()
    with made.target:
        yield made


def test_a_target_that_speaks_and_closes_at_once_is_heard_to_its_end(start_proxy: StartProxy) -> None:
    with TcpTarget(lambda connection: connection.sendall(b"banner")) as target:
        proxy = start_proxy(f'workers = 1\ntcp_target = ["{target.text}"]\n')
        for _ in range(3):
            with standing_still(proxy):
                clients = [proxy.connect() for _ in range(30)]
            assert {read_all(client) for client in clients} == {b"banner"}
            for client in clients:
                client.close()


@pytest.mark.parametrize("size", [60_000, 65_536, 65_537, 70_000, 100_000])
def test_an_end_behind_more_than_one_read_is_not_missed(start_proxy: StartProxy, size: int) -> None:
    def count(connection: socket.socket) -> None:
        connection.sendall(b"%d" % len(read_all(connection)))

    with TcpTarget(count) as target:
        proxy = start_proxy(f'workers = 1\n[protocols.web]\nprotocol = "http"\ntarget = ["{target.text}"]\n')
        data = b"POST / HTTP/1.1\r\n\r\n".ljust(size, b"x")
        with proxy.connect() as client:
            with standing_still(proxy):
                client.setblocking(False)
                sent = client.send(data)
                client.shutdown(socket.SHUT_WR)
            client.settimeout(PATIENCE)
            assert read_all(client) == b"%d" % sent


def test_a_client_that_is_reset_after_its_half_close_ends_the_session(start_proxy: StartProxy, handed: Handed) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    client = proxy.connect()
    client.sendall(b"x")
    client.shutdown(socket.SHUT_WR)
    with handed.next() as far:
        assert read_all(far) == b"x"
        reset(client)
        assert proxy.wait_for_session()["reason"] == "client_reset"
        with pytest.raises(ConnectionError):
            far.sendall(b"anybody?")


def test_a_target_that_is_reset_after_its_half_close_ends_the_session(start_proxy: StartProxy, handed: Handed) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    with proxy.connect() as client:
        client.sendall(b"x")
        far = handed.next()
        far.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        reset(far)
        assert proxy.wait_for_session()["reason"] == "target_reset"
        with pytest.raises(ConnectionError):
            client.sendall(b"anybody?")


def test_a_client_that_is_reset_while_the_target_does_not_read_ends_the_session(
    start_proxy: StartProxy, handed: Handed
) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    client = proxy.connect(timeout=1)
    with handed.next():
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(bytes(1 << 16))
        reset(client)
        assert proxy.wait_for_session()["reason"] == "client_reset"


def test_a_stream_cut_off_by_the_target_does_not_look_complete(start_proxy: StartProxy, handed: Handed) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    with proxy.connect() as client:
        client.sendall(b"hello")
        far = handed.next()
        assert read_exactly(far, 5) == b"hello"
        far.sendall(b"PART")
        assert read_exactly(client, 4) == b"PART"
        with standing_still(proxy):
            client.sendall(b"more")  # sending meets the reset before reading does
            reset(far)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.wait_for_session()["reason"] == "target_reset"


def test_a_stream_cut_off_by_the_client_does_not_look_complete(start_proxy: StartProxy, handed: Handed) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    client = proxy.connect()
    client.sendall(b"hello")
    with handed.next() as far:
        assert read_exactly(far, 5) == b"hello"
        with standing_still(proxy):
            far.sendall(b"down")
            reset(client)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
    assert proxy.wait_for_session()["reason"] == "client_reset"


def test_urgent_data_does_not_stall_the_stream(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'workers = 1\ntcp_target = ["{target.text}"]\n')
        with proxy.connect() as client:
            for number in range(20):
                with standing_still(proxy):
                    client.send(b"before")
                    client.send(b"!", socket.MSG_OOB)
                    client.send(b"after%03d" % number)
                wanted = b"after%03d" % number
                got = b""
                while not got.endswith(wanted):
                    got += client.recv(100)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_urgent_data_within_bulk_neither_cuts_nor_stalls_the_stream(
    start_proxy: StartProxy, handed: Handed, sender: str
) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    bulk = random.Random(sender).randbytes(8 << 20)
    for ends_at_once in (True, False):
        with proxy.connect() as client, handed.next() as far:
            source, sink = (client, far) if sender == "client" else (far, client)

            def send(source: socket.socket = source, ends_at_once: bool = ends_at_once) -> None:
                source.sendall(bulk)
                source.send(b"!", socket.MSG_OOB)
                source.sendall(bulk)
                if ends_at_once:
                    source.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            assert read_exactly(sink, 2 * len(bulk)) == 2 * bulk
            sending.join(PATIENCE)
            if ends_at_once:
                assert sink.recv(1) == b""


def test_a_bulk_stream_that_is_reset_gives_its_pipe_back(start_proxy: StartProxy, handed: Handed) -> None:
    proxy = start_proxy(f'workers = 1\ntcp_target = ["{handed.target.text}"]\n')
    (pid,) = proxy.worker_pids().values()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  only their number matters

    before = descriptors()
    for _ in range(20):
        client = proxy.connect(timeout=0.5)
        far = handed.next()
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(100):
                client.sendall(bytes(1 << 17))
        reset(client)
        far.close()
    proxy.wait_for_sessions(20)

    # One idle pipe may stay in the pool for each direction that ever was bulk at the same time: that is one.
    assert eventually(lambda: descriptors() <= before + 2, "all but a pooled pipe are closed")


def test_clients_that_are_refused_leave_no_memory_behind_for_the_detection_timeout(start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        'workers = 1\ntcp_detect_timeout = "1h"\n[protocols.tls]\nprotocol = "tls"\ntarget = ["127.0.0.1:1"]\n'
    )

    def resident() -> float:
        return proxy.metric("worker_resident_memory_bytes")

    before = resident()
    for _ in range(600):
        with proxy.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(b"\x16\x03\x01\x40\x00\x02" + bytes(60_000))
            client.recv(1)
    assert proxy.wait_for_metric("sessions_rejected_total", 600, reason="no_route") == 600
    assert resident() - before < 16 << 20
