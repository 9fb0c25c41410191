"""Invariant: however reads and writes are cut, the sink gets all of the source's bytes, in order, and then its end."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.net.stream import PipePool
from rpxy_l4.workers import poller
from rpxy_l4.workers.relay import BUFFER_BYTES, Conduit, Direction, Outcome


class Line:
    """A direction between two real TCP connections, with the far ends in the test's hands."""

    def __init__(self, *, first: bytes = b"", splice: bool = True, window: int | None = None) -> None:
        self.pipes = PipePool(1)
        self.conduit = Conduit(self.pipes)
        self.conduit.splice = splice
        self.cells = memoryview(bytearray(8)).cast("Q")
        self.sender, self.source = _connection(None)
        self.receiver, self.sink = _connection(window)
        self.outcomes: list[Outcome] = []
        source, sink = self.source.fileno(), self.sink.fileno()
        self.direction = Direction(self, self.conduit, source, sink, self.cells, 0, first)
        self.direction.other = Direction(self, self.conduit, sink, source, self.cells, 0)

    def pump(self) -> Outcome:
        self.direction.readable = True
        return self.direction.pump()

    def on_readiness(self, direction: Direction, mask: int) -> None:
        direction.readable = direction.readable or bool(mask & poller.READABLE)
        direction.hup = direction.hup or bool(mask & poller.ENDED)
        self.on_outcome(direction, direction.pump())

    def on_outcome(self, direction: Direction, outcome: Outcome) -> None:
        assert direction is self.direction
        self.outcomes.append(outcome)

    def abandon(self) -> None:
        raise AssertionError("nothing is wrong")

    def close(self) -> None:
        self.direction.stop()
        for sock in (self.sender, self.source, self.receiver, self.sink):
            sock.close()


def _connection(window: int | None) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if window is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window)
        far = socket.socket()
        if window is not None:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        far.connect(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    far.setblocking(False)
    return far, near


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def carry(line: Line, data: bytes, cut: Random) -> bytes:
    """Send ``data`` through the line in random cuts, with a receiver that reads as it likes."""
    rest, got, closed = memoryview(data), bytearray(), False
    for _ in range(1_000_000):
        if rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[line.sender.send(rest[: cut.randint(1, 300_000)]) :]
        elif not closed:
            closed = True
            line.sender.shutdown(socket.SHUT_WR)
        if not line.direction.done:
            assert line.pump() in {Outcome.WAIT, Outcome.AGAIN, Outcome.DONE}
        try:
            piece = line.receiver.recv(cut.randint(1, 300_000))
        except BlockingIOError:
            continue
        if not piece:
            return bytes(got)
        got += piece
    raise AssertionError("the end never came")


@settings(max_examples=25, deadline=None)
@given(
    size=st.one_of(st.integers(0, 2000), st.integers(BUFFER_BYTES - 2, 3_000_000)),
    seed=st.integers(0, 2**32),
    splice=st.booleans(),
    window=st.sampled_from([None, 4096]),
    first=st.binary(max_size=100),
)
def test_all_bytes_arrive_in_order_and_then_the_end(
    size: int, seed: int, splice: bool, window: int | None, first: bytes
) -> None:
    cut = Random(seed)
    data = cut.randbytes(size)
    line = Line(first=first, splice=splice, window=window)
    try:
        assert carry(line, data, cut) == first + data
        assert line.direction.moved == line.cells[0] == len(first) + len(data)
        assert line.pipes.lent == 0
    finally:
        line.close()


@pytest.mark.parametrize("splice", [True, False])
def test_a_sink_that_does_not_read_bounds_what_is_held(splice: bool) -> None:
    line = Line(splice=splice, window=4096)
    sent = 0
    try:
        for _ in range(2000):
            try:
                sent += line.sender.send(bytes(65536))
            except BlockingIOError:
                assert line.pump() is Outcome.WAIT
                try:
                    sent += line.sender.send(b"x")
                except BlockingIOError:
                    break
            line.pump()
        assert line.direction.is_blocked
        pending = line.direction._pending
        assert pending is None or len(pending) <= BUFFER_BYTES
        assert line.direction._piped <= 1 << 20
    finally:
        line.close()


def test_a_bulk_stream_lets_others_have_their_turn(line: Line) -> None:
    outcomes = set()
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            line.sender.send(bytes(1 << 20))
        outcomes.add(line.pump())
        with contextlib.suppress(BlockingIOError):
            while line.receiver.recv(1 << 22):
                pass
    assert outcomes <= {Outcome.WAIT, Outcome.AGAIN}


def test_a_reset_source_is_told_from_an_ended_one(line: Line) -> None:
    line.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.sender.close()

    assert line.pump() is Outcome.SOURCE_LOST


def test_a_reset_sink_is_told_from_an_ended_source(line: Line) -> None:
    line.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.receiver.close()
    line.sender.send(b"x")

    assert line.pump() is Outcome.SINK_LOST


def test_an_end_that_came_with_the_last_bytes_is_not_missed(line: Line) -> None:
    line.sender.send(b"last words")
    line.sender.shutdown(socket.SHUT_WR)
    line.direction.hup = True

    assert line.pump() is Outcome.DONE
    assert line.receiver.recv(100) == b"last words"
    assert line.receiver.recv(100) == b""


def test_events_alone_carry_small_messages_and_bulk_and_the_end() -> None:
    """As the poller does it: an edge-triggered event for what came, and nothing else."""
    line = Line()
    sent, got = bytearray(), bytearray()
    cut = Random(1)
    poll = select.epoll()
    poll.register(line.source, poller.STREAM)
    poll.register(line.receiver, select.EPOLLIN)
    try:
        for size in (1, 100, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3, 2_000_000, 5, 700_000, 1, 0):
            rest = memoryview(cut.randbytes(size))
            sent += rest
            if not size:
                line.sender.shutdown(socket.SHUT_WR)
            while len(got) < len(sent) or not (size or line.outcomes[-1] is Outcome.DONE):
                if rest:
                    with contextlib.suppress(BlockingIOError):
                        rest = rest[line.sender.send(rest) :]
                for descriptor, mask in poll.poll(5):
                    if descriptor == line.source.fileno():
                        line.direction.on_event(descriptor, mask)
                    else:
                        got += line.receiver.recv(1 << 20)
                if line.direction.is_blocked or line.direction.readable:
                    line.direction.pump()
        assert got == sent
        assert line.pipes.lent == 0
    finally:
        poll.close()
        line.close()
