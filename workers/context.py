"""What every session of a worker shares."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from rpxy_l4 import verdict
from rpxy_l4.access_log import AccessLog
from rpxy_l4.balance import rank, rank_addresses
from rpxy_l4.control import Resolved
from rpxy_l4.detect.udp import preload
from rpxy_l4.endings import Detected
from rpxy_l4.kernel.clients import Clients
from rpxy_l4.kernel.flows import Amount, KernelFlows
from rpxy_l4.kernel.held import HeldPaths
from rpxy_l4.limits import TokenBucket
from rpxy_l4.metrics.layout import (
    L_SOCKET_ERRORS,
    LISTENER_CELLS,
    SOCKET_ERRNOS,
    T_BYTES_IN,
    T_BYTES_OUT,
    T_DATAGRAMS_IN,
    T_DATAGRAMS_OUT,
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
from rpxy_l4.verdict import Transport
from rpxy_l4.workers.colleagues import Colleagues
from rpxy_l4.workers.living import Living
from rpxy_l4.workers.poller import Owner, Poller, give_up
from rpxy_l4.workers.relay import Conduit
from rpxy_l4.workers.unconfirmed import Unconfirmed, Yielding

EVENTS: Final = logging.getLogger(__name__)

_IDLE_PIPES: Final = 64
# For logs, the event loop, listening sockets, idle pipes, and whatever a library opens.
_RESERVED_DESCRIPTORS: Final = 256
# Detection and connect deadlines may pass this much later than asked for; fewer wake-ups in exchange.
_GRANULARITY: Final = 0.05
# An alarm so late means that the process stood still, and perhaps the whole machine. Then what came meanwhile is served
# first, for so many seconds: nobody was silent who only was not heard.
_LATE: Final = 0.5
_AFTER_STANDSTILL: Final = 0.2


# How far below a limit, at least, the number of sessions need not be exact, and how old it may be there.
_NEAR: Final = 64
_FRESH_SECONDS: Final = 0.01


RECOGNISED: Final = {protocol: Detected(protocol.value) for protocol in verdict.Protocol}
"""What detection says when it recognised a protocol."""


class Waiting(Owner, Protocol):
    """Who waits for something, for a limited time."""

    def on_deadline(self) -> None:
        """Handle that the time is over; of a deadline that moves, perhaps only that of an outdated one."""


class Alarm:
    """Deadlines of sessions: one timer of the event loop for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller) -> None:
        """Begin with nothing due."""
        self._loop = loop
        self._poller = poller
        self._table: TimerTable[Waiting] = TimerTable(_GRANULARITY)
        self._lines: WaitingLines[Waiting] = WaitingLines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._was_late = False

    def add(self, deadline: float, owner: Waiting) -> None:
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
        is_late = time.monotonic() - self._timer_at > _LATE and not self._was_late
        self._was_late = is_late
        if is_late:
            # Once only: a loop that is late all the time must not keep everybody for ever.
            self._arm(time.monotonic() + _AFTER_STANDSTILL)
            return
        self._poller.begin_batch()
        now = self._poller.now
        for waiting in self._table.expire(now) + self._lines.expire(now):
            try:
                waiting.on_deadline()
            except Exception:  # noqa: BLE001  the loop's edge: a fault in one session must not end the others
                give_up(waiting)
        self._poller.end_batch()
        for due in (self._table.next_deadline(), self._lines.next_deadline()):
            if due is not None:
                self._arm(due)


class Half:
    """The TCP or UDP side of the configuration in force, ready for use."""

    __slots__ = ("admission", "cells", "router", "served", "side", "wanted")

    def __init__(self, side: Side, cells: memoryview, admission: Admission | None = None) -> None:
        """Compile what each new session needs."""
        self.side = side
        self.admission = admission
        """None: new sessions may come at any rate."""
        self.router = Router(side)
        self.wanted = side.wanted
        routes = (*side.routes, *(() if side.default is None else (side.default,)))
        self.served = {target.series: (route, target) for route in routes for target in route.targets}
        """What a series of the counters stands for."""
        self.cells = cells
        """This listener's block in the worker's row."""


class Generation:
    """A configuration in force; sessions keep the one they began with."""

    __slots__ = ("learns_clients", "served", "snapshot", "tcp", "udp")

    def __init__(self, snapshot: Snapshot, context: Context) -> None:
        """Compile a snapshot."""
        self.snapshot = snapshot
        if snapshot.udp is not None:
            preload(snapshot.udp.wanted)
        self.tcp = None if snapshot.tcp is None else context.half(snapshot.tcp)
        self.udp = None if snapshot.udp is None else context.half(snapshot.udp)
        self.learns_clients = snapshot.why_tcp_stays is None
        """Whether the kernel path may take TCP connections."""
        halves = [half for half in (self.tcp, self.udp) if half is not None]
        self.served = frozenset(series for half in halves for series in half.served)
        """The series of all targets."""


class OpenSessions:
    """How many sessions are open over all workers, from their rows."""

    def __init__(
        self, rows: Sequence[memoryview], own: int, opened: Cell, closed: Cell, kernel: Callable[[], int] | None = None
    ) -> None:
        """Count for the worker of row ``own``; ``kernel`` says how many are in the kernel path besides."""
        self._kernel = kernel
        self._own = rows[own]
        self._others = [row for number, row in enumerate(rows) if number != own]
        self._opened = opened
        self._closed = closed
        self._elsewhere = 0
        self._at = 0.0

    def count(self, now: float, limit: int) -> int:
        """Return the number. ``now`` is the time of a batch.

        That of the others is as it was when the batch began, if that makes the sum anything near ``limit``; otherwise
        it may be some milliseconds older, because on a machine with many processors reading all rows takes longer than
        all else that a limit costs.
        """
        opened, closed = self._opened, self._closed
        own = self._own[opened] - self._own[closed]
        if now != self._at:
            near = limit - max(limit >> 3, _NEAR)
            if now - self._at > _FRESH_SECONDS or self._elsewhere + own > near:
                self._at = now
                self._elsewhere = sum(row[opened] - row[closed] for row in self._others)
                if self._kernel is not None:
                    self._elsewhere += self._kernel()
        return self._elsewhere + own


class Admission:
    """How fast new sessions may come, over all workers.

    Counted together, not divided: the kernel spreads clients over the workers by a hash, and of few clients most may
    be those of one worker.
    """

    def __init__(self, rows: Sequence[memoryview], own: int, cell: Cell, rate: int, now: float) -> None:
        """Let ``rate`` a second pass, and count those of this worker in ``cell`` of row ``own``."""
        self.rate = rate
        self._own = rows[own]
        self._others = [row for number, row in enumerate(rows) if number != own]
        self._cell = cell
        self._at = -1.0
        self._elsewhere = 0
        self._bucket = TokenBucket(rate, now, sum(row[cell] for row in rows))

    def delay(self, now: float) -> float:
        """Return in how many seconds another session may come, 0.0 for at once. ``now`` is the time of a batch."""
        if self._at != now:
            self._at = now
            self._elsewhere = sum(row[self._cell] for row in self._others)
        return self._bucket.delay(now, self._elsewhere + self._own[self._cell])

    def admit(self) -> None:
        """Count a session that comes."""
        self._own[self._cell] += 1


class Context:
    """The worker's resources."""

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int, workers: int, slab: Slab, log: AccessLog) -> None:
        """Write counters to row ``number``; rows 0 to ``workers`` - 1 are those that workers can have."""
        self.loop = loop
        self.row = slab.row(number)
        self.poller = Poller()
        self.alarm = Alarm(loop, self.poller)
        self.conduit = Conduit(PipePool(_IDLE_PIPES))
        self.inbox = Inbox()
        self.bulk_inbox = BulkInbox()
        self.log = log
        self.random = random.Random()  # noqa: S311  a choice of targets is no secret
        self.addresses: Resolved = {}
        self.kernel: KernelFlows | None = None
        """The kernel path; None where there is none."""
        self.clients: Clients | None = None
        """Those whose TCP connections the kernel path may begin; None where there is none."""
        self.held = HeldPaths()
        """What TCP connections in the kernel need to outlive the supervisor."""
        self.is_alone = False
        """Whether the supervisor is gone."""
        self._resuming = False
        self.demand = 0
        """Descriptors that the present sessions have or may come to need."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._supply = max(limit - _RESERVED_DESCRIPTORS, limit // 2)
        rows = [slab.row(i) for i in range(workers)]
        self._kernel_row = slab.row(workers)
        """Behind theirs: the supervisor counts connections in the kernel path there."""
        self.tcp_sessions = OpenSessions(rows, number, Cell.TCP_OPENED, Cell.TCP_CLOSED, self._in_kernel)
        self.udp_sessions = OpenSessions(rows, number, Cell.UDP_OPENED, Cell.UDP_CLOSED)
        self.living = Living(rows, number)
        self.unconfirmed = Unconfirmed(self.row, self.living)
        self.undecided: dict[Yielding, None] = {}
        """TCP sessions without a route as yet, oldest first."""
        self.colleagues: Colleagues | None = None
        """To whom accepted connections may be handed; None while there is nobody, or it is not wanted."""
        self.rows = rows
        self._number = number
        self._admissions: dict[Transport, Admission] = {}
        self._targets: dict[int, memoryview] = {}

    def _in_kernel(self) -> int:
        """Return how many TCP connections are in the kernel path."""
        if self.is_alone:
            return self.held.live
        row = self._kernel_row
        # Those of all kernel paths, a second ago; and those of the present one.
        counted = row[Cell.TCP_OPENED] - row[Cell.TCP_CLOSED]
        return counted if self.clients is None else max(counted, self.clients.live)

    def half(self, side: Side) -> Half:
        """Return a side of a configuration ready for use. A rate that stays as it was goes on where it was."""
        admission = self._admissions.pop(side.transport, None)
        rate = side.max_new_per_second
        if rate and (admission is None or admission.rate != rate):
            cell = Cell.TCP_ADMITTED if side.transport is Transport.TCP else Cell.UDP_ADMITTED
            admission = Admission(self.rows, self._number, cell, rate, self.poller.now)
        if not rate or admission is None:
            return Half(side, self.listener_cells(side.series))
        self._admissions[side.transport] = admission
        return Half(side, self.listener_cells(side.series), admission)

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

    def count_rest(self, series: int, from_clients: Amount, from_targets: Amount) -> None:
        """Count what has passed of a flow that is gone, in the block of its target."""
        cells = self.row[target_offset(series) : target_offset(series) + TARGET_CELLS]
        cells[T_DATAGRAMS_IN] += from_clients.packets
        cells[T_BYTES_IN] += from_clients.bytes
        cells[T_DATAGRAMS_OUT] += from_targets.packets
        cells[T_BYTES_OUT] += from_targets.bytes
        self.row[Cell.KERNEL_DATAGRAMS] += from_clients.packets + from_targets.packets

    def has_descriptors(self, share: float = 1.0) -> bool:
        """Whether another session would get the descriptors it may come to need, within a share of all there are."""
        return self.demand + 2 * self.conduit.pipes.lent < self._supply * share

    def make_way(self, share: float) -> bool:
        """Let the oldest unconfirmed flow give way; whether one did.

        Not when what was let go in this batch, and is closed at its end, would take more than ``share`` leaves free.
        """
        return self.poller.closing < self._supply * (1.0 - share) and self.unconfirmed.make_way()

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


def count_shortage(cells: memoryview, number: int | None) -> bool:
    """Count in a listener's cells what a socket towards a target could not be had for; False: no want of anything."""
    name = errno.errorcode.get(number or 0, "")
    if name not in SOCKET_ERRNOS:
        return False
    cells[L_SOCKET_ERRORS + SOCKET_ERRNOS.index(name)] += 1
    return True
