from __future__ import annotations

import errno
import os
import socket

import pytest

from rpxy_l4.net import datagram
from rpxy_l4.net.datagram import Sender


@pytest.mark.parametrize(
    ("size", "segment", "expected"), [(0, 0, [0]), (5, 5, [5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3])]
)
def test_a_burst_is_split_into_its_datagrams(size: int, segment: int, expected: list[int]) -> None:
    assert [len(part) for part in datagram.split(memoryview(bytes(size)), segment)] == expected
    assert datagram.count(size, segment) == len(expected)


def _bound(host: str, *options: tuple[int, int, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    for option in options:
        sock.setsockopt(*option)
    sock.bind((host, 0))
    sock.settimeout(5)
    return sock


@pytest.mark.parametrize("segments", [True, False])
def test_a_burst_arrives_as_its_datagrams_with_and_without_the_kernels_help(segments: bool) -> None:
    target = _bound("127.0.0.1")
    sock = datagram.open_towards("127.0.0.1", target.getsockname()[1])
    sender = Sender(sock)
    sender._segments = segments
    data = bytes(range(250))
    sender.send(memoryview(data), 100)

    assert [target.recv(1000) for _ in range(3)] == [data[:100], data[100:200], data[200:]]
    sock.close()
    target.close()


def test_a_coalesced_burst_is_received_with_the_length_of_its_datagrams() -> None:
    near = _bound("127.0.0.1", (datagram.SOL_UDP, datagram.UDP_GRO, 1))
    sock = datagram.open_towards("127.0.0.1", near.getsockname()[1])
    Sender(sock).send(memoryview(bytes(2500)), 1000)
    buffer = memoryview(bytearray(65536))
    amount, segment, reply, sender = datagram.receive(near, buffer)

    assert (amount, segment, reply) == (2500, 1000, None)
    assert sender == sock.getsockname()
    sock.close()
    near.close()


@pytest.mark.parametrize(
    ("wildcard", "option", "used"),
    [
        ("0.0.0.0", (socket.IPPROTO_IP, datagram.IP_PKTINFO, 1), "127.0.0.7"),
        ("::", (socket.IPPROTO_IPV6, datagram.IPV6_RECVPKTINFO, 1), "::1"),
    ],
)
def test_an_answer_leaves_from_the_address_that_the_client_used(
    wildcard: str, option: tuple[int, int, int], used: str
) -> None:
    near = _bound(wildcard, option)
    client = datagram.open_towards(used, near.getsockname()[1])
    client.settimeout(5)
    client.send(b"ask")
    buffer = memoryview(bytearray(65536))
    amount, segment, reply, sender = datagram.receive(near, buffer)
    assert reply is not None
    Sender(near, sender, reply).send(buffer[:amount], segment)

    # The client's socket is connected: an answer from another address would not reach it.
    assert client.recv(100) == b"ask"
    near.close()
    client.close()


def test_a_datagram_longer_than_udp_allows_is_refused_by_the_kernel() -> None:
    target = _bound("127.0.0.1")
    sock = datagram.open_towards("127.0.0.1", target.getsockname()[1])
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        Sender(sock).send(memoryview(bytes(65_520)), 65_520)

    sock.close()
    target.close()
