"""What one datagram does to flows of others that came with it in one batch."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.metrics.layout import Cell
from rpxy_l4.net.mmsg import MOST
from rpxy_l4.snapshot import Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers import udp
from tests.support.in_process import InProcess, side
from tests.support.ports import free_port
from tests.support.quic_packets import Sender, client_hello, crypto

HELLO = client_hello("a.example")
PART = Sender().initial(crypto(0, HELLO[:50]), size=1200)
REST = Sender().initial(crypto(50, HELLO[50:]), size=1200, number=1)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def _socket(stack: ExitStack, port: int = 0) -> socket.socket:
    """A target, or a client of ``port``."""
    sock = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    if port:
        sock.connect(("127.0.0.1", port))
    else:
        sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def _target(sock: socket.socket | int) -> Target:
    port = sock if isinstance(sock, int) else sock.getsockname()[1]
    return Target(f"127.0.0.1:{port}", "127.0.0.1", port, is_name=False)


def _received(sock: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(sock.recv(65_535))
        except BlockingIOError:
            return got


def _serve(proxy: InProcess) -> None:
    """Handle what is there now."""
    proxy.context.poller.dispatch()


@pytest.mark.parametrize("second", [PART, REST], ids=["undecided again", "decided"])
def test_a_flow_that_another_one_pushed_out_in_the_same_batch_begins_anew(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, second: bytes
) -> None:
    monkeypatch.setattr(udp, "_MAX_UNDECIDED", 2)
    target = _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, Protocol.QUIC, _target(target)))
    oldest, other, stranger = (_socket(stack, proxy.port) for _ in range(3))
    for client in (oldest, other):
        client.send(PART)
    _serve(proxy)
    pushed_out = next(iter(proxy.undecided))
    stranger.send(PART)
    oldest.send(second)
    _serve(proxy)

    assert pushed_out not in proxy.udp.flows.values()
    assert pushed_out not in proxy.undecided
    row = proxy.context.row
    assert row[Cell.UDP_OPENED] - row[Cell.UDP_CLOSED] == len(proxy.udp.flows) == proxy.context.demand
    assert len(proxy.context.poller) == 1 + sum(flow._socket is not None for flow in proxy.udp.flows.values())
    proxy.udp.close()
    proxy.loop.close()


def test_what_a_second_target_got_as_held_is_not_sent_again(tmp_path: Path, stack: ExitStack) -> None:
    refusing, good = _socket(stack), _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, _target(refusing), _target(good)))
    client = _socket(stack, proxy.port)
    client.send(b"first")
    _serve(proxy)
    refusing.close()
    client.send(b"probe")
    proxy.udp.on_event(0, 0)
    # No two in one burst: each is shorter than the next.
    for data in (b"1", b"22", b"333"):
        client.send(data)
    proxy.udp.on_event(0, 0)

    assert _received(good) == [b"first", b"probe", b"1", b"22", b"333"]
    proxy.udp.close()
    proxy.loop.close()


def test_a_flood_of_one_client_is_not_held_for_a_target_that_has_not_answered(tmp_path: Path, stack: ExitStack) -> None:
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, _target(_socket(stack)), _target(free_port())))
    proxy.udp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    client = _socket(stack, proxy.port)
    for _ in range(MOST):
        client.send(bytes(3000))
    _serve(proxy)

    (flow,) = proxy.udp.flows.values()
    assert sum(map(len, flow._held)) <= 16_384
    proxy.udp.close()
    proxy.loop.close()


def test_a_batch_is_small_only_while_messages_are_large(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_BUSY_BYTES", 1000)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, _target(_socket(stack))))
    client = _socket(stack, proxy.port)
    for size, expected in ((100, 8), (1, MOST)):
        for _ in range(2 * MOST):
            client.send(bytes(size))
        _serve(proxy)
        _serve(proxy)
        assert proxy.udp._most == expected
    proxy.udp.close()
    proxy.loop.close()


def test_an_ended_flow_takes_its_socket_out_of_the_poller(tmp_path: Path, stack: ExitStack) -> None:
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, _target(_socket(stack))))
    _socket(stack, proxy.port).send(b"x")
    proxy.loop.run_until_complete(asyncio.sleep(0))
    _serve(proxy)
    assert len(proxy.context.poller) == 2
    proxy.run_until_nothing_is_open()

    assert len(proxy.context.poller) == 1
    proxy.udp.close()
    proxy.loop.close()
