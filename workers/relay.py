"""One direction of a TCP session: bytes from a source to a sink, in order, with bounded memory.

Small messages go through one buffer shared by the whole worker. When a read fills that buffer, the direction moves to
``splice(2)`` through a pipe, and the bytes never enter this process; when the source runs dry, the pipe goes back.

Readiness is edge-triggered: ``readable`` says that the source may have more, and is cleared only when the kernel said
otherwise. What the sink does not take waits in ``pending`` or in the pipe, and meanwhile nothing is read.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import socket
from typing import Final

from rpxy_l4.net.stream import PIPE_BYTES, Pipe, PipePool

EVENTS: Final = logging.getLogger(__name__)

BUFFER_BYTES: Final = 65_536

# Bytes moved before other sessions have their turn.
_TURN: Final = 1 << 20
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Outcome(enum.Enum):
    """How a call of :meth:`Direction.pump` ended."""

    WAIT = enum.auto()
    """Nothing can be moved until the next event."""
    AGAIN = enum.auto()
    """There is more, but others should have their turn."""
    DONE = enum.auto()
    """The source's end of stream was passed on to the sink."""
    SOURCE_LOST = enum.auto()
    """Reading failed: the source was reset or vanished."""
    SINK_LOST = enum.auto()
    """Writing failed: the sink was reset or vanished. What it sent before may still be readable."""


class Conduit:
    """What all directions of a worker share: one buffer and the pipes."""

    def __init__(self, pipes: PipePool) -> None:
        """Use ``pipes`` for bulk data."""
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.pipes = pipes
        self.splice = True
        """False once the kernel refused to splice between a socket and a pipe."""


class Direction:
    """One direction. Owns neither socket."""

    __slots__ = ("_cells", "_counter", "_ended", "_pending", "_pipe", "_piped", "cut", "done", "hup", "moved",
                 "readable", "sink", "source")  # fmt: skip

    def __init__(
        self, source: socket.socket, sink: socket.socket, cells: memoryview, counter: int, first: bytes | bytearray
    ) -> None:
        """Begin with ``first``, bytes that go before anything read. Moved bytes are added to ``cells[counter]``."""
        self.source = source
        self.sink = sink
        self.moved = 0
        """Bytes given to the sink."""
        self.readable = True
        self.hup = False
        """The source has ended: read on to its end of stream, whatever a short read suggests."""
        self.cut = False
        """The source was reset: deliver what it had sent, but do not make that look complete."""
        self.done = False
        """Nothing will be moved any more."""
        self._cells = cells
        self._counter = counter
        self._pending: memoryview | None = memoryview(first) if first else None
        self._pipe: Pipe | None = None
        self._piped = 0
        self._ended = False

    @property
    def is_blocked(self) -> bool:
        """Whether bytes wait for the sink."""
        return self._pending is not None or self._piped > 0

    def stop(self, conduit: Conduit) -> None:
        """Give up what is held; nothing will be moved any more."""
        self.done = True
        self._pending = None
        self._release(conduit)

    def _release(self, conduit: Conduit) -> None:
        if self._pipe is not None:
            conduit.pipes.give_back(self._pipe, empty=not self._piped)
            self._pipe = None
            self._piped = 0

    def _count(self, amount: int) -> None:
        self.moved += amount
        self._cells[self._counter] += amount

    def pump(self, conduit: Conduit) -> Outcome:
        """Move what can be moved now."""
        left = _TURN
        while True:
            if self.is_blocked and (outcome := self._flush()) is not None:
                return outcome
            if self._ended:
                self.stop(conduit)
                if self.cut:
                    return Outcome.DONE
                try:
                    self.sink.shutdown(socket.SHUT_WR)
                except OSError:
                    return Outcome.SINK_LOST
                return Outcome.DONE
            if not self.readable:
                self._release(conduit)
                return Outcome.WAIT
            if left <= 0:
                return Outcome.AGAIN
            try:
                amount = self._fill_pipe(conduit) if self._pipe is not None else self._relay_buffer(conduit)
            except BlockingIOError:
                self.readable = False
                continue
            except OSError:
                return Outcome.SOURCE_LOST
            if amount is None:
                return Outcome.SINK_LOST
            left -= amount

    def _flush(self) -> Outcome | None:
        """Give the sink what waits for it; None when nothing waits any more."""
        try:
            while self._pending is not None:
                sent = self.sink.send(self._pending)
                self._count(sent)
                self._pending = self._pending[sent:] if sent < len(self._pending) else None
            while self._pipe is not None and self._piped:
                sent = os.splice(self._pipe.read_end, self.sink.fileno(), self._piped, flags=_SPLICE)
                self._count(sent)
                self._piped -= sent
        except BlockingIOError:
            return Outcome.WAIT
        except OSError:
            return Outcome.SINK_LOST
        return None

    def _fill_pipe(self, conduit: Conduit) -> int:
        """Move from the source into the empty pipe; return how many bytes. Raises OSError as reading does."""
        assert self._pipe is not None  # noqa: S101  the caller checked
        try:
            amount = os.splice(self.source.fileno(), self._pipe.write_end, PIPE_BYTES, flags=_SPLICE)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS}:
                raise
            EVENTS.warning("splice is not possible here (%s); bulk data is copied instead", error.strerror)
            conduit.splice = False
            self._release(conduit)
            return 0
        self._piped = amount
        self._ended = amount == 0
        return amount

    def _relay_buffer(self, conduit: Conduit) -> int | None:
        """Read once and send that; return how many bytes, None when the sink is lost. OSError: reading failed."""
        buffer = conduit.buffer
        amount = self.source.recv_into(buffer)
        if amount == 0:
            self._ended = True
            return 0
        if amount == BUFFER_BYTES:
            if conduit.splice:
                self._pipe = conduit.pipes.take()
        elif not self.hup:
            # epoll(7): less than asked for means that the source is dry, and more makes a new edge.
            self.readable = False
        try:
            sent = self.sink.send(buffer[:amount])
        except BlockingIOError:
            sent = 0
        except OSError:
            return None
        self._count(sent)
        if sent < amount:
            self._pending = memoryview(bytes(buffer[sent:amount]))
        return amount
