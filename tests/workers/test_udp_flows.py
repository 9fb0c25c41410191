"""What one datagram does to flows of others that came with it in one batch."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import REASON_INDEX, T_CLOSED, Cell, target_offset
from rpxy_l4.net.ancillary import SOL_UDP, UDP_SEGMENT
from rpxy_l4.net.mmsg import MOST
from rpxy_l4.snapshot import Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers import udp
from tests.support.in_process import InProcess, side
from tests.support.ports import free_port
from tests.support.quic_packets import Sender, client_hello, crypto
from tests.support.waiting import pass_time

HELLO = client_hello("a.example", "h3")
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


@pytest.mark.interpreted
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


@pytest.mark.interpreted
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


WIREGUARD_BEGIN = b"\x01\0\0\0" + bytes(144)
WIREGUARD_DATA = b"\x04\0\0\0" + bytes(60)
DNS_QUERY = bytes.fromhex("beef01000001000000000000") + b"\x07example\x00\x00\x01\x00\x01"
INITIAL = Sender().initial(crypto(0, HELLO), size=1200)
PARTS = [
    Sender().initial(crypto(0, HELLO[:-20]), size=1200),
    Sender().initial(crypto(len(HELLO) - 20, HELLO[-20:]), size=1200, number=1),
]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("protocol", "begin", "datagram", "flows"),
    [
        (Protocol.WIREGUARD, WIREGUARD_BEGIN, WIREGUARD_DATA, 1),
        (Protocol.WIREGUARD, WIREGUARD_BEGIN, WIREGUARD_BEGIN, 1),
        (Protocol.WIREGUARD, WIREGUARD_BEGIN, DNS_QUERY, 2),
        (Protocol.QUIC, INITIAL, b"\x40" + bytes(40), 1),
        (Protocol.QUIC, INITIAL, INITIAL, 2),
        (Protocol.QUIC, INITIAL, DNS_QUERY, 2),
        (Protocol.QUIC, DNS_QUERY, DNS_QUERY, 1),
        (Protocol.QUIC, DNS_QUERY, INITIAL, 2),
    ],
    ids=[
        "a tunnel goes on",
        "a tunnel renews its keys",
        "a query from a port that a tunnel had",
        "a connection goes on",
        "a connection from the port of another one",
        "a query from a port that a connection had",
        "a query from the port of another one",
        "a connection from a port that asked before",
    ],
)
def test_what_comes_to_a_quiet_flow_and_is_not_of_its_session_begins_another(
    tmp_path: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    protocol: Protocol,
    begin: bytes,
    datagram: bytes,
    flows: int,
) -> None:
    monkeypatch.setattr(udp, "_QUIET_SECONDS", -1.0)
    target = _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, protocol, _target(target)))
    client = _socket(stack, proxy.port)
    for each in (begin, datagram):
        client.send(each)
        _serve(proxy)

    assert proxy.context.row[Cell.UDP_OPENED] == flows
    assert len(proxy.udp.flows) == 1
    assert _received(target) == [begin, datagram]
    proxy.udp.close()
    proxy.loop.close()


@pytest.mark.interpreted
@pytest.mark.parametrize("begin", [INITIAL, DNS_QUERY], ids=["a connection", "a query"])
def test_a_hello_in_two_datagrams_from_the_port_of_another_session_begins_another_flow(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(udp, "_QUIET_SECONDS", -1.0)
    target = _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, Protocol.QUIC, _target(target)))
    client = _socket(stack, proxy.port)
    for each in (begin, *PARTS):
        client.send(each)
        _serve(proxy)

    assert proxy.context.row[Cell.UDP_OPENED] == 2
    assert _received(target) == [begin, *PARTS]
    proxy.udp.close()
    proxy.loop.close()


def test_a_flow_that_was_busy_a_moment_ago_is_not_looked_at_again(tmp_path: Path, stack: ExitStack) -> None:
    target = _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, Protocol.WIREGUARD, _target(target)))
    client = _socket(stack, proxy.port)
    for each in (WIREGUARD_BEGIN, DNS_QUERY):
        client.send(each)
        _serve(proxy)

    assert proxy.context.row[Cell.UDP_OPENED] == 1
    proxy.udp.close()
    proxy.loop.close()


@pytest.mark.interpreted
def test_an_answer_that_waits_after_a_standstill_comes_before_the_flows_deadline(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_UNCONFIRMED_SECONDS", 0.1)
    target = _socket(stack)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, _target(target)))
    client = _socket(stack, proxy.port)
    client.send(b"query")
    _serve(proxy)
    data, flow = target.recvfrom(100)
    proxy.loop.run_until_complete(asyncio.sleep(0))
    target.sendto(data, flow)
    pass_time(0.7)
    proxy.run_until_nothing_is_open()

    assert _received(client) == [b"query"]


def test_what_a_target_sends_in_bulk_stays_cut_when_another_worker_goes_on_with_the_flow(
    tmp_path: Path, stack: ExitStack
) -> None:
    target = _socket(stack)
    giver, taker = (InProcess(tmp_path, None, side(Transport.UDP, None, _target(target), idle=10.0)) for _ in range(2))
    client = _socket(stack, giver.port)
    client.send(b"request")
    _serve(giver)
    _, source = target.recvfrom(100)
    for _ in range(10):
        target.sendto(bytes(1200), source)
        _serve(giver)
    (flow,) = giver.udp.flows.values()
    assert flow._bulk
    target.sendmsg([bytes(6000)], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1200))], 0, source)
    record, descriptor = flow.pack()
    assert descriptor is not None
    copy = os.dup(descriptor)
    flow.forget()
    giver.context.poller.end_batch()
    address = client.getsockname()
    client.close()
    taker.udp.adopt(record, copy, 0)
    # Its answers come from another port here.
    again = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    again.bind(address)
    again.setblocking(False)
    _serve(taker)

    assert [len(data) for data in _received(again)] == [1200] * 5
    for proxy in (giver, taker):
        proxy.udp.close()
        proxy.loop.close()


def test_a_worker_takes_no_more_flows_of_another_one_than_its_descriptors_allow_and_remembers_the_others(
    tmp_path: Path, stack: ExitStack
) -> None:
    target = _socket(stack)
    giver, taker = (InProcess(tmp_path, None, side(Transport.UDP, None, _target(target), idle=10.0)) for _ in range(2))
    taker.context._supply = 8
    flows = []
    for _ in range(8):
        client = _socket(stack, giver.port)
        for _ in range(2):  # and an answer between, by which the flow is confirmed
            client.send(b"request")
            _serve(giver)
            data, source = target.recvfrom(100)
            target.sendto(data, source)
            _serve(giver)
    taker.context.poller.begin_batch()
    for flow in list(giver.udp.flows.values()):
        record, descriptor = flow.pack()
        assert descriptor is not None
        flows.append(record)
        copy = os.dup(descriptor)
        flow.forget()
        taker.udp.adopt(record, copy, 0)
    giver.context.poller.end_batch()
    taker.context.poller.end_batch()

    assert len(taker.udp.flows) == 5, "six of eight is the share, less the one that would be next"
    assert all(taker.udp.recall(record.key) is not None for record in flows)
    assert taker.context.row[target_offset(0) + T_CLOSED + REASON_INDEX[Reason.EVICTED]] == 3
    for proxy in (giver, taker):
        proxy.udp.close()
        proxy.loop.close()
