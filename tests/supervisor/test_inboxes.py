from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from rpxy_l4.control import Message, OtherInboxes, OwnInbox
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.connection_inbox import ConnectionInbox, InboxEntry
from rpxy_l4.supervisor.children import Child
from rpxy_l4.supervisor.inboxes import Inboxes
from rpxy_l4.supervisor.policy import Seat

CLIENT = ("192.0.2.1", 1)


class World:
    """Inboxes, seats, and workers that are only the ends of channels."""

    def __init__(self) -> None:
        self.inboxes = Inboxes()
        self.seats: dict[int, Seat] = {}
        self.children: dict[int, Child] = {}
        self.theirs: dict[int, Channel] = {}
        self.own: dict[int, tuple[ConnectionInbox, InboxEntry]] = {}
        self.entries: dict[tuple[int, int], InboxEntry] = {}

    def sit(self, *numbers: int) -> None:
        for number in numbers:
            self.seats.setdefault(number, Seat(number))
            ours, self.theirs[number] = Channel.pair()
            self.children[number] = Child(0, -1, ours)

    def update(self, *, wanted: bool = True) -> bool:
        return self.inboxes.update(self.seats, [*self.seats], self.children, wanted=wanted)

    def heard(self, number: int) -> list[Message]:
        """What a worker was told; it keeps the descriptors."""
        messages: list[Message] = []
        while True:
            try:
                received = self.theirs[number].receive()
            except BlockingIOError:
                return messages
            assert received is not None
            message, descriptors = received
            messages.append(message)
            if isinstance(message, OwnInbox):
                self.own[number] = ConnectionInbox.of(descriptors[0]), InboxEntry.of(descriptors[1])
            elif isinstance(message, OtherInboxes):
                for other, descriptor in zip(message.new, descriptors, strict=True):
                    if (number, other) in self.entries:
                        self.entries[number, other].close()
                    self.entries[number, other] = InboxEntry.of(descriptor)

    def close(self) -> None:
        self.inboxes.close_all()
        for child in self.children.values():
            child.disconnect()
        for channel in self.theirs.values():
            channel.close()
        for inbox, entry in self.own.values():
            inbox.close()
            entry.close()
        for entry in self.entries.values():
            entry.close()


@pytest.fixture
def world() -> Iterator[World]:
    with contextlib.closing(World()) as made:
        yield made


def others(*numbers: int, new: tuple[int, ...]) -> OtherInboxes:
    return OtherInboxes(frozenset(numbers), new)


def test_each_worker_is_given_its_own_inbox_and_the_ways_into_those_of_the_others_once(world: World) -> None:
    world.sit(0, 1, 2)
    assert world.update()
    assert world.update()

    assert world.heard(0) == [OwnInbox(), others(1, 2, new=(1, 2))]
    assert world.heard(2) == [OwnInbox(), others(0, 1, new=(0, 1))]
    with socket.socket() as connection:
        assert world.entries[0, 2].send(connection.fileno(), CLIENT)
    os.close(world.own[2][0].receive()[0])


def test_nothing_is_made_while_it_is_not_wanted_and_what_is_there_stays_when_it_no_longer_is(world: World) -> None:
    world.sit(0, 1)
    assert world.update(wanted=False)
    assert world.heard(0) == []
    world.update()
    world.heard(0)
    world.update(wanted=False)
    assert world.heard(0) == [others(new=())]

    world.update()
    assert world.heard(0) == [others(1, new=(1,))]


def test_more_workers_than_descriptors_fit_into_a_message_are_told_in_several(world: World) -> None:
    world.sit(*range(230))
    world.update()

    _, first, second = world.heard(0)
    assert isinstance(first, OtherInboxes)
    assert isinstance(second, OtherInboxes)
    assert first.numbers == second.numbers == frozenset(range(1, 230))
    assert (*first.new, *second.new) == tuple(range(1, 230))


def test_the_one_who_follows_in_a_seat_gets_what_waits_there(world: World) -> None:
    world.sit(0, 1)
    world.update()
    world.heard(0)
    world.children.pop(1).disconnect()
    world.theirs.pop(1).close()
    with socket.socket() as connection:
        assert world.entries[0, 1].send(connection.fileno(), CLIENT)
    world.update()
    assert world.heard(0) == []
    world.sit(1)
    world.update()
    world.heard(1)

    descriptor, client = world.own[1][0].receive()
    os.close(descriptor)
    assert client == CLIENT


def test_what_waits_in_a_seat_that_vanishes_goes_to_another_also_when_its_number_is_used_again(world: World) -> None:
    world.sit(0, 1)
    world.update()
    world.heard(0)
    before = world.entries[0, 1]
    with socket.socket() as connection:
        assert before.send(connection.fileno(), CLIENT)
        world.children.pop(1).disconnect()
        world.theirs.pop(1).close()
        del world.seats[1]
        world.sit(1)
        world.update()

        assert not before.send(connection.fileno(), CLIENT)
    before.close()
    assert world.heard(0) == [others(1, new=(1,))]
    os.close(world.own[0][0].receive()[0])


def test_one_that_cannot_be_told_is_told_later_and_given_nothing_until_then(world: World) -> None:
    world.sit(0, 1)
    channel = world.children[1].channel
    filler = OtherInboxes(frozenset(range(2000)), ())
    while channel.send(filler):
        pass
    while channel.send(others(new=())):
        pass
    assert not world.update()
    assert world.heard(0) == [OwnInbox()]

    world.heard(1)
    assert world.update()
    assert world.heard(0) == [others(1, new=(1,))]
    assert world.heard(1) == [OwnInbox(), others(0, new=(0,))]
