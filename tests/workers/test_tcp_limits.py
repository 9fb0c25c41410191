"""Connections beyond ``tcp_max_connections`` and ``tcp_max_new_per_second``, reset or waiting."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.endings import Rejection
from rpxy_l4.metrics.layout import L_REJECTED, REJECTION_INDEX, Cell, listener_offset
from rpxy_l4.snapshot import AtLimit, Side, Target
from rpxy_l4.verdict import Transport
from tests.support.in_process import InProcess, side


class World:
    """A proxy in front of a target that accepts and says nothing."""

    def __init__(self, folder: Path, stack: ExitStack, workers: int = 1, **limits: object) -> None:
        self._stack = stack
        self._target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        port = self._target.getsockname()[1]
        target = Target(f"127.0.0.1:{port}", "127.0.0.1", port, is_name=False)
        made: Side = side(Transport.TCP, None, target, **limits)  # type: ignore[arg-type]  # as the test says
        self.proxy = InProcess(folder, made, None, workers)
        stack.callback(self._close)

    def _close(self) -> None:
        for session in list(self.proxy.sessions):
            session.end()
        self.proxy.tcp.close()
        for session in list(self.proxy.sessions):
            session.end()
        self.proxy.context.poller.end_batch()
        self.proxy.loop.close()

    def connect(self, count: int) -> list[socket.socket]:
        made = [socket.create_connection(("127.0.0.1", self.proxy.port)) for _ in range(count)]
        for client in made:
            self._stack.enter_context(client)
        return made

    def reset(self, client: socket.socket) -> None:
        """End the client's session: the target would never end its own direction."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    def serve(self) -> None:
        """Handle what is there now."""
        self.proxy.context.poller.dispatch()

    @property
    def open(self) -> int:
        return len(self.proxy.sessions)

    def rejected(self, rejection: Rejection) -> int:
        return self.proxy.context.row[listener_offset(0) + L_REJECTED + REJECTION_INDEX[rejection]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def is_reset(client: socket.socket) -> bool:
    client.settimeout(0)
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False
    return False


def test_connections_beyond_the_limit_are_reset(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, max_sessions=2)
    clients = world.connect(4)
    world.serve()

    assert [is_reset(client) for client in clients] == [False, False, True, True]
    assert world.rejected(Rejection.LIMIT) == 2


def test_connections_beyond_the_rate_are_reset(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, max_new_per_second=3)
    clients = world.connect(5)
    world.serve()

    assert sum(map(is_reset, clients)) == 2
    assert world.rejected(Rejection.RATE) == 2
    assert world.open == 3


def test_connections_beyond_the_limit_wait_until_a_session_ends(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, max_sessions=2, at_limit=AtLimit.WAIT)
    first, *_ = world.connect(4)
    world.serve()
    assert world.open == 2
    world.reset(first)
    world.proxy.run_until(lambda: world.proxy.context.row[Cell.TCP_OPENED] == 3)

    assert world.open == 2
    assert world.rejected(Rejection.LIMIT) == 0


def test_a_session_that_ends_in_another_worker_makes_room(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, workers=2, max_sessions=2, at_limit=AtLimit.WAIT)
    other = world.proxy.slab.row(1)
    other[Cell.HEARTBEAT] = 1
    other[Cell.TCP_OPENED] = 2
    world.connect(1)
    world.serve()
    assert world.open == 0
    other[Cell.TCP_CLOSED] = 1
    world.proxy.run_until(lambda: world.open == 1)


def test_a_worker_with_more_than_its_share_leaves_a_place_to_others_for_a_moment(
    tmp_path: Path, stack: ExitStack
) -> None:
    world = World(tmp_path, stack, workers=2, max_sessions=3, at_limit=AtLimit.WAIT)
    other = world.proxy.slab.row(1)
    other[Cell.HEARTBEAT] = 1
    clients = world.connect(4)
    world.serve()
    assert world.open == 3
    world.reset(clients[0])
    world.proxy.run_until(lambda: world.open == 2)
    other[Cell.TCP_OPENED] = 1
    world.reset(clients[1])
    world.proxy.run_until(lambda: world.open == 1)

    # Now it has not, and nobody else takes the place.
    world.reset(clients[2])
    world.proxy.run_until(lambda: world.proxy.context.row[Cell.TCP_OPENED] == 4)


def test_connections_beyond_the_rate_wait_for_their_turn(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, max_new_per_second=10, at_limit=AtLimit.WAIT)
    world.connect(12)
    for _ in range(3):
        world.serve()
    assert world.open == 10
    began = world.proxy.context.poller.now
    world.proxy.run_until(lambda: world.open == 12)

    assert world.proxy.context.poller.now - began >= 0.15
    assert world.rejected(Rejection.RATE) == 0


def test_a_full_worker_does_not_spin(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, max_sessions=1, at_limit=AtLimit.WAIT)
    world.connect(3)
    world.serve()

    assert world.open == 1
    assert len(world.proxy.context.poller) == 2, "the session's sockets, and not the listener's"


def test_what_other_workers_let_in_counts_for_the_rate(tmp_path: Path, stack: ExitStack) -> None:
    world = World(tmp_path, stack, workers=2, max_new_per_second=5)
    world.proxy.slab.row(1)[Cell.TCP_ADMITTED] = 4
    world.connect(3)
    world.serve()

    assert world.open == 1
    assert world.rejected(Rejection.RATE) == 2


def test_with_fewer_places_than_workers_a_place_is_taken_as_soon_as_it_is_free(
    tmp_path: Path, stack: ExitStack
) -> None:
    world = World(tmp_path, stack, workers=3, max_sessions=2, at_limit=AtLimit.WAIT)
    for number in (1, 2):
        world.proxy.slab.row(number)[Cell.HEARTBEAT] = 1
    first, *_ = world.connect(3)
    for _ in range(2):
        world.serve()
    assert world.open == 2
    world.reset(first)
    for _ in range(2):
        world.serve()  # in which no time passes
    assert world.open == 1, "this worker has one of the two, and others none"
    (session,) = world.proxy.sessions
    session.end()
    world.proxy.context.poller.end_batch()
    world.serve()

    assert world.open == 1
