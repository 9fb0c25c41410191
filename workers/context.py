"""What every session of a worker shares."""

from __future__ import annotations

import asyncio
import bisect
import logging
import random
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from rpxy_l4 import verdict
from rpxy_l4.balance import rank, rank_addresses
from rpxy_l4.control import Resolved
from rpxy_l4.detect.udp import preload
from rpxy_l4.endings import Detected
from rpxy_l4.metrics.layout import (
    LISTENER_CELLS,
    MICROSECONDS,
    TARGET_CELLS,
    Cell,
    listener_offset,
    target_offset,
)
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.inbox import BulkInbox, Inbox
from rpxy_l4.net.stream import PipePool
from rpxy_l4.router import Router
from rpxy_l4.snapshot import Route, Side, Snapshot, Target
from rpxy_l4.timers import TimerTable, WaitingLines
from rpxy_l4.workers.access_log import AccessLog
from rpxy_l4.workers.poller import Owner, Poller, give_up
from rpxy_l4.workers.relay import Conduit

EVENTS: Final = logging.getLogger(__name__)

_IDLE_PIPES: Final = 64
# For logs, the event loop, listening sockets, idle pipes, and whatever a library opens.
_RESERVED_DESCRIPTORS: Final = 256
# Detection and connect deadlines may pass this much later than asked for; fewer wake-ups in exchange.
_GRANULARITY: Final = 0.05


RECOGNISED: Final = {protocol: Detected(protocol.value) for protocol in verdict.Protocol}
"""What detection says when it recognised a protocol."""


class Waiting(Owner, Protocol):
    """Who waits for something, for a limited time."""

    def on_deadline(self) -> None:
        """Handle that the time is over."""


class Timed(Owner, Protocol):
    """Who has a deadline that moves."""

    def on_deadline(self, now: float) -> None:
        """Handle that a deadline passed that was set for this owner, perhaps an outdated one."""


class Alarm:
    """Deadlines of sessions: one timer of the event loop for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        """Begin with nothing due."""
        self._loop = loop
        self._poller = poller
        self._table: TimerTable[Timed] = TimerTable(_GRANULARITY)
        self._lines: WaitingLines[Waiting] = WaitingLines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def add(self, deadline: float, owner: Timed) -> None:
        """Call ``owner.on_deadline`` at or shortly after ``deadline``, seconds of CLOCK_MONOTONIC."""
        self._table.add(deadline, owner)
        self._arm(deadline + _GRANULARITY)

    def wait(self, seconds: float, owner: Waiting) -> None:
        """Call ``owner.on_deadline`` once, in ``seconds`` or shortly after, unless :meth:`cancel` comes first."""
        now = self._poller.now
        self._lines.add(now, seconds, owner)
        self._arm(now + seconds)

    def cancel(self, seconds: float, owner: Waiting) -> None:
        """Forget what ``wait`` was asked with the same arguments; harmless when that is over."""
        self._lines.discard(seconds, owner)

    def _arm(self, due: float) -> None:
        """Let the timer ring at ``due``, or earlier if it was going to."""
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        delay = max(_GRANULARITY, due - time.monotonic())
        self._timer = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._poller.begin_batch()
        now = self._poller.now
        for moving in self._table.expire(now):
            try:
                moving.on_deadline(now)
            except Exception:  # noqa: BLE001  the loop's edge: a fault in one session must not end the others
                give_up(moving)
        for waiting in self._lines.expire(now):
            try:
                waiting.on_deadline()
            except Exception:  # noqa: BLE001  as above
                give_up(waiting)
        self._poller.end_batch()
        for due in (self._table.next_deadline(), self._lines.next_deadline()):
            if due is not None:
                self._arm(due)


class Half:
    """The TCP or UDP side of the configuration in force, ready for use."""

    __slots__ = ("cells", "router", "side", "wanted")

    def __init__(self, side: Side, cells: memoryview) -> None:
        """Compile what each new session needs."""
        self.side = side
        self.router = Router(side)
        self.wanted = side.wanted
        self.cells = cells
        """This listener's block in the worker's row."""


class Generation:
    """A configuration in force; sessions keep the one they began with."""

    __slots__ = ("snapshot", "tcp", "udp")

    def __init__(self, snapshot: Snapshot, context: Context) -> None:
        """Compile a snapshot."""
        self.snapshot = snapshot
        if snapshot.udp is not None:
            preload(snapshot.udp.wanted)
        self.tcp = None if snapshot.tcp is None else Half(snapshot.tcp, context.listener_cells(snapshot.tcp.series))
        self.udp = None if snapshot.udp is None else Half(snapshot.udp, context.listener_cells(snapshot.udp.series))


class OpenSessions:
    """How many sessions are open over all workers, from their rows."""

    def __init__(self, rows: Sequence[memoryview], slot: int, opened: Cell, closed: Cell) -> None:
        """Count for the worker of row ``slot``."""
        self._own = rows[slot]
        self._others = [row for number, row in enumerate(rows) if number != slot]
        self._opened = opened
        self._closed = closed
        self._elsewhere = 0
        self._at = 0.0

    def count(self, now: float) -> int:
        """Return the number; that of the others as it was when ``now``, the time of a batch, was new."""
        opened, closed = self._opened, self._closed
        if self._at != now:
            self._at = now
            self._elsewhere = sum(row[opened] - row[closed] for row in self._others)
        return self._elsewhere + self._own[opened] - self._own[closed]


class Context:
    """The worker's resources."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slot: int, slots: int, slab: Slab, log: AccessLog) -> None:
        """Write counters to row ``slot``; rows 0 to ``slots`` - 1 are those of all workers."""
        self.loop = loop
        self.slot = slot
        self.row = slab.row(slot)
        self.poller = Poller()
        self.alarm = Alarm(loop, self.poller)
        self.conduit = Conduit(PipePool(_IDLE_PIPES))
        self.inbox = Inbox()
        self.bulk_inbox = BulkInbox()
        self.log = log
        self.random = random.Random()  # noqa: S311  a choice of targets is no secret
        self.addresses: Resolved = {}
        self._resuming = False
        self.demand = 0
        """Descriptors that the present sessions have or may come to need."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._supply = max(limit - _RESERVED_DESCRIPTORS, limit // 2)
        rows = [slab.row(i) for i in range(slots)]
        self.tcp_sessions = OpenSessions(rows, slot, Cell.TCP_OPENED, Cell.TCP_CLOSED)
        self.udp_sessions = OpenSessions(rows, slot, Cell.UDP_OPENED, Cell.UDP_CLOSED)
        self._targets: dict[int, memoryview] = {}

    def listener_cells(self, series: int) -> memoryview:
        """Return a block of the listener table, of this worker's row."""
        start = listener_offset(series)
        return self.row[start : start + LISTENER_CELLS]

    def target_cells(self, target: Target) -> memoryview:
        """Return the target's block, of this worker's row."""
        cells = self._targets.get(target.series)
        if cells is None:
            start = target_offset(target.series)
            cells = self._targets[target.series] = self.row[start : start + TARGET_CELLS]
        return cells

    def has_descriptors(self, share: float = 1.0) -> bool:
        """Whether another session would get the descriptors it may come to need, within a share of all there are."""
        return self.demand + 2 * self.conduit.pipes.lent < self._supply * share

    def resolve(self, target: Target) -> Sequence[str]:
        """Return the IP literals of a target; empty while its name has none."""
        return self.addresses.get(target.host, ()) if target.is_name else (target.host,)

    def candidates(self, route: Route, client: tuple[str, int]) -> Iterator[tuple[Target, str]]:
        """Return every address of every target of a route, in the order in which to try them for a client."""
        if len(route.targets) == 1 and not route.targets[0].is_name:
            return iter([(route.targets[0], route.targets[0].host)])
        return self._ranked(route, client)

    def _ranked(self, route: Route, client: tuple[str, int]) -> Iterator[tuple[Target, str]]:
        host, port = client
        tried: set[tuple[str, int]] = set()  # a target may stand in the list twice, for weight
        for target in rank(route.load_balance, route.targets, host, port, self.random):
            for address in rank_addresses(route.load_balance, target, self.resolve(target), host, port, self.random):
                if (address, target.port) not in tried:
                    tried.add((address, target.port))
                    yield target, address

    def again(self, owner: Owner) -> None:
        """Give ``owner`` another turn after the others had theirs."""
        self.poller.again(owner)
        if not self._resuming:
            self._resuming = True
            self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        self.poller.resume()
        self._resuming = self.poller.has_again
        if self._resuming:
            self.loop.call_soon(self._resume)


def observe(cells: memoryview, offset: int, bounds: Sequence[float], seconds: float) -> None:
    """Add one observation, which must not be negative, to the histogram at ``offset``."""
    cells[offset + bisect.bisect_left(bounds, seconds)] += 1
    cells[offset + len(bounds) + 1] += int(seconds * MICROSECONDS)
