"""One direction of a TCP session: bytes from a source to a sink, in order, with bounded memory.

Small messages are read and written. When a read fills the buffer it was given, the direction moves to ``splice(2)``
through a pipe, and the bytes never enter this process; when the source runs dry, the pipe goes back.

Readiness is edge-triggered: ``readable`` says that the source may have more, and is cleared only when the kernel said
otherwise. What the sink does not take waits in ``pending`` or in the pipe, and meanwhile nothing is read.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from typing import Final, Protocol

from rpxy_l4.net.libc import shutdown_write
from rpxy_l4.net.stream import PIPE_BYTES, Pipe, PipePool
from rpxy_l4.workers import poller

EVENTS: Final = logging.getLogger(__name__)

BUFFER_BYTES: Final = 65_536
"""What is read at a time."""

# Bytes moved before other sessions have their turn.
_TURN: Final = 1 << 18
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
# Not for these files, not in this kernel, not in this sandbox.
_NO_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})
# A splice that brings less does not pay for its pipe.
_BULK: Final = BUFFER_BYTES // 2
_MORE_THAN_DATA: Final = ~poller.ORDINARY


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


WAIT: Final = Outcome.WAIT
"""The same, for what looks often: finding a member of an enumeration costs as much as a call."""


class _SinkLostError(Exception):
    """Writing failed."""


class Conduit:
    """What all directions of a worker share: the pipes, and whether they are of use."""

    def __init__(self, pipes: PipePool) -> None:
        """Use ``pipes`` for bulk data."""
        self.pipes = pipes
        self.splice = True
        """False once the kernel refused to splice between a socket and a pipe."""


class Parent(Protocol):
    """Whose directions these are."""

    def on_readiness(self, direction: Direction, mask: int) -> None:
        """Handle readiness of the direction's source that is more than data which the sink took."""

    def on_outcome(self, direction: Direction, outcome: Outcome) -> None:
        """Handle how moving bytes ended."""

    def abandon(self) -> None:
        """Close after a fault in this program."""


class _Nobody:
    """Whose directions those of an ended session are: a fault that is found then has nothing more to close."""

    def on_readiness(self, direction: Direction, mask: int) -> None:
        pass

    def on_outcome(self, direction: Direction, outcome: Outcome) -> None:
        pass

    def abandon(self) -> None:
        pass


_NOBODY: Final = _Nobody()


class Direction:
    """One direction, told by the poller about its source. Owns neither descriptor."""

    __deletable__ = ("other",)  # for mypyc, where the class is compiled
    __slots__ = ("_cells", "_conduit", "_counter", "_ended", "_pending", "_pipe", "_piped", "cut", "done",
                 "hup", "is_bulk", "is_plain", "moved", "other", "parent", "readable", "sink", "source")  # fmt: skip

    def __init__(
        self,
        parent: Parent,
        conduit: Conduit,
        source: int,
        sink: int,
        cells: memoryview,
        counter: int,
        first: bytes = b"",
    ) -> None:
        """Begin with ``first``, bytes that go before anything read. Moved bytes are added to ``cells[counter]``."""
        self.parent = parent
        self.other = self
        """The opposite direction, once there is one."""
        self.source = source
        self.sink = sink
        self.moved = 0
        """Bytes given to the sink."""
        self.readable = False
        """The source may have something to read."""
        self.hup = False
        """The source has ended: read on to its end of stream, whatever a short read suggests."""
        self.cut = False
        """The source was reset: deliver what it had sent, but do not make that look complete."""
        self.done = False
        """Nothing will be moved any more."""
        self.is_plain = not first
        """Nothing waits and nothing is special: what is read goes to the sink at once."""
        self.is_bulk = False
        """What came last was much: splice what comes next."""
        self._cells = cells
        self._conduit = conduit
        self._counter = counter
        self._pending: bytes | memoryview | None = first or None
        self._pipe: Pipe | None = None
        self._piped = 0
        self._ended = False

    @property
    def is_blocked(self) -> bool:
        """Whether bytes wait for the sink."""
        return self._pending is not None or self._piped > 0

    def on_event(self, descriptor: int, mask: int) -> None:  # noqa: ARG002  a direction has one source
        """Move what came, or let the parent look at what is more than that."""
        if mask & _MORE_THAN_DATA or not (self.is_plain and self.other.is_plain and mask & poller.DATA):
            self.parent.on_readiness(self, mask)
            return
        # By far the most frequent case: a message that fits, and a sink that takes it.
        try:
            amount = self._read_and_write()
        except BlockingIOError:
            return
        except _SinkLostError:
            self.parent.on_outcome(self, Outcome.SINK_LOST)
            return
        except OSError:
            self.parent.on_outcome(self, Outcome.SOURCE_LOST)
            return
        if not 0 < amount < BUFFER_BYTES or self._pending is not None:
            self.parent.on_outcome(self, self.pump())

    def on_again(self) -> None:
        """Never asked for: the parent is."""

    def abandon(self) -> None:
        """Close the session after a fault in this program."""
        self.parent.abandon()

    def stop(self) -> None:
        """Give up what is held; nothing will be moved any more."""
        self.done = True
        self.is_plain = False
        self._pending = None
        self._release()

    def forget(self) -> None:
        """Stop, and let go of the parent and the opposite direction, so that none keeps another in memory."""
        if not self.done:
            self.stop()
        self.parent = _NOBODY
        del self.other

    def _release(self) -> None:
        if self._pipe is not None:
            self._conduit.pipes.give_back(self._pipe, empty=not self._piped)
            self._pipe = None
            self._piped = 0

    def _count(self, amount: int) -> None:
        self.moved += amount
        self._cells[self._counter] += amount

    def pump(self) -> Outcome:
        """Move what can be moved now."""
        left = _TURN
        while True:
            if (self._pending is not None or self._piped) and (outcome := self._flush()) is not None:
                self.is_plain = False
                return outcome
            if self._ended:
                return self._pass_on_the_end()
            if not self.readable:
                if self._pipe is not None:
                    self._release()
                self.is_plain = not (self.hup or self.is_bulk)
                return WAIT
            if left <= 0:
                self.is_plain = False
                return Outcome.AGAIN
            try:
                left -= self._splice() if self.is_bulk else self._read_and_write()
            except BlockingIOError:
                self.readable = False
            except _SinkLostError:
                return Outcome.SINK_LOST
            except OSError:
                return Outcome.SOURCE_LOST

    def _pass_on_the_end(self) -> Outcome:
        self.stop()
        # With both ends reached, closing says the same.
        if not self.cut and not self.other.done:
            try:
                shutdown_write(self.sink)
            except OSError:
                return Outcome.SINK_LOST
        return Outcome.DONE

    def _flush(self) -> Outcome | None:
        """Give the sink what waits for it; None when nothing waits any more."""
        try:
            while self._pending is not None:
                sent = os.write(self.sink, self._pending)
                self._count(sent)
                self._pending = memoryview(self._pending)[sent:] if sent < len(self._pending) else None
            while self._pipe is not None and self._piped:
                sent = os.splice(self._pipe.read_end, self.sink, self._piped, flags=_SPLICE)
                self._count(sent)
                self._piped -= sent
        except BlockingIOError:
            return Outcome.WAIT
        except OSError:
            return Outcome.SINK_LOST
        return None

    def _splice(self) -> int:
        """Move from the source into an empty pipe; return how many bytes. Raises OSError as reading does."""
        if self._pipe is None:
            self._pipe = self._conduit.pipes.take() if self._conduit.splice else None
            if self._pipe is None:
                self.is_bulk = False
                return 0
        try:
            amount = os.splice(self.source, self._pipe.write_end, PIPE_BYTES, flags=_SPLICE)
        except BlockingIOError:
            if not self.hup:
                raise
            amount = 0
        except OSError as error:
            if error.errno not in _NO_SPLICE:
                raise
            EVENTS.warning("splice is not possible here (%s); bulk data is copied instead", error.strerror)
            self._conduit.splice = self.is_bulk = False
            self._release()
            return 0
        if not amount:
            # The source has ended, or it is dry after all, or there is urgent data, of which the poller knows as well
            # (ENDED): only reading says which, and steps over that.
            return self._read_and_write()
        self._piped = amount
        self.is_bulk = amount >= _BULK
        return amount

    def _read_and_write(self) -> int:
        """Read once and give that to the sink; return how many bytes. What the sink does not take now is pending.

        Raises OSError as reading does, _SinkLostError when writing failed otherwise than for want of room.
        """
        data = os.read(self.source, BUFFER_BYTES)
        amount = len(data)
        if not amount:
            self._ended = True
            return 0
        try:
            sent = os.write(self.sink, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _SinkLostError from error
        self._count(sent)
        if sent < amount:
            self._pending = memoryview(data)[sent:] if sent else data
        if amount == BUFFER_BYTES:
            self.readable = True
            self.is_bulk = self._conduit.splice
        else:
            # epoll(7): less than asked for means that the source is dry, and more makes a new edge; unless the end is
            # behind it.
            self.readable = self.hup
        return amount
