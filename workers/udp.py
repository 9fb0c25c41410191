"""UDP: flows, that is pseudo connections, between clients and targets.

One unconnected socket of a slot receives from all clients of an address; a dict finds the flow of each. A flow has a
connected socket of its own towards its target. Datagrams of an undecided flow are held, and go to the chosen target
in the order in which they came.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Sequence
from itertools import islice
from typing import Final

from rpxy_l4.access_log import describe, endpoint
from rpxy_l4.addresses import SocketAddress
from rpxy_l4.control import FlowRecord
from rpxy_l4.detect.udp import UdpDetector, may_begin, may_continue
from rpxy_l4.endings import Detected, Drop, Reason, Rejection
from rpxy_l4.flow_memory import FlowMemory, Recollection
from rpxy_l4.kernel.flows import Amount, Ends, Entry
from rpxy_l4.kernel.layout import Address, address
from rpxy_l4.kernel.routes import Passage
from rpxy_l4.metrics.layout import (
    DETECTED_INDEX,
    DETECTION_BUCKETS,
    DROP_INDEX,
    L_DETECTED,
    L_DETECTION_HISTOGRAM,
    L_DROPPED,
    L_REJECTED,
    L_SESSION_HISTOGRAM,
    REASON_INDEX,
    REJECTION_INDEX,
    SESSION_BUCKETS,
    T_BYTES_IN,
    T_BYTES_OUT,
    T_CLOSED,
    T_DATAGRAMS_IN,
    T_DATAGRAMS_OUT,
    T_GIVEN,
    T_OPENED,
    T_TAKEN,
    Cell,
)
from rpxy_l4.metrics.slab import observe
from rpxy_l4.net import datagram
from rpxy_l4.net.ancillary import Ancillary, source_of
from rpxy_l4.net.burst import Burst, Message, bursts, count, split
from rpxy_l4.net.datagram import Sender
from rpxy_l4.net.inbox import address_of
from rpxy_l4.net.mmsg import DATAGRAM_BYTES, MOST
from rpxy_l4.snapshot import Bind, KernelPath, Route, Side, Target
from rpxy_l4.verdict import Match, NeedMore, NoMatch, Protocol, Transport
from rpxy_l4.workers import poller
from rpxy_l4.workers.context import RECOGNISED, Context, Generation, Half, count_shortage

EVENTS: Final = logging.getLogger(__name__)

_ROUNDS: Final = 4
"""Batches of datagrams from one socket before others have their turn."""
_LARGE: Final = 1000
_BECOMES_BULK: Final = 8
"""After so many datagrams in a row of at least ``_LARGE`` bytes, those from the target are received many at a time."""
_BUSY_BYTES: Final = 262_144
"""A batch of more is no cheaper, and it drives everything else out of the processor's cache."""
_UNDECIDED_SECONDS: Final = 1.0
"""A first flight arrives within a round trip; after this, what came goes to the default target."""
_UNCONFIRMED_SECONDS: Final = 5.0
"""Without a datagram, the life of a flow that is not confirmed while there are many; its route's idle lifetime, if that
is shorter. Made-up source addresses fill a table for no longer, and nearly any answer that somebody still waits for is
faster."""
_CROWDED: Final = 0.5
"""Of the flows that there may be, and of the descriptors that they may have: with more, there are many."""
_LATER_SECONDS: Final = 1.0
"""A client that sends again after so long puts off the time when its flow gives way, where nobody answers: one-way
protocols, such as syslog."""
_MAX_HELD: Final = 16_384
"""Bytes of a first flight that are kept to be sent again to another target."""
_MAX_UNDECIDED: Final = 1024
"""Flows of one worker that may wait for the rest of their first flight; each holds at most about 16 KiB."""

_SHARE: Final = 0.75
"""Of the descriptors: a flood of datagrams from made-up addresses must leave some for connections."""
_QUIET_SECONDS: Final = 5.0
"""Flows have no end of their own: a stopping worker waits for those in use, not for those that may be again. And what
comes after a pause may be from another program that has got the client's port."""
_KERNEL_AFTER: Final = 6
"""Datagrams in both directions after which a flow enters the kernel path: that takes as long as some datagrams do here,
and many flows are a question and an answer."""
_ENTER_AT_A_TIME: Final = 16
"""Flows that enter it in a row: others wait meanwhile, some 40 us for each."""
_REMEMBER_SECONDS: Final = 240.0
"""A flow is remembered anew at least so often: less than half of the time that it stays remembered."""

Key = bytes
"""The client's address, and on a wildcard address the one of ours that it used."""


class UdpListener:
    """One client-facing socket of a slot, and its flows. Owns its copy of the socket."""

    def __init__(
        self,
        context: Context,
        bind: Bind,
        sock: socket.socket,
        undecided: dict[UdpFlow, None],
        memory: FlowMemory,
        slot: int,
    ) -> None:
        """Receive once :meth:`resume` is called.

        ``undecided`` is that of all the worker's listeners, oldest first; ``memory`` is that of the slot.
        """
        self.bind = bind
        self.slot = slot
        self.generation: Generation | None = None
        """The configuration for new flows."""
        self.accepts = True
        """False while the listener only serves the flows it has."""
        self.flows: dict[Key, UdpFlow] = {}
        self.undecided = undecided
        self.entering: dict[UdpFlow, None] = {}
        """Flows that enter the kernel path when nothing is left in the socket that should be ahead."""
        self.socket = sock
        self._most = MOST
        self._is_paused = True
        self._context = context
        self._memory = memory
        # The memory is that of all the slot's listeners.
        self._name = f"{bind} ".encode()

    def resume(self) -> None:
        """Receive, unless that is what happens already."""
        if self._is_paused:
            self._is_paused = False
            self._context.poller.add(self.socket.fileno(), self, poller.LEVEL)

    def pause(self) -> None:
        """Leave what clients send in the socket; flows go on to forward what targets send."""
        self._is_paused = True
        self._context.poller.remove(self.socket.fileno())

    def close(self) -> None:
        """End every flow and close this worker's copy of the socket."""
        for flow in list(self.flows.values()):
            flow.end()
        self.pause()
        self.socket.close()

    def on_event(self, descriptor: int, mask: int) -> None:  # noqa: ARG002  all that can be ready is a datagram
        """Receive a few batches; what is left makes another event."""
        for _ in range(_ROUNDS):
            try:
                messages = self._context.inbox.receive(self.socket, self._most)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about an answer of ours: kills nothing
                continue
            self._deliver(messages)
            if len(messages) < self._most:
                if self.entering:
                    self._enter_kernel()
                return
            total = sum(len(message[1]) for message in messages)
            if total > _BUSY_BYTES:
                self._most = max(1, self._most // 2)
            elif total < _BUSY_BYTES // 4:
                self._most = min(MOST, 2 * self._most)

    def _enter_kernel(self) -> None:
        for flow in [*islice(self.entering, _ENTER_AT_A_TIME)]:
            self.entering.pop(flow, None)
            flow.enter_kernel()

    def local(self, reply: Ancillary | None) -> Address:
        """Return the address of ours that a client uses, from what answers to it are sent with."""
        if reply is None:
            return address(self.bind.host, self.bind.port)
        return Address(source_of(reply), self.bind.port)

    def _deliver(self, messages: Sequence[Message]) -> None:
        """Give each flow what came for it, in order, and what came together together."""
        key: Key = b""
        together: list[Message] = []
        for message in messages:
            reply = message[3]
            its_key = message[0] if reply is None else message[0] + reply[2]
            if its_key != key:
                if together:
                    self.give(key, together)
                key, together = its_key, []
            together.append(message)
        if together:
            self.give(key, together)

    @property
    def is_crowded(self) -> bool:
        """Whether there are so many flows that those that are not confirmed have to go soon."""
        context, generation = self._context, self.generation
        if generation is None or generation.udp is None:
            return True
        most = generation.udp.side.max_sessions
        is_short = not context.has_descriptors(_SHARE * _CROWDED)
        return is_short or context.udp_sessions.count(context.poller.now, most) > most * _CROWDED

    def remember(self, key: Key, target: Target, address: str) -> None:
        """Note where a flow goes, for when it is forgotten or this process is gone."""
        self._memory.remember(self._name + key, target.series, address, self._context.poller.now)

    def recall(self, key: Key) -> Recollection | None:
        """Return where a flow of this client went before; None if that is not known."""
        return self._memory.recall(self._name + key, self._context.poller.now)

    def give(self, key: Key, messages: Sequence[Message]) -> None:
        """Have a flow take messages, a new one if there is none."""
        # Not looked up before: what another flow was given may have ended this one.
        flow = self.flows.get(key) or self._open(key, messages)
        if flow is not None:
            flow.take(messages)

    def on_again(self) -> None:
        """Never asked for."""

    def abandon(self) -> None:
        """Go on with the next datagram: the listener itself is never given up."""

    def _open(self, key: Key, messages: Sequence[Message]) -> UdpFlow | None:
        """Return a new flow for messages, or None when there may be none now; they are then counted as dropped."""
        context, generation = self._context, self.generation
        if generation is None or generation.udp is None:
            return None
        half, (name, *_, reply) = generation.udp, messages[0]
        if not self.accepts:
            half.cells[L_DROPPED + DROP_INDEX[Drop.DRAINING]] += _datagrams(messages)
            return None
        if half.admission is not None and half.admission.delay(context.poller.now):
            self._refuse(generation, half, Rejection.RATE, messages)
            return None
        rejection = self._make_room(half.side.max_sessions)
        if rejection is not None:
            self._refuse(generation, half, rejection, messages)
            return None
        if half.admission is not None:
            half.admission.admit()
        return self._remember(UdpFlow(context, self, generation, half, key, address_of(name), reply), key)

    def adopt(self, record: FlowRecord, descriptor: int | None, series: int) -> None:
        """Go on with a flow of another worker.

        ``descriptor`` is that of its socket towards the target, and owned from now on. ``series`` is the listener's in
        the counters, for the case that the configuration has nothing for UDP any more.
        """
        context, generation = self._context, self.generation
        assert generation is not None  # noqa: S101  set before a slot can be inherited
        half = generation.udp
        if half is None:
            nothing = Side(transport=Transport.UDP, routes=(), default=None, series=series, max_sessions=0)
            half = Half(nothing, context.listener_cells(series))
        flow = UdpFlow(context, self, generation, half, record.key, record.client, record.reply)
        self._remember(flow, record.key)
        try:
            flow.unpack(record, descriptor)
        except Exception:  # noqa: BLE001  a fault in one flow must not lose those that came with it
            poller.give_up(flow)
            return
        # Of two workers that had many each, one cannot have all. The client's next datagram begins a flow anew, at the
        # same target if this one was confirmed.
        if not context.has_descriptors(_SHARE) and not context.make_way(_SHARE) and self.flows.get(record.key) is flow:
            flow.give_way()

    def _remember(self, flow: UdpFlow, key: Key) -> UdpFlow:
        self.flows[key] = flow
        self._context.row[Cell.UDP_OPENED] += 1
        self._context.demand += 1
        return flow

    def _make_room(self, most: int) -> Rejection | None:
        """Let unconfirmed flows give way where there is no room for a new one; return why there is none even so."""
        context = self._context
        unconfirmed, now = context.unconfirmed, context.poller.now
        room = most - context.udp_sessions.count(now, most)
        if room <= 0:
            share = unconfirmed.share(room, now)
            # With less than a share, others have more than theirs. With more, two for one brings the number down again.
            if len(unconfirmed) >= share and not context.make_way(_SHARE):
                return Rejection.LIMIT
            if room < 0 and len(unconfirmed) >= share:
                context.make_way(_SHARE)
        if context.has_descriptors(_SHARE) or (context.make_way(_SHARE) and context.has_descriptors(_SHARE)):
            return None
        return Rejection.RESOURCES

    def _refuse(self, generation: Generation, half: Half, rejection: Rejection, messages: Sequence[Message]) -> None:
        """Drop what would have begun a flow, and count why."""
        half.cells[L_DROPPED + DROP_INDEX[Drop(rejection.value)]] += _datagrams(messages)
        half.cells[L_REJECTED + REJECTION_INDEX[rejection]] += 1
        if generation.snapshot.access_log:
            client, listener = endpoint(*address_of(messages[0][0])[:2]), generation.snapshot.listener
            head = describe(client, listener, Transport.UDP, Detected.SKIPPED, None, None)
            self._context.log.refused(f"{head} reason={rejection}", rejection, self._context.poller.now)

    def forget(self, key: Key) -> None:
        """Forget a flow that has closed its socket."""
        del self.flows[key]
        self._context.row[Cell.UDP_CLOSED] += 1
        self._context.demand -= 1


class UdpFlow:
    """One UDP pseudo connection: a client address and the local address it used.

    It is confirmed once the client has sent again after an answer of the target. Until then the client's address may be
    made up, so the flow gives way to a new one where there is no room, and is forgotten soon while there are many.
    """

    __slots__ = (
        "_address",
        "_bulk",
        "_bytes_in",
        "_bytes_out",
        "_candidates",
        "_cells",
        "_client",
        "_context",
        "_datagrams_in",
        "_datagrams_out",
        "_descriptor",
        "_detected",
        "_detector",
        "_entry",
        "_generation",
        "_half",
        "_has_answered",
        "_held",
        "_idle",
        "_is_closed",
        "_is_confirmed",
        "_is_tentative",
        "_key",
        "_large",
        "_last",
        "_listener",
        "_match",
        "_may_enter",
        "_reply",
        "_route",
        "_socket",
        "_t_decided",
        "_t_entered",
        "_t_open",
        "_target",
        "_to_client",
        "_to_target",
        "_tries",
        "_wait",
    )

    def __init__(
        self,
        context: Context,
        listener: UdpListener,
        generation: Generation,
        half: Half,
        key: Key,
        client: SocketAddress,
        reply: Ancillary | None,
    ) -> None:
        """Begin undecided, unless there is nothing to detect."""
        self._context = context
        self._listener = listener
        self._generation = generation
        self._half = half
        self._key = key
        self._client = client
        self._reply = reply
        self._to_client = Sender(listener.socket, client, reply)
        self._to_target: Sender | None = None
        self._socket: socket.SocketType | None = None
        self._descriptor = -1
        """Of that socket."""
        self._bulk = 0
        """How long messages from the target probably are, where there are many; 0: receive one at a time."""
        self._large = 0
        """Large datagrams in a row from the target."""
        self._detector: UdpDetector | None = None
        self._candidates: list[tuple[Target, str]] = []
        """Targets to go on to if this one refuses; empty once it has answered."""
        self._held: list[bytes] = []
        """What the client sent and no target has answered."""
        self._match: Match | None = None
        self._detected = Detected.SKIPPED
        self._route: Route | None = None
        self._target: Target | None = None
        self._address = ""
        self._cells: memoryview | None = None
        self._tries = 0
        self._idle = 0.0
        self._wait = 0.0
        """Seconds that the flow now waits in line for a deadline; 0: it is in no line."""
        self._has_answered = False
        """Whether the target has; of use until the flow is confirmed."""
        self._is_confirmed = False
        self._is_tentative = True
        """There is more to do than to forward: the flow is not confirmed, or may go on to another target, or may enter
        the kernel path."""
        self._entry: Entry | None = None
        """In the kernel path."""
        self._may_enter = False
        """Whether it is to be put there."""
        self._is_closed = False
        self._bytes_in = self._bytes_out = self._datagrams_in = self._datagrams_out = 0
        self._t_open = self._t_decided = self._last = context.poller.now
        self._enter()

    # From the client

    def take(self, messages: Sequence[Message]) -> None:
        """Forward what the client sent, or hold it while the flow is undecided."""
        now = self._context.poller.now
        try:
            if self._entry is not None:
                self._see_kernel()
            if now - self._last > _QUIET_SECONDS and self._is_of_another(messages[0]):
                self._finish(Reason.IDLE)
                self._listener.give(self._key, messages)
                return
            self._last = now
            if self._entry is not None and self._context.kernel is not None:
                self._context.kernel.touch(self._entry)
            if self._to_target is None:
                self._detect(messages)
                return
            if self._is_tentative:
                self._take_tentatively(messages)
            elif len(messages) == 1 and messages[0][2] >= len(messages[0][1]):
                self._forward_one(self._to_target, messages[0][1])
                return
            sender = self._to_target
            for joined in bursts(messages):
                self._forward(sender, joined)
                if self._to_target is not sender:  # the flow went on to another target, which got all that is held
                    return
        except Exception:  # noqa: BLE001  the loop's edge: a fault in one flow must not end the others
            EVENTS.exception("fault while serving a flow; it was closed")
            self.abandon()

    def _is_of_another(self, message: Message) -> bool:
        """Whether the client's port is another program's by now, which begins a session or does not speak ours."""
        if self._route is None:
            return False
        datagram = bytes(next(iter(split(message[1], message[2]))))
        begun = may_begin(datagram)
        protocol = self._route.protocol
        if begun is None or begun not in self._half.wanted:
            return not may_continue(protocol, datagram)
        # What begins a session renews one, too; only a detector tells for QUIC, and nobody for WireGuard. A hello may
        # go on in the next datagram.
        return (
            begun is not protocol
            if begun is Protocol.WIREGUARD
            else not isinstance(UdpDetector(self._half.wanted).feed(datagram), NoMatch)
        )

    def _take_tentatively(self, messages: Sequence[Message]) -> None:
        """Hold what another target may have to get, and see whether the client confirms the flow."""
        if self._candidates:
            for message in messages:
                self._hold(message)
            if self._holds_too_much:
                self._settle()
        if self._is_confirmed:
            if self._may_enter and not self._candidates and self._datagrams_in + self._datagrams_out >= _KERNEL_AFTER:
                self._listener.entering[self] = None
            return
        if self._has_answered:
            self.confirm()
        elif self._last - self._t_entered >= _LATER_SECONDS:
            self._enter()

    def _enter(self) -> None:
        """Become the youngest of those that may have to give way."""
        self._t_entered = self._context.poller.now
        self._context.unconfirmed.add(self)

    def confirm(self) -> None:
        """Give the flow its route's whole lifetime from now on, and never let it give way."""
        self._context.unconfirmed.discard(self)
        self._is_confirmed = True
        self._is_tentative = bool(self._candidates) or self._may_enter
        self._remember()

    def _remember(self) -> None:
        # Not before it is confirmed: a flood would push the real ones out.
        if self._is_confirmed and self._target is not None:
            self._listener.remember(self._key, self._target, self._address)

    def _detect(self, messages: Sequence[Message]) -> None:
        """Take a route as soon as what was received is enough to decide, and hold it until then."""
        first = not self._held
        for number, message in enumerate(messages):
            known = len(self._held)
            self._hold(message)
            if self._judge(self._held[known:]):
                rest = messages[number + 1 :]
                if rest and not self._is_closed:
                    self.take(rest)
                return
        if first:
            self._wait_for_more()

    def _judge(self, fresh: Sequence[bytes]) -> bool:
        """Ask the detector about new datagrams; whether that decided, for a route or against the flow."""
        if not self._half.wanted:
            self._decide(None, Detected.SKIPPED)
            return True
        if self._detector is None:
            self._detector = UdpDetector(self._half.wanted)
        for part in fresh:
            verdict = self._detector.feed(part)
            if isinstance(verdict, Match):
                self._decide(verdict, RECOGNISED[verdict.protocol])
                return True
            if not isinstance(verdict, NeedMore):
                self._decide(None, Detected.UNKNOWN)
                return True
        return False

    def _hold(self, message: Message) -> None:
        """Keep what is to be sent when there is a target, or would have to be sent again to another one."""
        _, data, segment, _ = message
        self._held.extend(bytes(part) for part in split(data, segment))

    @property
    def _holds_too_much(self) -> bool:
        return sum(map(len, self._held)) > _MAX_HELD

    def _settle(self) -> None:
        """Stay with this target for good."""
        self._candidates.clear()
        self._held.clear()
        self._is_tentative = not self._is_confirmed or self._may_enter

    def _wait_for_more(self) -> None:
        undecided = self._listener.undecided
        if len(undecided) >= _MAX_UNDECIDED:
            next(iter(undecided)).give_way()
        undecided[self] = None
        self._wait_for(_UNDECIDED_SECONDS)

    def _decide(self, match: Match | None, detected: Detected) -> None:
        """Take the route that detection leads to, and send what was held."""
        now = self._context.poller.now
        self._listener.undecided.pop(self, None)
        self._wait_for(0.0)
        self._detector = None
        self._t_decided = now
        route = self._half.router.find(match)
        known = None if match is not None else self._recall(route)
        if known is not None:
            route, detected = known[0], Detected.REMEMBERED
        self._match = match
        self._detected = detected
        cells = self._half.cells
        cells[L_DETECTED + DETECTED_INDEX[detected]] += 1
        if detected is not Detected.SKIPPED:
            observe(cells, L_DETECTION_HISTOGRAM, DETECTION_BUCKETS, now - self._t_open)
        self._route = route
        if route is None:
            self.refuse(Rejection.NO_ROUTE, Drop.NO_ROUTE)
            return
        self._candidates = list(self._context.candidates(route, self._client[:2]))
        if known is not None:
            _, target, recollection = known
            # First to the one of before. Where its name has other addresses by now, to any of these.
            self._candidates.sort(key=lambda to: (to[0] is not target, not recollection.is_at(to[1])))
            self.confirm()
        self._idle = route.idle_lifetime
        self.reconsider()
        if self._open_target():
            self._wait_for_its_end()
        elif not self._is_closed:
            self.refuse(Rejection.NO_TARGET, Drop.NO_TARGET)

    def _recall(self, route: Route | None) -> tuple[Route, Target, Recollection] | None:
        """Return where the client's flow went before, if that is still to be had and this may go on with it.

        ``route`` is the one to take otherwise.
        """
        if not self._half.wanted and route is not None and len(route.targets) == 1 and not route.targets[0].is_name:
            return None  # it would be the same
        recollection = self._listener.recall(self._key)
        if recollection is None or recollection.series not in self._half.served:
            return None
        before, target = self._half.served[recollection.series]
        if not self._held or not may_continue(before.protocol, self._held[0]):
            return None
        return before, target, recollection

    def _open_target(self) -> bool:
        """Open the socket towards the next candidate that there is a way to, and send what is held.

        False when there is no other, or when the flow had to be closed for want of resources.
        """
        context = self._context
        while self._candidates:
            target, address = self._candidates.pop(0)
            try:
                fresh = datagram.open_towards(address, target.port)
                context.poller.add(fresh.fileno(), self, poller.LEVEL)
            except OSError as error:
                EVENTS.warning("cannot open a flow to target %s (%s): %s", target.text, address, error.strerror)
                if count_shortage(self._half.cells, error.errno):
                    if self._target is None:
                        self.refuse(Rejection.RESOURCES, Drop.RESOURCES)
                        context.make_way(_SHARE)  # for the next one: what is let go is free after this batch
                    return False
                continue
            self.leave_kernel()
            self._drop_socket()
            self._bulk = self._large = 0
            if self._cells is not None:
                self._cells[T_CLOSED + REASON_INDEX[Reason.CONNECT_REFUSED]] += 1
            self._socket, self._target, self._address = fresh, target, address
            self._descriptor = fresh.fileno()
            self._cells = context.target_cells(target)
            self._cells[T_OPENED] += 1
            self._bytes_in = self._datagrams_in = 0
            self._tries += 1
            self._to_target = Sender(fresh)
            for part in tuple(self._held):
                self._forward(self._to_target, ([memoryview(part)], len(part), len(part), 1))
                if self._socket is not fresh:  # refused meanwhile, and gone on to another target with all that is held
                    return True
            if not self._candidates or self._holds_too_much:
                self._settle()
            return True
        return False

    def _target_refuses(self) -> bool:
        """Handle an ICMP error instead of an answer; whether the flow has another target now, which got all again."""
        self._drop(Drop.ICMP, 1)
        if self._target is not None:
            EVENTS.warning("target %s (%s) refuses datagrams", self._target.text, self._address)
        return bool(self._candidates) and self._open_target()

    def _on_error(self, error: OSError) -> None:
        """Handle what came instead of an answer."""
        if error.errno == errno.EMSGSIZE:
            # Somewhere on the way to the target, packets have to be shorter. The socket cuts them from now on, and what
            # is too long for its way by the kernel path comes here.
            self._drop(Drop.TOO_BIG, 1)
            if self._context.kernel is not None:
                self._context.kernel.ask_anew()
        else:
            self._target_refuses()

    def _forward_one(self, sender: Sender, data: memoryview) -> None:
        """Do as ``_forward``, with less ado for what is by far the most frequent: one datagram, and no other target."""
        try:
            os.write(self._descriptor, data)
        except ConnectionRefusedError:
            self._target_refuses()
            # That was the answer to an earlier datagram, which is lost; this one was not sent yet (udp(7)).
            self._forward(sender, ([data], len(data), len(data), 1))
        except OSError as error:
            self._drop(_drop_of(error), 1)
        else:
            self._count_in(len(data), 1)

    def _forward(self, sender: Sender, burst: Burst) -> None:
        """Send to the target and count."""
        _, amount, _, parts = burst
        try:
            try:
                sender.send_burst(burst)
            except ConnectionRefusedError:  # as above
                if self._target_refuses():
                    return
                sender.send_burst(burst)
        except OSError as error:
            self._drop(_drop_of(error), parts)
            return
        self._count_in(amount, parts)

    def _count_in(self, amount: int, parts: int) -> None:
        cells = self._cells
        assert cells is not None  # noqa: S101  set with the sender
        self._bytes_in += amount
        self._datagrams_in += parts
        cells[T_BYTES_IN] += amount
        cells[T_DATAGRAMS_IN] += parts

    # From the target

    def on_event(self, descriptor: int, mask: int) -> None:  # noqa: ARG002  all that can be ready is a datagram
        """Forward what the target sent; what is left makes another event."""
        if self._bulk:
            self._forward_bulk()
            return
        try:
            data = os.read(descriptor, DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError as error:  # an ICMP error: the target may be back in a moment, so the flow lives on
            self._on_error(error)
            return
        amount = len(data)
        if amount < _LARGE:
            self._large = 0
        else:
            self._large += 1
            if self._large == _BECOMES_BULK and self._socket is not None:
                self._bulk = amount
                datagram.coalesce(self._socket)
        self._answered()
        try:
            self._to_client.send(data)
        except OSError as error:
            self._drop(_drop_of(error), 1)
            return
        self._count_out(amount, 1)

    def _forward_bulk(self) -> None:
        for _ in range(_ROUNDS):
            if self._socket is None:
                return
            try:
                received, self._bulk, more = self._context.bulk_inbox.receive(self._socket, self._bulk)
            except BlockingIOError:
                return
            except OSError as error:  # as above
                self._on_error(error)
                return
            self._answered()
            for burst in received:
                try:
                    self._to_client.send_burst(burst)
                except OSError as error:
                    self._drop(_drop_of(error), burst[3])
                else:
                    self._count_out(burst[1], burst[3])
            if not more:
                return

    def _answered(self) -> None:
        if self._is_tentative:
            self._has_answered = True
            if self._candidates:
                self._settle()
        self._last = self._context.poller.now

    def _count_out(self, amount: int, parts: int) -> None:
        cells = self._cells
        assert cells is not None  # noqa: S101  set before the socket is watched
        self._bytes_out += amount
        self._datagrams_out += parts
        cells[T_BYTES_OUT] += amount
        cells[T_DATAGRAMS_OUT] += parts

    def on_again(self) -> None:
        """Never asked for."""

    def on_deadline(self) -> None:
        """Stop waiting for the rest of a first flight, or end a flow that has been without a datagram for too long."""
        self._wait = 0.0
        if self._is_closed:
            return
        if self._to_target is None:
            self._decide(None, Detected.TIMEOUT)
            return
        self._see_kernel()
        quiet = self._context.poller.now - self._last
        if quiet >= self._idle:
            self._finish(Reason.IDLE)
        elif not self._is_confirmed and quiet >= _UNCONFIRMED_SECONDS and self._listener.is_crowded:
            self._finish(Reason.UNCONFIRMED)
        else:
            self._remember()
            self._wait_for_its_end()
            self.reconsider()

    def _wait_for_its_end(self) -> None:
        """Look again when the flow may have been without a datagram for too long, or is to be remembered anew.

        One that is not confirmed is looked at every few seconds: there may be many by then.
        """
        now = self._context.poller.now
        quiet, end = now - self._last, self._last + self._idle
        if self._is_confirmed:
            self._context.alarm.add(min(end, now + _REMEMBER_SECONDS), self)
        elif not quiet:  # it has just got its target; a flood makes many of these
            self._wait_for(min(self._idle, _UNCONFIRMED_SECONDS))
        else:
            since = self._last if quiet < _UNCONFIRMED_SECONDS else now
            self._context.alarm.add(min(end, since + _UNCONFIRMED_SECONDS), self)

    def _wait_for(self, seconds: float) -> None:
        """Have :meth:`on_deadline` called after some time, and not after what was asked for before.

        In line, which a flow can leave: a flood makes more flows that give way than the table of deadlines, where each
        stays until it is due, should hold.
        """
        if self._wait:
            self._context.alarm.cancel(self._wait, self)
        self._wait = seconds
        if seconds:
            self._context.alarm.wait(seconds, self)

    # In the kernel

    def reconsider(self) -> None:
        """Enter the kernel path with one of the next datagrams, if there is one and the route allows it."""
        allowed = self._route is not None and self._route.kernel_path is not KernelPath.OFF
        self._may_enter = allowed and self._entry is None and self._context.kernel is not None
        if self._may_enter:
            self._is_tentative = True

    def enter_kernel(self) -> None:
        """Have the kernel forward from now on, if it can."""
        self._may_enter = False
        self._is_tentative = bool(self._candidates) or not self._is_confirmed
        kernel, sock, target = self._context.kernel, self._socket, self._target
        if kernel is None or sock is None or target is None or self._entry is not None or self._is_closed:
            return
        # What waits in the socket is not to be overtaken.
        for _ in range(_ROUNDS):
            self.on_event(self._descriptor, poller.LEVEL)
        if self._socket is sock:
            self._entry = kernel.install(self, self._listener.slot, self._ends(sock), target.series)

    def _ends(self, sock: socket.SocketType) -> Ends:
        source = sock.getsockname()
        assert self._target is not None  # noqa: S101  there is a socket towards it
        return Ends(
            client=address(*self._client[:2]),
            local=self._listener.local(self._reply),
            source=address(source[0], source[1]),
            target=address(self._address, self._target.port),
        )

    def leave_kernel(self) -> None:
        """Have what comes from now on come here."""
        kernel, entry = self._context.kernel, self._entry
        if kernel is not None and entry is not None:
            kernel.remove(entry)
            self._see_kernel()
            self.count_kernel(*kernel.take(entry))
            self._entry = None

    def _see_kernel(self) -> None:
        """Know when its last datagram passed there, if any did."""
        kernel, entry = self._context.kernel, self._entry
        if kernel is not None and entry is not None:
            self._last = max(self._last, kernel.last(entry))

    def count_kernel(self, from_client: Amount, from_target: Amount) -> None:
        """Count what passed in the kernel."""
        self._count_in(from_client.bytes, from_client.packets)
        self._count_out(from_target.bytes, from_target.packets)
        self._context.row[Cell.KERNEL_DATAGRAMS] += from_client.packets + from_target.packets

    # From worker to worker

    @property
    def series(self) -> int:
        """The listener's in the counters."""
        return self._half.side.series

    @property
    def target_series(self) -> int | None:
        """That of its target in the counters; None while it has none."""
        return None if self._target is None else self._target.series

    def pack(self) -> tuple[FlowRecord, int | None]:
        """Return what another worker needs to go on with the flow, with the descriptor of its socket, if it has one.

        The descriptor stays the flow's until :meth:`forget`. Other targets that could be tried, should this one not
        answer, are left behind.
        """
        record = FlowRecord(self._key, self._client, self._reply, tuple(self._held), self._t_open)
        if self._target is None:
            return record, None
        kernel, entry = self._context.kernel, self._entry
        if kernel is not None and entry is not None:
            self._see_kernel()
            self.count_kernel(*kernel.take(entry))
        return record._replace(
            held=(),
            decided=self._t_decided,
            last=self._last,
            detected=self._detected,
            match=self._match,
            route=self._route,
            target=self._target,
            address=self._address,
            tries=self._tries,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            datagrams_in=self._datagrams_in,
            datagrams_out=self._datagrams_out,
            has_answered=self._has_answered,
            is_confirmed=self._is_confirmed,
            bulk=self._bulk,
            kernel=None if kernel is None or entry is None else (kernel.token, entry.counter, entry.passages),
        ), self._descriptor

    def forget(self) -> None:
        """Let go of a flow that another worker goes on with."""
        if self._cells is not None:
            self._cells[T_GIVEN] += 1
        if self._context.kernel is not None and self._entry is not None:
            self._context.kernel.disown(self._entry)
            self._entry = None
        if self._socket is not None:
            # The other worker has the same socket open: closing alone would leave it in the poller's set.
            self._context.poller.remove(self._descriptor)
        self._close()

    def unpack(self, record: FlowRecord, descriptor: int | None) -> None:
        """Go on where another worker left off."""
        self._t_open = record.opened
        if record.target is None or record.route is None or descriptor is None:
            self.take([(b"", memoryview(part), len(part), None) for part in record.held])
            return
        self._socket = socket.SocketType(fileno=descriptor)
        self._descriptor = descriptor
        # To be received as such: what its socket has coalesced already would go on as one datagram otherwise.
        self._bulk = record.bulk
        self._t_decided, self._last = record.decided, record.last
        self._detected, self._match = record.detected, record.match
        self._route, self._target, self._address = record.route, record.target, record.address
        self._idle = record.route.idle_lifetime
        self._tries = record.tries
        self._bytes_in, self._bytes_out = record.bytes_in, record.bytes_out
        self._datagrams_in, self._datagrams_out = record.datagrams_in, record.datagrams_out
        self._cells = self._context.target_cells(record.target)
        self._cells[T_TAKEN] += 1
        self._to_target = Sender(self._socket)
        try:
            self._context.poller.add(descriptor, self, poller.LEVEL)
        except OSError as error:
            EVENTS.warning("cannot go on with a flow of another worker: %s", error.strerror)
            self._finish(Reason.INTERNAL)
            return
        self._has_answered = record.has_answered
        kernel = self._context.kernel
        if kernel is not None and record.kernel is not None and record.kernel[0] == kernel.token:
            _, counter, passages = record.kernel
            self._entry = kernel.adopt(
                self, self._listener.slot, counter, self._ends(self._socket), _passages(passages)
            )
        self.reconsider()
        if record.is_confirmed:
            self.confirm()
        self._wait_for_its_end()

    # The end

    def _drop(self, drop: Drop, parts: int) -> None:
        self._half.cells[L_DROPPED + DROP_INDEX[drop]] += parts

    def refuse(self, rejection: Rejection, drop: Drop) -> None:
        """Close a flow that no target was found for, and count why."""
        held = len(self._held)
        self._close()
        self._drop(drop, held)
        self._half.cells[L_REJECTED + REJECTION_INDEX[rejection]] += 1
        if self._generation.snapshot.access_log:
            self._context.log.refused(
                f"{self._describe()} datagrams_in={held} reason={rejection}", rejection, self._context.poller.now
            )

    def give_way(self) -> None:
        """Close to make room for another flow, and count that."""
        if self._to_target is not None:
            self._finish(Reason.EVICTED)
        else:
            self.refuse(Rejection.EVICTED, Drop.UNDECIDED)

    def end(self) -> None:
        """Close now, because the worker stops or the listener is gone."""
        if self._to_target is not None:
            self._finish(Reason.DRAIN)
        else:
            self.refuse(Rejection.DRAINING, Drop.DRAINING)

    def abandon(self) -> None:
        """Close after a fault in this program."""
        if self._is_closed:
            return
        if self._to_target is not None:
            self._finish(Reason.INTERNAL)
        else:
            self.refuse(Rejection.RESOURCES, Drop.RESOURCES)

    def _finish(self, reason: Reason) -> None:
        """Close a flow that was given to a target, and count and log its end."""
        assert self._target is not None  # noqa: S101  only once there is one
        assert self._cells is not None  # noqa: S101  likewise
        context, now = self._context, self._context.poller.now
        self.leave_kernel()
        self._remember()
        # First of all: a fault in what follows must not leave the flow half closed, or count it twice.
        self._close()
        self._cells[T_CLOSED + REASON_INDEX[reason]] += 1
        observe(self._half.cells, L_SESSION_HISTOGRAM, SESSION_BUCKETS, now - self._t_open)
        if self._generation.snapshot.access_log:
            resolved = f" address={endpoint(self._address, self._target.port)}" if self._target.is_name else ""
            tried = f" tries={self._tries}" if self._tries > 1 else ""
            fields = (
                f"{self._describe()} target={self._target.text}{resolved}{tried} bytes_in={self._bytes_in}"
                f" bytes_out={self._bytes_out} datagrams_in={self._datagrams_in} datagrams_out={self._datagrams_out}"
                f" detect_ms={(self._t_decided - self._t_open) * 1e3:.1f}"
                f" duration_ms={(now - self._t_open) * 1e3:.1f} reason={reason}"
            )
            if reason is Reason.EVICTED:
                context.log.session_of_many(fields, reason, now)
            else:
                context.log.session(fields)

    def _describe(self) -> str:
        host, port = self._client[:2]
        listener = self._generation.snapshot.listener
        route = None if self._route is None else self._route.name
        return describe(endpoint(host, port), listener, Transport.UDP, self._detected, self._match, route)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._context.poller.close(self._socket.detach())
            self._socket = None
            self._descriptor = -1

    @property
    def is_quiet(self) -> bool:
        """Whether it carries nothing just now that would be worth waiting for."""
        self._see_kernel()
        return self._context.poller.now - self._last > _QUIET_SECONDS

    def _close(self) -> None:
        self._is_closed = True
        self.leave_kernel()
        self._settle()
        self._drop_socket()
        self._wait_for(0.0)
        self._context.unconfirmed.discard(self)
        self._listener.undecided.pop(self, None)
        self._listener.entering.pop(self, None)
        self._listener.forget(self._key)


def _passages(plain: Sequence[tuple[int, int, bool]]) -> tuple[Passage, Passage]:
    """Return what a record has in place of passages."""
    to_target, to_client = plain
    return Passage(*to_target), Passage(*to_client)


def _datagrams(messages: Sequence[Message]) -> int:
    return sum(count(len(data), segment) for _, data, segment, _ in messages)


def _drop_of(error: OSError) -> Drop:
    """Return how a failed send is counted."""
    match error.errno:
        case errno.EAGAIN | errno.ENOBUFS:
            return Drop.SNDBUF
        case errno.EMSGSIZE:
            return Drop.TOO_BIG
        case errno.ENOMEM:
            return Drop.RESOURCES
        case _:
            return Drop.ICMP
