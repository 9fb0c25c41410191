"""Flows that their clients have not confirmed: how long they live, and what they give way to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.endings import Drop, Reason, Rejection
from rpxy_l4.metrics.layout import (
    DROP_INDEX,
    L_DROPPED,
    L_REJECTED,
    REASON_INDEX,
    REJECTION_INDEX,
    T_CLOSED,
    Cell,
    listener_offset,
    target_offset,
)
from rpxy_l4.snapshot import Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers import udp
from rpxy_l4.workers.context import Waiting
from tests.support.flood import UdpFlood
from tests.support.in_process import InProcess, side
from tests.support.quic_packets import Sender, client_hello, crypto

PART = Sender().initial(crypto(0, client_hello("a.example")[:50]), size=1200)


class World:
    """A proxy with room for four flows, which live for long, and a target that answers when it is told to."""

    def __init__(
        self, folder: Path, stack: ExitStack, wanted: Protocol | None = None, workers: int = 1, rate: int = 0
    ) -> None:
        self._stack = stack
        self._target = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        self._target.bind(("127.0.0.1", 0))
        self._target.setblocking(False)
        self.sources: list[tuple[str, int]] = []
        """Who sent what the target received so far."""
        port = self._target.getsockname()[1]
        target = Target(f"127.0.0.1:{port}", "127.0.0.1", port, is_name=False)
        self.folder = folder
        flows = side(Transport.UDP, wanted, target, idle=60.0, max_sessions=4, max_new_per_second=rate)
        self.proxy = InProcess(folder, None, flows, workers)
        stack.callback(self._close)
        self.flood = stack.enter_context(UdpFlood(("127.0.0.1", self.proxy.port)))

    def _close(self) -> None:
        self.proxy.udp.close()
        self.proxy.loop.close()

    def client(self) -> socket.socket:
        client = self._stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        client.connect(("127.0.0.1", self.proxy.port))
        client.setblocking(False)
        return client

    def serve(self) -> None:
        """Handle what is there now."""
        self.proxy.context.poller.dispatch()
        while True:
            try:
                self.sources.append(self._target.recvfrom(2000)[1])
            except BlockingIOError:
                return

    def send(self, client: socket.socket) -> None:
        client.send(b"x")
        self.serve()

    def answer(self) -> None:
        """Answer the last datagram."""
        self._target.sendto(b"answer", self.sources[-1])
        self.serve()

    def confirmed(self) -> socket.socket:
        """A client that has sent, got an answer, and sent again."""
        client = self.client()
        self.send(client)
        self.answer()
        assert client.recv(100) == b"answer"
        self.send(client)
        return client

    def ended(self, reason: Reason) -> int:
        return self.proxy.context.row[target_offset(0) + T_CLOSED + REASON_INDEX[reason]]

    def rejected(self, rejection: Rejection) -> int:
        return self.proxy.context.row[listener_offset(0) + L_REJECTED + REJECTION_INDEX[rejection]]

    def dropped(self, drop: Drop) -> int:
        return self.proxy.context.row[listener_offset(0) + L_DROPPED + DROP_INDEX[drop]]

    def check_books(self) -> None:
        """Everything that counts flows says the same."""
        context, flows = self.proxy.context, self.proxy.udp.flows
        assert context.row[Cell.UDP_OPENED] - context.row[Cell.UDP_CLOSED] == len(flows) == context.demand
        assert set(context.unconfirmed._flows) <= set(flows.values())
        assert context.row[Cell.UDP_UNCONFIRMED] == len(context.unconfirmed)
        assert len(context.poller) == 1 + sum(flow._socket is not None for flow in flows.values())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    return World(tmp_path, stack)


def test_the_oldest_unconfirmed_flow_gives_way_where_there_is_no_room(world: World) -> None:
    clients = [world.client() for _ in range(5)]
    for client in clients:
        world.send(client)

    assert len(world.proxy.udp.flows) == 4
    assert len(world.sources) == 5
    assert world.ended(Reason.EVICTED) == 1
    world.send(clients[1])
    assert world.sources[5] == world.sources[1], "its flow goes on"
    world.send(clients[0])
    assert world.sources[6] != world.sources[0], "its flow was the oldest, and it has another one now"
    world.check_books()


def test_a_client_that_sends_after_an_answer_keeps_its_flow_through_a_flood(world: World) -> None:
    client = world.confirmed()
    source = world.sources[-1]
    for _ in range(5):
        world.flood.send(20)
        world.send(client)
        assert world.sources[-1] == source
        assert len(world.proxy.udp.flows) == 4

    assert world.ended(Reason.EVICTED) == 5 * 20 - 3
    assert world.rejected(Rejection.LIMIT) == world.dropped(Drop.LIMIT) == 0
    world.check_books()


def test_confirmed_flows_give_way_to_nobody(world: World) -> None:
    clients = [world.confirmed() for _ in range(4)]
    sources = world.sources[-1::-2][::-1]
    world.flood.send(10)
    world.serve()

    assert world.dropped(Drop.LIMIT) == world.rejected(Rejection.LIMIT) == 10
    assert len(world.proxy.context.unconfirmed) == 0
    for client, source in zip(clients, sources, strict=True):
        world.send(client)
        assert world.sources[-1] == source
    world.check_books()


def test_an_answer_alone_confirms_nothing(world: World) -> None:
    """The address that it goes to may be made up."""
    world.send(world.client())
    world.answer()
    world.flood.send(4)
    world.serve()

    assert world.ended(Reason.EVICTED) == 1


def test_sending_twice_at_once_confirms_nothing(world: World) -> None:
    client = world.client()
    world.send(client)
    world.send(client)
    world.flood.send(4)
    world.serve()

    assert world.ended(Reason.EVICTED) == 1


@pytest.mark.interpreted
def test_a_client_that_nobody_answers_and_that_sends_later_gives_way_after_those_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    world.send(client)
    world.flood.send(3)
    world.serve()
    world.send(client)  # at once: that changes nothing
    assert next(iter(world.proxy.context.unconfirmed._flows)) is next(iter(world.proxy.udp.flows.values()))
    monkeypatch.setattr(udp, "_LATER_SECONDS", 0.0)
    world.send(client)
    world.flood.send(3)
    world.serve()
    world.send(client)
    assert world.sources[-1] == world.sources[0]

    world.flood.send(4)
    world.serve()
    world.send(client)
    assert world.sources[-1] != world.sources[0], "it is nobody's for good"
    world.check_books()


@pytest.mark.interpreted
def test_unconfirmed_flows_are_forgotten_soon_while_there_are_many_and_confirmed_ones_are_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_UNCONFIRMED_SECONDS", 0.05)
    world.confirmed()
    world.confirmed()
    world.flood.send(2)
    world.serve()
    assert len(world.proxy.udp.flows) == 4
    world.proxy.run_until(lambda: len(world.proxy.udp.flows) == 2)

    assert len(world.proxy.context.unconfirmed) == 0
    assert world.ended(Reason.UNCONFIRMED) == 2
    assert world.ended(Reason.IDLE) == 0
    world.check_books()


@pytest.mark.interpreted
def test_unconfirmed_flows_have_their_time_while_there_are_few_and_none_once_there_are_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_UNCONFIRMED_SECONDS", 0.05)
    world.flood.send(2)
    world.serve()
    looks = 0
    wait = world.proxy.context.alarm.add

    def look_again(deadline: float, owner: Waiting) -> None:
        nonlocal looks
        looks += 1
        wait(deadline, owner)

    monkeypatch.setattr(world.proxy.context.alarm, "add", look_again)
    world.proxy.run_until(lambda: looks > 4)
    assert len(world.proxy.udp.flows) == 2
    world.confirmed()
    world.proxy.run_until(lambda: len(world.proxy.udp.flows) == 2)

    assert world.ended(Reason.UNCONFIRMED) == 1
    world.check_books()


@pytest.mark.interpreted
def test_unconfirmed_flows_are_forgotten_soon_while_descriptors_are_short(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "_UNCONFIRMED_SECONDS", 0.05)
    world.proxy.context._supply = 4
    world.flood.send(2)
    world.serve()
    world.proxy.run_until(lambda: len(world.proxy.udp.flows) == 1)

    assert world.ended(Reason.UNCONFIRMED) == 1


def test_an_idle_lifetime_that_is_shorter_holds_for_unconfirmed_flows_too(tmp_path: Path) -> None:
    target = Target("127.0.0.1:9", "127.0.0.1", 9, is_name=False)
    proxy = InProcess(tmp_path, None, side(Transport.UDP, None, target, idle=0.02))
    with UdpFlood(("127.0.0.1", proxy.port)) as flood:
        flood.send(1)
        proxy.context.poller.dispatch()
        proxy.run_until_nothing_is_open()

    assert proxy.context.row[target_offset(0) + T_CLOSED + REASON_INDEX[Reason.IDLE]] == 1
    proxy.udp.close()
    proxy.loop.close()


def test_flows_that_gave_way_are_not_kept_until_they_would_have_ended(world: World) -> None:
    world.flood.send(100)
    world.serve()

    waiting = world.proxy.context.alarm._lines._lines.values()
    assert sum(map(len, waiting)) == 4
    assert world.proxy.context.alarm._table.next_deadline() is None


def test_an_undecided_flow_gives_way_like_any_other(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, Protocol.QUIC)
    world.flood.send(4, PART)
    world.serve()
    assert len(world.proxy.undecided) == 4
    world.flood.send(3)
    world.serve()

    assert len(world.proxy.undecided) == 1
    assert world.rejected(Rejection.EVICTED) == world.dropped(Drop.UNDECIDED) == 3
    world.check_books()


def test_a_worker_gets_its_share_of_places_that_another_one_has_filled(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, workers=2)
    other = world.proxy.slab.row(1)
    other[Cell.HEARTBEAT] = 1
    other[Cell.UDP_OPENED] = other[Cell.UDP_UNCONFIRMED] = 4
    world.flood.send(1)
    world.serve()
    world.flood.send(1)
    world.serve()
    assert len(world.proxy.udp.flows) == 2, "half of four"
    assert world.ended(Reason.EVICTED) == 0
    world.flood.send(1)
    world.serve()
    assert len(world.proxy.udp.flows) == 2
    assert world.ended(Reason.EVICTED) == 1


def test_a_worker_with_more_than_its_share_gives_up_two_for_one_until_there_are_not_too_many(
    tmp_path: Path, stack: ExitStack
) -> None:
    world = World(tmp_path, stack, workers=2)
    world.flood.send(4)
    world.serve()
    other = world.proxy.slab.row(1)
    other[Cell.HEARTBEAT] = 1
    other[Cell.UDP_OPENED] = other[Cell.UDP_UNCONFIRMED] = 2
    left = []
    for _ in range(3):
        world.flood.send(1)
        world.serve()
        left.append(len(world.proxy.udp.flows))

    assert left == [3, 2, 2]


def test_a_worker_gets_no_place_of_flows_that_another_one_has_confirmed(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, workers=2)
    other = world.proxy.slab.row(1)
    other[Cell.HEARTBEAT] = 1
    other[Cell.UDP_OPENED] = 4
    world.flood.send(1)
    world.serve()

    assert len(world.proxy.udp.flows) == 0
    assert world.dropped(Drop.LIMIT) == 1


def test_flows_give_way_where_descriptors_are_short(world: World) -> None:
    context = world.proxy.context
    client = world.confirmed()
    context._supply = 4
    world.flood.send(1)
    world.serve()
    world.flood.send(1)
    world.serve()
    assert len(world.proxy.udp.flows) == 3, "three of four: the share of flows"
    assert world.ended(Reason.EVICTED) == 0
    world.flood.send(1)
    world.serve()

    assert len(world.proxy.udp.flows) == 3
    assert world.ended(Reason.EVICTED) == 1
    world.send(client)
    assert world.rejected(Rejection.RESOURCES) == 0
    world.check_books()


def test_a_batch_lets_go_of_no_more_sockets_than_there_is_room_for_until_they_are_closed(world: World) -> None:
    context = world.proxy.context
    context._supply = 4
    world.flood.send(20)
    world.serve()

    assert world.ended(Reason.EVICTED) == 1, "a quarter of four is not the flows'"
    assert world.dropped(Drop.RESOURCES) == 20 - 3 - 1
    world.check_books()


def test_a_flood_of_flows_that_give_way_does_not_fill_the_access_log(world: World) -> None:
    world.flood.send(100)
    world.serve()
    world.proxy.context.log.flush()

    lines = (world.folder / "access.log").read_text().splitlines()
    assert len(lines) == 10
    assert all("event=session" in line and "reason=evicted" in line for line in lines)


def test_new_flows_beyond_the_rate_are_dropped_and_known_ones_go_on(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, rate=3)
    client = world.confirmed()
    world.flood.send(10)
    world.serve()
    world.send(client)

    assert world.dropped(Drop.RATE) == world.rejected(Rejection.RATE) == 8
    assert len(world.proxy.udp.flows) == 3
    assert world.sources[-1] == world.sources[0]
    world.check_books()
