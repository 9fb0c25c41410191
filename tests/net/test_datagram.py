from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.net import burst, datagram
from rpxy_l4.net.burst import Message
from rpxy_l4.net.datagram import Sender


@pytest.mark.parametrize(
    ("size", "segment", "expected"), [(0, 0, [0]), (5, 5, [5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3])]
)
def test_a_burst_is_split_into_its_datagrams(size: int, segment: int, expected: list[int]) -> None:
    assert [len(part) for part in burst.split(memoryview(bytes(size)), segment)] == expected
    assert burst.count(size, segment) == len(expected)


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
    data = memoryview(bytes(range(250)))
    sender.send_burst(([data[:200], data[200:]], 250, 100, 3))

    assert [target.recv(1000) for _ in range(3)] == [data[:100], data[100:200], data[200:]]
    sock.close()
    target.close()


def _messages(*sizes: int | tuple[int, int]) -> list[Message]:
    both = [(size, size) if isinstance(size, int) else size for size in sizes]
    return [(b"", memoryview(bytes(length)), segment, None) for length, segment in both]


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ((), []),
        ((5,), [(1, 5, 5, 1)]),
        ((5, 5, 5), [(3, 15, 5, 3)]),
        ((5, 5, 3), [(3, 13, 5, 3)]),
        ((5, 3, 5), [(2, 8, 5, 2), (1, 5, 5, 1)]),
        ((3, 5), [(1, 3, 3, 1), (1, 5, 5, 1)]),
        ((5, 0, 5), [(1, 5, 5, 1), (1, 0, 0, 1), (1, 5, 5, 1)]),
        ((0, 0), [(1, 0, 0, 1), (1, 0, 0, 1)]),
        (((20, 5), (20, 5)), [(2, 40, 5, 8)]),
        (((20, 5), (18, 5), (20, 5)), [(2, 38, 5, 8), (1, 20, 5, 4)]),
        (((20, 5), 4, 5), [(2, 24, 5, 5), (1, 5, 5, 1)]),
        ((5, (8, 4)), [(1, 5, 5, 1), (1, 8, 4, 2)]),
        ((60_000, 5_000), [(1, 60_000, 60_000, 1), (1, 5_000, 5_000, 1)]),
        ((*[1500] * 44,), [(43, 64_500, 1500, 43), (1, 1500, 1500, 1)]),
        ((1501, 1501), [(1, 1501, 1501, 1), (1, 1501, 1501, 1)]),
    ],
)
def test_datagrams_of_one_length_are_joined(
    sizes: tuple[int | tuple[int, int], ...], joined: list[tuple[int, int, int, int]]
) -> None:
    found = [(len(pieces), *rest) for pieces, *rest in burst.bursts(_messages(*sizes))]
    assert found == joined


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30)), max_size=200))
def test_joining_keeps_every_datagram_and_the_kernels_limits(sizes: list[tuple[int, int]]) -> None:
    messages = [
        (b"", memoryview(bytes([number % 256]) * length), min(length, segment), None)
        for number, (length, segment) in enumerate(sizes)
    ]
    sent = [bytes(part) for _, data, segment, _ in messages for part in burst.split(data, segment)]
    got = []
    for pieces, length, segment, parts in burst.bursts(messages):
        whole = memoryview(b"".join(pieces))
        assert len(whole) == length
        assert parts == burst.count(length, segment) <= 64 or len(pieces) == 1
        got += [bytes(part) for part in burst.split(whole, segment)]
    assert got == sent


def test_a_datagram_longer_than_udp_allows_is_refused_by_the_kernel() -> None:
    target = _bound("127.0.0.1")
    sock = datagram.open_towards("127.0.0.1", target.getsockname()[1])
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        Sender(sock).send(bytes(65_520))

    sock.close()
    target.close()
