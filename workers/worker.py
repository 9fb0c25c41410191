"""One worker: what it is told by the supervisor, and how it ends.

It starts empty. ``Attach`` and ``Apply`` give it listening sockets and a configuration, at the start and at each reload
alike: one reference is swapped, and sessions that are under way keep what they began with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from setproctitle import setproctitle

from rpxy_l4.access_log import AccessLog
from rpxy_l4.control import (
    Addresses,
    Applied,
    Apply,
    Attach,
    Drain,
    Draining,
    Flows,
    HoldKernelPaths,
    Inherit,
    Inherited,
    KernelPiece,
    Message,
    NotApplied,
    OtherInboxes,
    OwnInbox,
    Place,
    Release,
    Released,
    ReopenLogs,
    UseKernelPath,
)
from rpxy_l4.flow_memory import FlowMemories
from rpxy_l4.kernel.clients import Clients
from rpxy_l4.kernel.flows import KernelFlows
from rpxy_l4.logs import Logs
from rpxy_l4.metrics.layout import MICROSECONDS, Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel, DescriptorsLostError
from rpxy_l4.net.connection_inbox import ConnectionInbox, InboxEntry
from rpxy_l4.snapshot import Bind, OnRouteRemoved, OnSupervisorLoss, Snapshot, covers
from rpxy_l4.verdict import Transport
from rpxy_l4.workers.colleagues import Colleagues
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.handover import Giver, Leaving, Taker, with_descriptors
from rpxy_l4.workers.own_inbox import WorkersInbox
from rpxy_l4.workers.removed import Removed
from rpxy_l4.workers.tcp import TcpListener, TcpSession
from rpxy_l4.workers.udp import UdpFlow, UdpListener

EVENTS: Final = logging.getLogger(__name__)

_TICK: Final = 1.0
_DRAIN_TICK: Final = 0.05
_FLUSH_DELAY: Final = 0.1
_WAYS_AT_A_TIME: Final = 64
"""Flows whose way is looked at in a row: some 15 us for each."""
_WAYS_PAUSE: Final = 0.005
_ROUTES_DELAY: Final = 0.1
"""After news of routes: more follow, and each flow is looked at once for all of them."""
_DEFAULT_DRAIN: Final = 30.0
"""Seconds to drain when the supervisor is gone before it sent a configuration."""


class Retired(NamedTuple):
    """A listener whose address left the configuration, but that has flows."""

    slot: int
    listener: UdpListener
    until: float
    """When they have no time any more."""


class Offered(NamedTuple):
    """A kernel path that is to be used as soon as it can be."""

    message: UseKernelPath
    descriptors: list[int]
    """Ours; none where nothing is offered."""


NOTHING_OFFERED: Final = Offered(UseKernelPath(b"", 1, 0), [])


class Worker:
    """Owns the event loop's life, the listening sockets of its slots, and all its sessions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        workers: int,
        channel: Channel,
        slab: Slab,
        memories: FlowMemories,
        logs: Logs,
    ) -> None:
        """Take ownership of the channel. Nothing happens before :meth:`start`."""
        self._loop = loop
        self._number = number
        self._channel = channel
        self._memories = memories
        self._logs = logs
        self._access = AccessLog(
            logs.access, str(number + 1), lambda: loop.call_later(_FLUSH_DELAY, self._access.flush)
        )
        self._context = Context(loop, number, workers, slab, self._access)
        self._generation: Generation | None = None
        self._attached: dict[Place, socket.socket] = {}
        """Sockets for the configuration, or the slot, that comes next."""
        self._tcp: dict[Place, TcpListener] = {}
        self._udp: dict[Place, UdpListener] = {}
        self._own_inbox: WorkersInbox | None = None
        """Where other workers put connections for this one."""
        self._others = Colleagues(self._context.rows, number)
        self._retired: list[Retired] = []
        self._removed = Removed(self._context.row)
        self._departing: set[int] = set()
        """Slots whose flows are on their way to another worker."""
        self._arriving: set[int] = set()
        """Slots whose flows are on their way here: until then, what clients send has to wait."""
        self._sessions: set[TcpSession] = set()
        self._undecided: dict[UdpFlow, None] = {}
        self._own_slots: frozenset[int] = frozenset()
        """Slots that are served here, without those on their way."""
        self._offered = NOTHING_OFFERED
        self._routes_timer: asyncio.TimerHandle | None = None
        self._is_looking = False
        """Whether flows are being looked at because of routes."""
        self._dropped_before = (0, 0)
        self._reported = 0
        """Dropped access lines that the event log knows of."""
        self._unsaid: deque[Message] = deque()
        """What the supervisor is to be told as soon as it can be."""
        self._drain_until: float | None = None
        self._tick_due = time.monotonic()

    def start(self) -> None:
        """Begin to listen to the supervisor and to beat."""
        row = self._context.row
        # The row's counters go on where the worker before left them.
        self._dropped_before = (row[Cell.ACCESS_LINES_DROPPED], row[Cell.EVENT_LINES_DROPPED])
        row[Cell.DRAINING] = row[Cell.GENERATION] = row[Cell.LOOP_LAG] = row[Cell.UDP_IN_KERNEL] = 0
        self._loop.add_reader(self._channel.fileno(), self._on_channel)
        self._loop.add_reader(self._context.poller.fileno(), self._context.poller.dispatch)
        self._tick()
        self._title()

    def finish(self) -> None:
        """Write out what is left; after this the process exits."""
        self._count_kernel()
        self._access.flush()
        self._publish()

    # The supervisor

    def _on_channel(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLostError as lost:
                EVENTS.error("out of descriptors: what came from the supervisor with some could not be taken")
                self._go_without(lost.message)
                continue
            if received is None:
                self._loop.remove_reader(self._channel.fileno())
                self._go_on_alone()
                return
            message, descriptors = received
            match message:
                case Attach(places):
                    for place, descriptor in zip(places, descriptors, strict=True):
                        self._attach(place, socket.socket(fileno=descriptor))
                case UseKernelPath():
                    self._use_kernel_path(message, descriptors)
                case HoldKernelPaths(pieces, new):
                    self._hold(pieces, dict(zip(new, descriptors, strict=True)))
                case Apply():
                    self._apply(message)
                case Release(slot):
                    self._release(slot, Channel.of(descriptors[0]))
                case Inherit(slot):
                    self._inherit(slot, Channel.of(descriptors[0]))
                case OwnInbox():
                    self._take_inbox(*descriptors)
                case OtherInboxes(numbers, new):
                    entries = map(InboxEntry.of, descriptors)
                    self._know_others(numbers, dict(zip(new, entries, strict=True)))
                    self._set_colleagues()
                case Addresses():
                    self._context.addresses = message.addresses
                case Drain():
                    self._drain(message.timeout)
                case ReopenLogs():
                    self._access.flush()
                    self._logs.reopen()
                case _:
                    EVENTS.error("a worker has no use for %s", type(message).__name__)

    def _say(self, message: Message) -> None:
        """Tell the supervisor, now or, where its queue is full, with the next sign of life; in order in any case."""
        self._unsaid.append(message)
        self._say_rest()

    def _say_rest(self) -> None:
        while self._unsaid and self._channel.send(self._unsaid[0]):
            self._unsaid.popleft()

    def _go_on_alone(self) -> None:
        """Do what the configuration says about the loss of the supervisor."""
        self._unsaid.clear()
        self._context.is_alone = True
        self._context.held.begin_no_more()
        # From now on, nobody else says what signals mean.
        self._loop.add_signal_handler(signal.SIGTERM, self._end_alone)
        snapshot = None if self._generation is None else self._generation.snapshot
        if self._drain_until is not None:  # it goes on with that
            EVENTS.error("the supervisor is gone")
            self._close_udp()
        elif snapshot is not None and snapshot.on_supervisor_loss is OnSupervisorLoss.SERVE:
            EVENTS.error("the supervisor is gone; serving on, until TERM")
        else:
            EVENTS.error("the supervisor is gone")
            self._end_alone()

    def _end_alone(self) -> None:
        """Finish the TCP sessions, and let go of all addresses; the second time, end at once."""
        EVENTS.info("finishing the TCP sessions that are open")
        # A new supervisor must be able to bind: the addresses may not stay ours for as long as flows live.
        self._close_udp()
        snapshot = None if self._generation is None else self._generation.snapshot
        timeout = _DEFAULT_DRAIN if snapshot is None else snapshot.drain_timeout
        self._drain(timeout if self._drain_until is None else 0.0)

    def _go_without(self, message: Message | None) -> None:
        """Deal with a message whose descriptors are lost."""
        match message:
            # Who is at the other end of the channel sees that it is gone; the slot must not wait for anybody.
            case Release(slot):
                self._release(slot, None)
            case Inherit(slot):
                self._inherit(slot, None)
            case _:
                self._say(NotApplied())

    def _attach(self, place: Place, sock: socket.socket) -> None:
        if place in self._attached or place in self._tcp or place in self._udp:  # sent again, as an answer was lost
            sock.close()
        else:
            self._attached[place] = sock

    def _take_inbox(self, inbox: int, entry: int) -> None:
        if self._own_inbox is not None:  # sent again, as an answer was lost
            os.close(inbox)
            os.close(entry)
            return
        self._others.own_inbox = own = InboxEntry.of(entry)
        self._own_inbox = WorkersInbox(self._context, ConnectionInbox.of(inbox), own, self._sessions)
        if self._generation is not None:
            self._own_inbox.set_generation(self._generation)

    def _know_others(self, numbers: frozenset[int], new: Mapping[int, InboxEntry]) -> None:
        before = len(self._others)
        self._others.change(numbers, new)
        self._context.demand += len(self._others) - before

    def _set_colleagues(self) -> None:
        """Hand connections over, or no more."""
        snapshot = None if self._generation is None else self._generation.snapshot
        wanted = snapshot is not None and snapshot.tcp_balance_workers and self._drain_until is None
        self._context.colleagues = self._others if wanted and len(self._others) else None

    def _apply(self, message: Apply) -> None:
        context, snapshot = self._context, message.snapshot
        context.addresses = message.addresses
        self._generation = generation = Generation(snapshot, context)
        self._removed.apply(generation.served, self._end_of_removed(snapshot))
        context.poller.begin_batch()
        self._own_slots = message.slots - self._departing - self._arriving
        self._claim_slots()
        for place in [*self._attached]:
            if place.slot in message.slots:
                self._listen(place)
            else:  # it was meant to be inherited, and is with somebody else now
                self._attached.pop(place).close()
        kept = frozenset(snapshot.binds)
        for place in [place for place in self._tcp if place.bind not in kept]:
            self._tcp.pop(place).close()
        for place in [place for place in self._udp if place.bind not in kept]:
            self._retired.append(Retired(place.slot, self._udp.pop(place), time.monotonic() + snapshot.drain_timeout))
        for listener in self._tcp.values():
            listener.generation = generation
            listener.resume()
        if self._own_inbox is not None:
            self._own_inbox.set_generation(generation)
        self._set_colleagues()
        for place, udp in self._udp.items():
            udp.generation = generation
            if place.slot not in self._arriving:
                udp.resume()
        for old in self._retired:
            self._set_generation(old.listener)
        self._close_retired()
        context.poller.end_batch()
        context.row[Cell.GENERATION] = snapshot.generation
        self._title()
        self._say(Applied(snapshot.generation, message.order))

    def _set_generation(self, retired: UdpListener) -> None:
        """Tell a retired listener what is in force."""
        retired.generation = self._generation
        # While its old socket has flows, the kernel goes on giving it clients of an address that came back, or that a
        # wildcard address now covers.
        binds = () if self._generation is None else self._generation.snapshot.binds
        retired.accepts = any(covers(bind, retired.bind) for bind in binds)

    def _end_of_removed(self, snapshot: Snapshot) -> float:
        """Return when sessions end whose target leaves the configuration now."""
        if snapshot.on_route_removed is OnRouteRemoved.KEEP:
            return math.inf
        return time.monotonic() + snapshot.drain_timeout

    def _end_sessions_of(self, series: frozenset[int]) -> None:
        """End the sessions with one of these targets."""
        self._context.poller.begin_batch()
        for session in [session for session in self._sessions if session.target_series in series]:
            session.end()
        for flow in [flow for flow in self._flows() if flow.target_series in series]:
            flow.end()
        self._context.poller.end_batch()

    def _listen(self, place: Place) -> None:
        """Make a listener of an attached socket; it does not serve yet."""
        sock = self._attached.pop(place)
        if place.bind.transport is Transport.TCP:
            self._tcp[place] = TcpListener(self._context, place.bind, sock, self._sessions)
            self._tcp[place].generation = self._generation
        else:
            self._udp[place] = self._make_udp(place.slot, place.bind, sock)
            self._udp[place].generation = self._generation

    def _make_udp(self, slot: int, bind: Bind, sock: socket.socket) -> UdpListener:
        return UdpListener(self._context, bind, sock, self._undecided, self._memories.of_slot(slot), slot)

    def _close_retired(self) -> None:
        """Close retired listeners that have no time any more, or of which nobody can have flows.

        One without flows stays as long as any worker has some: with each socket that is closed, the kernel spreads what
        comes for the others anew, and flows would arrive where nobody knows them.
        """
        now, kept = time.monotonic(), []
        are_there_flows = bool(self._retired) and self._context.udp_sessions.count(now, 0) > 0
        for retired in self._retired:
            if are_there_flows and now < retired.until:
                kept.append(retired)
            else:
                retired.listener.close()
        self._retired = kept

    # Slots that move

    def _release(self, slot: int, channel: Channel | None) -> None:
        """Stop to serve a slot, and hand its flows over; without a channel, end them."""
        self._departing.add(slot)
        self._own_slots -= {slot}
        if self._context.kernel is not None:
            self._context.kernel.give_up(slot, self._context.count_rest)
        self._context.poller.begin_batch()
        for place in [place for place in self._tcp if place.slot == slot]:
            self._tcp.pop(place).leave()
        leaving = [
            Leaving(self._udp.pop(place), None) for place in [place for place in self._udp if place.slot == slot]
        ]
        leaving += [Leaving(old.listener, old.until) for old in self._retired if old.slot == slot]
        self._retired = [old for old in self._retired if old.slot != slot]
        if channel is None:
            for listener, _ in leaving:
                listener.close()
        self._context.poller.end_batch()
        if channel is None:
            self._on_released(slot)
        else:
            Giver(self._loop, self._context, channel, leaving, lambda: self._on_released(slot))

    def _on_released(self, slot: int) -> None:
        self._departing.discard(slot)
        self._say(Released(slot))

    def _inherit(self, slot: int, channel: Channel | None) -> None:
        """Take what comes of a slot's flows, and then serve it; without a channel, none comes."""
        self._arriving.add(slot)
        for place in [place for place in self._attached if place.slot == slot]:
            self._listen(place)
            if place in self._tcp:
                self._tcp[place].resume()
        if channel is None:
            self._on_inherited(slot)
        else:
            Taker(self._loop, channel, partial(self._adopt, slot), lambda: self._on_inherited(slot))

    def _adopt(self, slot: int, message: Flows, descriptors: list[int]) -> None:
        self._context.poller.begin_batch()
        listener = self._udp.get(Place(slot, message.bind))
        if message.until is not None:
            sock = socket.socket(fileno=descriptors.pop(0))
            listener = self._retired_listener(sock)
            if listener is not None:  # more of its flows
                sock.close()
            else:
                listener = self._make_udp(slot, message.bind, sock)
                self._retired.append(Retired(slot, listener, message.until))
                self._set_generation(listener)
        for record, descriptor in with_descriptors(message.records, descriptors):
            if listener is not None:
                if record.target is not None and self._generation is not None:
                    self._removed.take_in(record.target.series, self._end_of_removed(self._generation.snapshot))
                listener.adopt(record, descriptor, message.series)
            elif descriptor is not None:
                os.close(descriptor)
        self._context.poller.end_batch()

    def _retired_listener(self, sock: socket.socket) -> UdpListener | None:
        """Return the listener that has this socket already. Of an address and a slot there may be several."""
        inode = os.fstat(sock.fileno()).st_ino
        listeners = (old.listener for old in self._retired)
        return next((each for each in listeners if os.fstat(each.socket.fileno()).st_ino == inode), None)

    def _on_inherited(self, slot: int) -> None:
        self._arriving.discard(slot)
        self._own_slots |= {slot}
        self._claim_slots()
        for listener in [
            *(udp for place, udp in self._udp.items() if place.slot == slot),
            *(old.listener for old in self._retired if old.slot == slot),
        ]:
            listener.resume()
        self._say(Inherited(slot))

    # The kernel path

    def _hold(self, pieces: frozenset[KernelPiece], new: Mapping[KernelPiece, int]) -> None:
        """Hold what TCP connections in the kernel need to outlive the supervisor."""
        context, before = self._context, len(self._context.held)
        context.held.change(pieces, new)
        context.demand += len(context.held) - before

    def _use_kernel_path(self, message: UseKernelPath, descriptors: list[int]) -> None:
        """Put flows in this one, and in none of before."""
        context, before = self._context, self._context.kernel
        if before is not None and message.token == before.token:  # sent again, as an answer was lost
            for descriptor in descriptors:
                os.close(descriptor)
            return
        context.poller.begin_batch()
        if before is not None:
            self._leave_kernel()
            before.rest(context.count_rest)
            self._loop.remove_reader(before.fileno())
            before.close()
            context.kernel = None
        if context.clients is not None:
            context.clients.close()
            context.clients = None
        for descriptor in self._offered.descriptors:
            os.close(descriptor)
        self._offered = Offered(message, descriptors)
        self._take_kernel_path()
        context.poller.end_batch()

    def _take_kernel_path(self) -> None:
        """Use the kernel path that is offered, now or, for want of something, a second later."""
        message, descriptors = self._offered
        if not descriptors:
            return
        try:
            flows, counters, clients, settings = descriptors
            kernel = KernelFlows(message.token, message.slots, message.capacity, flows, counters)
        except OSError as error:
            EVENTS.warning("the kernel path cannot be used just now: %s", error.strerror)
            return
        self._offered = NOTHING_OFFERED
        self._context.kernel = kernel
        self._context.clients = Clients(clients, settings, kernel.passage)
        self._loop.add_reader(kernel.fileno(), self._on_routes)
        self._claim_slots()
        for flow in self._flows():
            flow.reconsider()

    def _claim_slots(self) -> None:
        kernel = self._context.kernel
        if kernel is not None:
            kernel.claim(self._own_slots, self._context.count_rest)

    def _leave_kernel(self) -> None:
        for flow in self._flows():
            flow.leave_kernel()

    def _on_routes(self) -> None:
        """Look at the ways of all flows in a moment: the news is left where it is until then, and wakes nobody."""
        kernel = self._context.kernel
        if kernel is not None and self._routes_timer is None:
            self._loop.remove_reader(kernel.fileno())
            self._routes_timer = self._loop.call_later(_ROUTES_DELAY, self._look_at_routes)

    def _look_at_routes(self) -> None:
        self._routes_timer = None
        kernel = self._context.kernel
        if kernel is None:
            return
        kernel.take_news()
        self._loop.add_reader(kernel.fileno(), self._on_routes)
        if not self._is_looking:
            self._is_looking = True
            self._look_at_ways()

    def _look_at_ways(self) -> None:
        """Take flows out whose way has changed, some at a time: others want to be served, too."""
        kernel = self._context.kernel
        if kernel is None:
            self._is_looking = False
            return
        self._context.poller.begin_batch()
        for entry in kernel.misrouted(_WAYS_AT_A_TIME):
            entry.owner.leave_kernel()
        self._context.poller.end_batch()
        if kernel.has_suspects:
            # With pauses: where routes change all the time, there is always something to look at.
            self._loop.call_later(_WAYS_PAUSE, self._look_at_ways)
            return
        self._is_looking = False
        # Also those that found no way before.
        for flow in self._flows():
            flow.reconsider()

    def _count_kernel(self) -> None:
        """Count what has passed in the kernel since the last time."""
        self._take_kernel_path()
        kernel, row = self._context.kernel, self._context.row
        if kernel is None:
            return
        for entry, from_client, from_target in kernel.news():
            entry.owner.count_kernel(from_client, from_target)
        kernel.rest(self._context.count_rest)
        if kernel.is_barred:
            self._leave_kernel()
        row[Cell.UDP_IN_KERNEL] = len(kernel)

    # The end

    def _udp_listeners(self) -> list[UdpListener]:
        """Return those of the configuration, and those that left it."""
        return [*self._udp.values(), *(old.listener for old in self._retired)]

    def _flows(self) -> Iterator[UdpFlow]:
        for listener in self._udp_listeners():
            yield from listener.flows.values()

    @property
    def _open(self) -> int:
        return len(self._sessions) + sum(1 for _ in self._flows()) + self._in_kernel

    @property
    def _in_kernel(self) -> int:
        """TCP connections in the kernel that end with this process, if it is the last to hold them."""
        return self._context.held.dependent if self._context.is_alone else 0

    @property
    def _worth_waiting_for(self) -> bool:
        if self._own_inbox is not None and self._own_inbox.waiting():
            return True
        return bool(self._sessions or self._departing or self._arriving or self._in_kernel) or not all(
            flow.is_quiet for flow in self._flows()
        )

    def _drain(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        if self._drain_until is not None:  # asked again, usually to hurry
            self._drain_until = min(self._drain_until, until)
            return
        self._drain_until = until
        self._context.row[Cell.DRAINING] = 1
        self._set_colleagues()
        self._know_others(frozenset(), {})
        self._context.poller.begin_batch()
        for listener in self._tcp.values():
            listener.close()
        self._tcp.clear()
        for udp in self._udp_listeners():
            udp.accepts = False
        self._context.poller.end_batch()
        self._say(Draining())
        self._title()
        self._check_drained()

    def _check_drained(self) -> None:
        assert self._drain_until is not None  # noqa: S101  set before the first call
        self._context.poller.begin_batch()
        is_late = time.monotonic() >= self._drain_until
        if self._own_inbox is not None and (is_late or not self._worth_waiting_for):
            # Others may have put something there until now; whoever comes too late serves it himself.
            self._own_inbox.end()
            self._own_inbox = None
        if self._worth_waiting_for and not is_late:
            self._context.poller.end_batch()
            self._loop.call_later(_DRAIN_TICK, self._check_drained)
            return
        if self._open:
            EVENTS.info("closing what is still open: %d sessions%s", self._open, "" if is_late else ", all quiet flows")
        for session in list(self._sessions):
            session.end()
        self._close_udp()
        self._context.poller.end_batch()
        self._loop.stop()

    def _close_udp(self) -> None:
        for udp in self._udp_listeners():
            udp.close()
        self._udp.clear()
        self._retired.clear()

    # Signs of life

    def _tick(self) -> None:
        now = time.monotonic()
        row = self._context.row
        row[Cell.LOOP_LAG] = max(row[Cell.LOOP_LAG], int((now - self._tick_due) * MICROSECONDS), 0)
        self._tick_due = now + _TICK
        self._count_kernel()
        self._publish()
        self._say_rest()
        if self._retired:
            self._context.poller.begin_batch()
            self._close_retired()
            self._context.poller.end_batch()
        if due := self._removed.due(now):
            self._end_sessions_of(due)
        if self._drain_until is not None:
            self._title()
        self._loop.call_later(_TICK, self._tick)

    def _publish(self) -> None:
        row = self._context.row
        row[Cell.HEARTBEAT] = time.monotonic_ns()
        if self._access.dropped > self._reported:
            EVENTS.warning("access log: lines found no room: %d", self._access.dropped - self._reported)
            self._reported = self._access.dropped
        row[Cell.ACCESS_LINES_DROPPED] = self._dropped_before[0] + self._access.dropped
        row[Cell.EVENT_LINES_DROPPED] = self._dropped_before[1] + self._logs.events.dropped

    def _title(self) -> None:
        generation = 0 if self._generation is None else self._generation.snapshot.generation
        state = f" draining {self._open} sessions" if self._drain_until is not None else ""
        setproctitle(f"rpxy-l4: worker {self._number + 1} gen {generation}{state}")
