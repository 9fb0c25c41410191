from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from rpxy_l4.control import Addresses, Applied, ReopenLogs
from rpxy_l4.net.channel import Channel


def test_messages_arrive_whole_and_in_order() -> None:
    one, other = Channel.pair()
    assert one.send(Applied(1))
    assert one.send(ReopenLogs())

    assert other.receive() == (Applied(1), [])
    assert other.receive() == (ReopenLogs(), [])
    with pytest.raises(BlockingIOError):
        other.receive()
    one.close()
    other.close()


def test_descriptors_travel_with_a_message_and_stay_the_senders() -> None:
    one, other = Channel.pair()
    with tempfile.TemporaryFile() as file:
        one.send(Applied(1), [file.fileno()])
        file.write(b"shared")
        file.flush()
    received = other.receive()

    assert received is not None
    (descriptor,) = received[1]
    assert not os.get_inheritable(descriptor)
    assert os.pread(descriptor, 10, 0) == b"shared"
    os.close(descriptor)
    one.close()
    other.close()


def test_a_message_longer_than_a_packet_arrives_with_its_descriptors() -> None:
    one, other = Channel.pair()
    table = Addresses({f"host-{n}.example": (f"192.0.2.{n % 256}",) for n in range(50_000)})
    before = len(list(Path("/proc/self/fd").iterdir()))
    one.send(table, [0])
    received = other.receive()

    assert received is not None
    assert received[0] == table
    assert len(received[1]) == 1
    os.close(received[1][0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    one.close()
    other.close()


def test_the_death_of_the_other_end_is_none_and_nothing_can_be_sent() -> None:
    one, other = Channel.pair()
    other.close()

    assert one.receive() is None
    assert not one.send(Applied(1))
    one.close()


def test_an_end_that_never_reads_is_told_from_a_working_one() -> None:
    one, other = Channel.pair()

    assert not all(one.send(Applied(n)) for n in range(100_000))
    one.close()
    other.close()
