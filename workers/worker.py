"""One worker: what it is told by the supervisor, and how it ends.

It starts empty. ``Apply`` gives it listening sockets and a configuration, at the start and at each reload alike: one
reference is swapped, and sessions that are under way keep what they began with.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from typing import Final

from setproctitle import setproctitle

from rpxy_l4.control import Addresses, Applied, Apply, Drain, Draining, NotApplied, ReopenLogs
from rpxy_l4.logs import Logs
from rpxy_l4.metrics.layout import MICROSECONDS, Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel, DescriptorsLostError
from rpxy_l4.snapshot import Bind, covers
from rpxy_l4.verdict import Transport
from rpxy_l4.workers.access_log import AccessLog
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.tcp import TcpListener, TcpSession
from rpxy_l4.workers.udp import UdpFlow, UdpListener

EVENTS: Final = logging.getLogger(__name__)

_TICK: Final = 1.0
_DRAIN_TICK: Final = 0.05
_FLUSH_DELAY: Final = 0.1
_DEFAULT_DRAIN: Final = 30.0
"""Seconds to drain when the supervisor is gone before it sent a configuration."""


class Worker:
    """Owns the event loop's life, the listening sockets of its slot, and all its sessions."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, slot: int, slots: int, channel: Channel, slab: Slab, logs: Logs
    ) -> None:
        """Take ownership of the channel. Nothing happens before :meth:`start`."""
        self._loop = loop
        self._slot = slot
        self._slots = slots
        self._channel = channel
        self._logs = logs
        self._access = AccessLog(logs.access, slot + 1, lambda: loop.call_later(_FLUSH_DELAY, self._access.flush))
        self._context = Context(loop, slot, slots, slab, self._access)
        self._generation: Generation | None = None
        self._tcp: dict[Bind, TcpListener] = {}
        self._udp: dict[Bind, UdpListener] = {}
        self._retired: list[tuple[UdpListener, float]] = []
        """Listeners that left the configuration but have flows, and until when they may keep them."""
        self._sessions: set[TcpSession] = set()
        self._undecided: dict[UdpFlow, None] = {}
        self._dropped_before = (0, 0)
        self._reported = 0
        """Dropped access lines that the event log knows of."""
        self._drain_until: float | None = None
        self._tick_due = time.monotonic()

    def start(self) -> None:
        """Begin to listen to the supervisor and to beat."""
        row = self._context.row
        # The slot's counters go on where the worker before left them.
        self._dropped_before = (row[Cell.ACCESS_LINES_DROPPED], row[Cell.EVENT_LINES_DROPPED])
        row[Cell.DRAINING] = row[Cell.GENERATION] = row[Cell.LOOP_LAG] = 0
        self._loop.add_reader(self._channel.fileno(), self._on_channel)
        self._loop.add_reader(self._context.poller.fileno(), self._context.poller.dispatch)
        self._tick()
        self._title()

    def finish(self) -> None:
        """Write out what is left; after this the process exits."""
        self._access.flush()
        self._publish()

    # The supervisor

    def _on_channel(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLostError:
                EVENTS.error("out of descriptors: a message from the supervisor could not be taken")
                self._channel.send(NotApplied())
                continue
            if received is None:
                self._loop.remove_reader(self._channel.fileno())
                EVENTS.error("the supervisor is gone; finishing the TCP sessions that are open")
                # A new supervisor must be able to bind: the addresses may not stay ours for as long as flows live.
                self._close_udp()
                snapshot = self._generation.snapshot if self._generation is not None else None
                self._drain(snapshot.drain_timeout if snapshot is not None else _DEFAULT_DRAIN)
                return
            message, descriptors = received
            match message:
                case Apply():
                    self._apply(message, descriptors)
                case Addresses():
                    self._context.addresses = message.addresses
                case Drain():
                    self._drain(message.timeout)
                case ReopenLogs():
                    self._access.flush()
                    self._logs.reopen()
                case _:
                    EVENTS.error("a worker has no use for %s", type(message).__name__)

    def _apply(self, message: Apply, descriptors: list[int]) -> None:
        context, snapshot = self._context, message.snapshot
        context.addresses = message.addresses
        self._generation = generation = Generation(snapshot, context)
        for bind, descriptor in zip(message.attached, descriptors, strict=True):
            sock = socket.socket(fileno=descriptor)
            if bind in self._tcp or bind in self._udp:  # sent again, because an answer was lost
                sock.close()
                continue
            if bind.transport is Transport.TCP:
                self._tcp[bind] = TcpListener(context, bind, sock, self._sessions)
            else:
                self._udp[bind] = UdpListener(context, bind, sock, self._undecided)
        context.poller.begin_batch()
        kept = frozenset(snapshot.binds)
        for bind in self._tcp.keys() - kept:
            self._tcp.pop(bind).close()
        for bind in self._udp.keys() - kept:
            self._retired.append((self._udp.pop(bind), time.monotonic() + snapshot.drain_timeout))
        for listener in self._tcp.values():
            listener.generation = generation
            listener.resume()
        for udp in self._udp.values():
            udp.generation = generation
        for udp, _ in self._retired:
            # While its old socket has flows, the kernel goes on giving it clients of an address that came back, or that
            # a wildcard address now covers.
            udp.accepts = any(covers(bind, udp.bind) for bind in kept)
            udp.generation = generation
        self._close_retired()
        context.poller.end_batch()
        context.row[Cell.GENERATION] = snapshot.generation
        self._title()
        self._channel.send(Applied(snapshot.generation))

    def _close_retired(self) -> None:
        """Close retired listeners that have no flows any more, or no time."""
        now, kept = time.monotonic(), []
        for listener, until in self._retired:
            if listener.flows and now < until:
                kept.append((listener, until))
            else:
                listener.close()
        self._retired = kept

    # The end

    def _flows(self) -> Iterator[UdpFlow]:
        for listener in [*self._udp.values(), *(listener for listener, _ in self._retired)]:
            yield from listener.flows.values()

    @property
    def _open(self) -> int:
        return len(self._sessions) + sum(1 for _ in self._flows())

    @property
    def _worth_waiting_for(self) -> bool:
        return bool(self._sessions) or not all(flow.is_quiet for flow in self._flows())

    def _drain(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        if self._drain_until is not None:  # asked again, usually to hurry
            self._drain_until = min(self._drain_until, until)
            return
        self._drain_until = until
        self._context.row[Cell.DRAINING] = 1
        self._context.poller.begin_batch()
        for listener in self._tcp.values():
            listener.close()
        self._tcp.clear()
        for udp in [*self._udp.values(), *(listener for listener, _ in self._retired)]:
            udp.accepts = False
        self._context.poller.end_batch()
        self._channel.send(Draining())
        self._title()
        self._check_drained()

    def _check_drained(self) -> None:
        assert self._drain_until is not None  # noqa: S101  set before the first call
        self._context.poller.begin_batch()
        is_late = time.monotonic() >= self._drain_until
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
        for udp in [*self._udp.values(), *(listener for listener, _ in self._retired)]:
            udp.close()
        self._udp.clear()
        self._retired.clear()

    # Signs of life

    def _tick(self) -> None:
        now = time.monotonic()
        row = self._context.row
        row[Cell.LOOP_LAG] = max(row[Cell.LOOP_LAG], int((now - self._tick_due) * MICROSECONDS), 0)
        self._tick_due = now + _TICK
        self._publish()
        if self._retired:
            self._context.poller.begin_batch()
            self._close_retired()
            self._context.poller.end_batch()
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
        setproctitle(f"rpxy-l4: worker {self._slot + 1}/{self._slots} gen {generation}{state}")
