from __future__ import annotations

import socket
import time

import pytest

from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.connection_inbox import ConnectionInbox, pair
from rpxy_l4.workers.colleagues import Colleagues, Loads

CLIENT = ("192.0.2.1", 1)


@pytest.mark.parametrize(("own", "picked"), [(0, None), (4, None), (5, 7), (6, 7)])
def test_only_who_has_clearly_fewer_sessions_is_picked(own: int, picked: int | None) -> None:
    assert Loads([(4, 8), (3, 7)]).pick(own) == picked


def test_nobody_is_picked_where_there_is_nobody() -> None:
    assert Loads([]).pick(100) is None


def test_what_was_given_counts_from_then_on() -> None:
    loads, given = Loads([(0, 1), (2, 2), (0, 3)]), []
    while (number := loads.pick(5)) is not None:
        loads.give()
        given.append(number)

    assert given == [1, 3, 1, 3, 1, 2, 3, 1, 2, 3]


def test_who_is_dropped_is_not_picked_again() -> None:
    loads = Loads([(0, 1), (1, 2)])
    loads.drop()
    assert loads.pick(5) == 2
    loads.drop()
    assert loads.pick(5) is None


class World:
    """The first of some workers, with so many sessions each, and the inboxes of the others."""

    def __init__(self, *sessions: int) -> None:
        slab = Slab(len(sessions))
        self.rows = [slab.row(number) for number in range(len(sessions))]
        for row, count in zip(self.rows, sessions, strict=True):
            row[Cell.TCP_OPENED] = count
            row[Cell.HEARTBEAT] = time.monotonic_ns()
        self.colleagues = Colleagues(self.rows, 0)
        self.inboxes: dict[int, ConnectionInbox] = {}
        entries = {}
        for number in range(1, len(sessions)):
            self.inboxes[number], entries[number] = pair()
        self.colleagues.change(frozenset(entries), entries)
        self.now = time.monotonic()

    def hand(self) -> bool:
        connection = socket.socket()
        handed = self.colleagues.hand(connection.fileno(), CLIENT, self.now)
        if handed:
            connection.detach()
        connection.close()
        return handed

    def waiting(self) -> list[int]:
        found = []
        for inbox in self.inboxes.values():
            count = 0
            try:
                while True:
                    descriptor, client = inbox.receive()
                    socket.socket(fileno=descriptor).close()
                    assert client == CLIENT
                    count += 1
            except BlockingIOError:
                found.append(count)
        return found

    def close(self) -> None:
        self.colleagues.change(frozenset(), {})
        for inbox in self.inboxes.values():
            inbox.close()


def test_connections_are_handed_to_the_least_busy_until_nobody_is() -> None:
    world = World(5, 1, 2)
    assert [world.hand() for _ in range(7)] == [True] * 5 + [False] * 2

    assert world.colleagues.under_way(world.now) == 5
    assert world.rows[0][Cell.TCP_HANDED] == 5
    assert world.waiting() == [3, 2]
    assert world.colleagues.under_way(world.now + 1) == 0
    world.close()


def test_what_waits_in_an_inbox_counts_whoever_put_it_there() -> None:
    world = World(5, 1)
    (known,) = world.colleagues._known.values()
    with socket.socket() as connection:
        for _ in range(3):
            assert known.entry.send(connection.fileno(), CLIENT)

    assert not world.hand()
    assert world.waiting() == [3]
    world.now += 1.0
    assert world.hand()
    world.close()


def test_who_is_silent_or_drains_is_given_nothing() -> None:
    world = World(5, 0, 0, 4)
    world.rows[1][Cell.HEARTBEAT] -= 4_000_000_000
    world.rows[2][Cell.DRAINING] = 1

    assert not world.hand()
    world.close()


def test_a_full_inbox_and_one_that_nobody_reads_are_passed_over() -> None:
    world = World(10_000, 0, 1, 2)
    world.inboxes[2].stop()
    handed = 0
    while world.hand():
        handed += 1

    first, second, third = world.waiting()
    assert (first, second) == (third, 0)
    assert first + third == handed
    world.close()


def test_the_way_to_who_is_no_colleague_any_more_is_closed() -> None:
    world = World(5, 0, 0)
    entries = [known.entry for known in world.colleagues._known.values()]
    world.colleagues.change(frozenset({2}), {})

    assert [entry.socket.fileno() >= 0 for entry in entries] == [False, True]
    assert world.hand()
    assert world.waiting() == [0, 1]
    world.close()
