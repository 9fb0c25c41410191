"""Invariant: whatever comes and whatever was expected, the bursts are the datagrams that were sent, in order."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.net import datagram
from rpxy_l4.net.ancillary import SOL_UDP, UDP_GRO
from rpxy_l4.net.burst import Burst, split
from rpxy_l4.net.datagram import Sender
from rpxy_l4.net.inbox import BulkInbox
from tests.support.netns import Namespaces, inside

SIZES = [0, 1, 511, 512, 513, 1200, 1400, 1500, 1501, 9000, 24_000, 65_000]

WHAT_FITS = 50_000
"""Bytes that can wait in such a buffer, with what the kernel adds to each datagram, before 65 000 more."""
BUFFER = 212_992
"""That of a socket by default, on most machines."""


@pytest.fixture(scope="module", params=[True, False], ids=["many at a time", "one by one"])
def inbox(request: pytest.FixtureRequest) -> BulkInbox:
    made = BulkInbox()
    made._many = request.param
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["coalesced", "not coalesced"])
def near(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(SOL_UDP, UDP_GRO, int(request.param))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 2)  # the kernel doubles it (socket(7))
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def _datagrams(burst: Burst) -> list[bytes]:
    pieces, length, segment, parts = burst
    whole = memoryview(b"".join(pieces))
    found = [bytes(part) for part in split(whole, segment)]
    assert (len(whole), len(found)) == (length, parts)
    assert parts == 1 or (parts <= 64 and length <= 65_507)
    return found


def _receive(inbox: BulkInbox, sock: socket.socket, number: int, size: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < number:
        assert select.select([sock], [], [], 5)[0]
        received, size, _ = inbox.receive(sock, size)
        assert size > 0
        got += [part for burst in received for part in _datagrams(burst)]
    return got


@settings(max_examples=40)
@given(
    bursts=st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 12), st.integers(0, 1500)), max_size=8),
    guess=st.sampled_from(SIZES),
    seed=st.integers(0, 1000),
)
def test_datagrams_and_bursts_of_any_size_come_as_they_were_sent(
    inbox: BulkInbox, near: socket.socket, bursts: list[tuple[int, int, int]], guess: int, seed: int
) -> None:
    chance = Random(seed)
    client = datagram.open_towards(*near.getsockname())
    sender = Sender(client)
    sent: list[bytes] = []
    try:
        for size, most, last in bursts:
            if sum(map(len, sent)) > WHAT_FITS:
                break
            parts = most if size <= 1500 else 1
            data = memoryview(chance.randbytes(size * (parts - 1) + (min(last, size) or size)))
            if chance.random() < 0.5:
                sender.send_burst(([data], len(data), size, parts))
            else:
                for part in split(data, size):
                    sender.send(part)
            sent += [bytes(part) for part in split(data, size)]
        assert _receive(inbox, near, len(sent), guess) == sent
    finally:
        client.close()


def test_a_train_of_equal_datagrams_is_one_piece_for_each_burst() -> None:
    inbox = BulkInbox()
    with socket.socket(type=socket.SOCK_DGRAM) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 2)
        near.bind(("127.0.0.1", 0))
        client = datagram.open_towards(*near.getsockname())
        for _ in range(60):
            client.send(bytes(1200))
        client.send(bytes(700))
        received, size, more = inbox.receive(near, 1200)

        assert [(len(pieces), *rest) for pieces, *rest in received] == [(1, 64_800, 1200, 54), (1, 7900, 1200, 7)]
        assert (size, more) == (1200, False)
        client.close()


def test_nothing_there_is_said_as_such(inbox: BulkInbox, near: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        inbox.receive(near, 1200)


@pytest.mark.netns
def test_a_prohibited_way_is_an_error_of_the_socket_and_not_a_missing_system_call() -> None:
    inbox = BulkInbox()
    with Namespaces("alone") as nets, inside(nets["alone"]):
        target = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        target.bind(("::1", 0))
        sock = datagram.open_towards("::1", target.getsockname()[1])
        icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        # RFC 4443 3.1: destination unreachable, administratively prohibited, with the packet that it is about.
        here = socket.inet_pton(socket.AF_INET6, "::1")
        about = struct.pack("!HHHH", sock.getsockname()[1], target.getsockname()[1], 8, 0)
        packet = struct.pack("!IHBB", 6 << 28, len(about), socket.IPPROTO_UDP, 64) + here + here + about
        icmp.sendto(struct.pack("!BBHI", 1, 1, 0, 0) + packet, ("::1", 0))
        with target, icmp:
            assert select.select([sock], [], [], 5)[0]
            with pytest.raises(PermissionError):
                inbox.receive(sock, 1200)
            assert inbox._many
            sock.close()
