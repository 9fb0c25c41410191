"""What a worker does with slots that come and go, told by a supervisor that the test is."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from rpxy_l4.control import (
    Applied,
    Apply,
    Attach,
    Drain,
    Draining,
    Flows,
    Inherit,
    Inherited,
    Message,
    NotApplied,
    OtherInboxes,
    OwnInbox,
    Place,
    Release,
    Released,
    Taken,
)
from rpxy_l4.flow_memory import FlowMemories
from rpxy_l4.logs import Logs
from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.connection_inbox import pair
from rpxy_l4.net.listen import open_group
from rpxy_l4.snapshot import Bind, Snapshot, Target
from rpxy_l4.verdict import Transport
from rpxy_l4.workers.udp import UdpFlow
from rpxy_l4.workers.worker import Worker
from tests.support.in_process import side
from tests.support.ports import free_port
from tests.support.waiting import eventually

SLOT = 1


class Driven:
    """A worker in this process, its supervisor's end, and one UDP address with a client and a target."""

    def __init__(self, folder: Path) -> None:
        self.loop = uvloop.new_event_loop()
        self.channel, self._theirs = Channel.pair()
        self.slab = Slab(3)
        memories = FlowMemories(memoryview(bytearray(1 << 16)), 2, b"key", 600.0)
        self.worker = Worker(self.loop, 0, 2, self._theirs, self.slab, memories, Logs("worker 1", folder))
        self.worker.start()
        self.place = Place(SLOT, Bind(Transport.UDP, "127.0.0.1", free_port()))
        (self.sock,) = open_group(self.place.bind, 1, 16, exclusive=True)
        self.target = socket.socket(type=socket.SOCK_DGRAM)
        self.target.bind(("127.0.0.1", 0))
        self.target.setblocking(False)
        self.client = socket.socket(type=socket.SOCK_DGRAM)
        self.client.connect(("127.0.0.1", self.place.bind.port))
        port = self.target.getsockname()[1]
        udp = side(Transport.UDP, None, Target(f"127.0.0.1:{port}", "127.0.0.1", port, is_name=False), idle=10.0)
        self.snapshot = Snapshot(generation=1, sha256="", listener=":1", binds=(self.place.bind,), tcp=None, udp=udp)

    def close(self) -> None:
        self.worker._close_udp()
        if self.worker._own_inbox is not None:
            self.worker._own_inbox.end()
        self.loop.close()
        self.channel.close()
        self._theirs.close()
        for sock in (self.sock, self.target, self.client):
            sock.close()

    def attach(self) -> None:
        assert self.channel.send(Attach((self.place,)), (self.sock.fileno(),))

    def apply(self, *slots: int) -> None:
        assert self.channel.send(Apply(self.snapshot, {}, frozenset(slots)))

    def turn(self) -> None:
        """One turn of the loop."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def answer(self) -> Message:
        """What it says next."""
        found: list[Message] = []

        def has_answered() -> bool:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                received = self.channel.receive()
                assert received is not None
                found.append(received[0])
            return bool(found)

        eventually(has_answered, "an answer")
        return found[0]

    def flows(self) -> int:
        """How many there have been, after another turn."""
        self.turn()
        return self.slab.row(0)[Cell.UDP_OPENED]


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    with contextlib.closing(Driven(tmp_path)) as made:
        yield made


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """No descriptor can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def begin_to_inherit(driven: Driven) -> Channel:
    """Have the worker wait for a slot's flows; the giver's end."""
    driven.apply()
    assert driven.answer() == Applied(1)
    ours, theirs = Channel.pair()
    driven.attach()
    assert driven.channel.send(Inherit(SLOT), (theirs.fileno(),))
    theirs.close()
    return ours


def test_what_clients_send_waits_for_their_flows_whatever_configuration_comes_meanwhile(driven: Driven) -> None:
    giver = begin_to_inherit(driven)
    driven.apply(SLOT)
    assert driven.answer() == Applied(1)
    driven.client.send(b"x")
    assert not any(driven.flows() for _ in range(5))

    giver.close()
    assert driven.answer() == Inherited(SLOT)
    eventually(driven.flows, "a flow")


def test_a_worker_that_stops_waits_for_the_flows_that_come_to_it(driven: Driven) -> None:
    giver = begin_to_inherit(driven)
    assert driven.channel.send(Drain(10.0))
    assert driven.answer() == Draining()
    driven.loop.call_later(0.1, driven.loop.stop)
    driven.loop.run_forever()
    assert driven.worker._udp

    giver.close()
    driven.loop.run_forever()
    assert not driven.worker._udp


def give(driven: Driven, giver: Channel, *sockets: socket.socket) -> None:
    """Hand over what has left the configuration: the address with this socket, and no flow."""
    until = time.monotonic() + 60
    assert giver.send(Flows(driven.place.bind, 0, until, ()), [each.fileno() for each in sockets])

    def is_taken() -> bool:
        driven.turn()
        with contextlib.suppress(BlockingIOError):
            received = giver.receive()
            assert received == (Taken(), [])
            return True
        return False

    eventually(is_taken, "an answer")


def test_several_sockets_of_an_address_that_left_more_than_once_stay_apart(driven: Driven) -> None:
    giver = begin_to_inherit(driven)
    sockets = open_group(Bind(Transport.UDP, "127.0.0.1", free_port()), 2, 16, exclusive=True)
    for each in (sockets[0], sockets[1], sockets[0]):
        give(driven, giver, each)

    inodes = [os.fstat(old.listener.socket.fileno()).st_ino for old in driven.worker._retired]
    assert inodes == [os.fstat(each.fileno()).st_ino for each in sockets]
    giver.close()
    assert driven.answer() == Inherited(SLOT)
    for each in sockets:
        each.close()


def test_a_fault_in_what_comes_for_a_slot_does_not_keep_it_from_being_served(driven: Driven) -> None:
    giver = begin_to_inherit(driven)
    give(driven, giver)  # without the socket that it speaks of
    giver.close()

    assert driven.answer() == Inherited(SLOT)
    driven.client.send(b"x")
    eventually(driven.flows, "a flow")


def test_a_fault_in_handing_a_slot_over_does_not_keep_it(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: UdpFlow) -> None:
        raise RuntimeError

    driven.attach()
    driven.apply(SLOT)
    assert driven.answer() == Applied(1)
    driven.client.send(b"x")
    eventually(driven.flows, "a flow")
    monkeypatch.setattr(UdpFlow, "pack", fail)
    ours, theirs = Channel.pair()
    assert driven.channel.send(Release(SLOT), (theirs.fileno(),))
    theirs.close()

    assert driven.answer() == Released(SLOT)
    assert ours.receive() is None
    ours.close()


def test_an_answer_that_found_no_room_comes_later(driven: Driven) -> None:
    sent = 0
    while driven.worker._channel.send(NotApplied()):
        sent += 1
    driven.apply()
    driven.turn()
    for _ in range(sent):
        assert driven.channel.receive() == (NotApplied(), [])

    assert driven.answer() == Applied(1)


def test_a_slot_is_given_up_though_there_is_no_descriptor_for_the_way_to_another_worker(driven: Driven) -> None:
    driven.attach()
    driven.apply(SLOT)
    assert driven.answer() == Applied(1)
    driven.client.send(b"x")
    eventually(driven.flows, "a flow")
    ours, theirs = Channel.pair()
    assert driven.channel.send(Release(SLOT), (theirs.fileno(),))
    theirs.close()
    with without_descriptors():
        driven.worker._on_channel()
    assert driven.answer() == Released(SLOT)

    assert not driven.worker._udp
    assert ours.receive() is None
    ours.close()


def test_a_slot_is_served_though_there_was_no_descriptor_for_the_way_from_another_worker(driven: Driven) -> None:
    driven.apply()
    driven.attach()
    assert driven.answer() == Applied(1)
    ours, theirs = Channel.pair()
    assert driven.channel.send(Inherit(SLOT), (theirs.fileno(),))
    theirs.close()
    with without_descriptors():
        driven.worker._on_channel()
    assert driven.answer() == Inherited(SLOT)

    driven.client.send(b"x")
    eventually(driven.flows, "a flow")
    ours.close()


def test_listening_sockets_that_found_no_room_are_asked_for_again(driven: Driven) -> None:
    driven.attach()
    with without_descriptors():
        driven.worker._on_channel()
    assert driven.answer() == NotApplied()


def test_a_connection_from_another_worker_is_not_taken_before_there_is_a_configuration(driven: Driven) -> None:
    inbox, entry = pair()
    assert driven.channel.send(OwnInbox(), (inbox.socket.fileno(), entry.socket.fileno()))
    with socket.socket() as connection:
        assert entry.send(connection.fileno(), ("127.0.0.1", 1))
    for _ in range(5):
        driven.turn()
    assert entry.waiting() == 1

    driven.apply()
    assert driven.answer() == Applied(1)

    def is_taken() -> bool:
        driven.turn()
        return not entry.waiting()

    eventually(is_taken, "it is taken")
    inbox.close()
    entry.close()


def test_a_way_to_other_workers_that_found_no_room_is_asked_for_again(driven: Driven) -> None:
    inbox, entry = pair()
    assert driven.channel.send(OtherInboxes(frozenset({1}), (1,)), (entry.socket.fileno(),))
    with without_descriptors():
        driven.worker._on_channel()
    assert driven.answer() == NotApplied()
    inbox.close()
    entry.close()


def test_a_worker_that_stops_empties_its_inbox_and_lets_nothing_more_come(driven: Driven) -> None:
    driven.apply()
    assert driven.answer() == Applied(1)
    inbox, entry = pair()
    assert driven.channel.send(OwnInbox(), (inbox.socket.fileno(), entry.socket.fileno()))
    driven.turn()
    with socket.socket() as connection:
        assert driven.channel.send(Drain(10.0))
        assert entry.send(connection.fileno(), ("127.0.0.1", 1))
        driven.loop.run_forever()

        assert entry.waiting() == 0
        assert not entry.send(connection.fileno(), ("127.0.0.1", 1))
    inbox.close()
    entry.close()
