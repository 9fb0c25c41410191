from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from rpxy_l4.net import datagram
from rpxy_l4.net.ancillary import IP_PKTINFO, SOL_UDP, UDP_GRO
from rpxy_l4.net.burst import Message
from rpxy_l4.net.datagram import Sender
from rpxy_l4.net.inbox import Inbox, address_of
from rpxy_l4.net.mmsg import MOST
from tests.support.ports import free_port

IPV6_RECVPKTINFO = 49


@pytest.fixture(params=[True, False], ids=["many at a time", "one by one"])
def inbox(request: pytest.FixtureRequest) -> Inbox:
    made = Inbox()
    made._many = made._many and request.param
    return made


@pytest.fixture
def near() -> Iterator[socket.socket]:
    with _bound("127.0.0.1") as sock:
        yield sock


def _bound(host: str, *options: tuple[int, int, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for option in options:
        sock.setsockopt(*option)
    sock.bind((host, 0))
    return sock


def _all(inbox: Inbox, sock: socket.socket, number: int) -> list[tuple[bytes, bytes, int]]:
    """Receive so many messages and keep what is in them."""
    got: list[tuple[bytes, bytes, int]] = []
    while len(got) < number:
        assert select.select([sock], [], [], 5)[0]
        got += [(name, bytes(data), segment) for name, data, segment, _ in inbox.receive(sock)]
    return got


def test_every_datagram_comes_with_its_sender_in_order(inbox: Inbox, near: socket.socket) -> None:
    clients = [datagram.open_towards(*near.getsockname()) for _ in range(3)]
    sent = []
    for number in range(2 * MOST + 5):
        client = clients[number % 3]
        data = bytes([number % 256]) * (number % 7)
        client.send(data)
        sent.append((client.getsockname(), data))
        if number % MOST == MOST - 1:  # no more than a socket's buffer holds
            got = _all(inbox, near, len(sent))
            assert [(address_of(name), data) for name, data, _ in got] == sent
            sent.clear()
    for client in clients:
        client.close()


def test_nothing_there_is_said_as_such(inbox: Inbox, near: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        inbox.receive(near)


def test_no_more_than_asked_for_is_taken(near: socket.socket) -> None:
    inbox = Inbox()
    client = datagram.open_towards(*near.getsockname())
    for _ in range(5):
        client.send(b"x")

    assert [len(inbox.receive(near, 2)) for _ in range(3)] == [2, 2, 1]
    client.close()


def test_the_largest_datagram_is_whole_and_so_is_a_small_one_after_it(inbox: Inbox, near: socket.socket) -> None:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    client = datagram.open_towards(*near.getsockname())
    sent = [bytes(range(256)) * 255 + bytes(227), b"small", b"", b"x" * 1400]
    for data in sent:
        client.send(data)

    assert [(data, segment) for _, data, segment in _all(inbox, near, 4)] == [(data, len(data)) for data in sent]
    client.close()


def test_a_coalesced_burst_comes_with_the_length_of_its_datagrams(inbox: Inbox) -> None:
    with _bound("127.0.0.1", (SOL_UDP, UDP_GRO, 1)) as near:
        client = datagram.open_towards(*near.getsockname())
        Sender(client).send_burst(([memoryview(bytes(2500))], 2500, 1000, 3))
        Sender(client).send(b"one")

        assert [(len(data), segment) for _, data, segment in _all(inbox, near, 2)] == [(2500, 1000), (3, 3)]
        client.close()


@pytest.mark.parametrize(
    ("wildcard", "option", "used"),
    [
        ("0.0.0.0", (socket.IPPROTO_IP, IP_PKTINFO, 1), "127.0.0.7"),
        ("::", (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1), "::1"),
    ],
)
def test_an_answer_leaves_from_the_address_that_the_client_used(
    inbox: Inbox, wildcard: str, option: tuple[int, int, int], used: str
) -> None:
    with _bound(wildcard, option, (SOL_UDP, UDP_GRO, 1)) as near:
        client = datagram.open_towards(used, near.getsockname()[1])
        client.settimeout(5)
        for ask in (b"one", b"two"):
            client.send(ask)
            name, data, _, reply = _one(inbox, near)
            assert reply is not None
            assert address_of(name)[:2] == client.getsockname()[:2]
            Sender(near, address_of(name), reply).send(data)
            # The client's socket is connected: an answer from another address would not reach it.
            assert client.recv(100) == ask
        client.close()


def _one(inbox: Inbox, sock: socket.socket) -> Message:
    assert select.select([sock], [], [], 5)[0]
    (message,) = inbox.receive(sock)
    return message


def test_an_icmp_error_is_raised_and_then_gone(inbox: Inbox) -> None:
    sock = datagram.open_towards("127.0.0.1", free_port())
    sock.send(b"x")
    assert select.select([sock], [], [], 5)[0]
    with pytest.raises(ConnectionRefusedError):
        inbox.receive(sock)
    with pytest.raises(BlockingIOError):
        inbox.receive(sock)
    sock.close()
