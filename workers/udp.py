"""UDP: flows, that is pseudo connections, between clients and targets.

One unconnected socket of this slot receives from all clients of an address; a dict finds the flow of each. A flow has a
connected socket of its own towards its target. Datagrams of an undecided flow are held, and go to the chosen target
in the order in which they came.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Final

from rpxy_l4.detect.udp import UdpDetector
from rpxy_l4.endings import Detected, Drop, Reason, Rejection
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
    T_OPENED,
    Cell,
)
from rpxy_l4.net import datagram
from rpxy_l4.net.ancillary import Ancillary
from rpxy_l4.net.burst import Burst, Message, bursts, count, split
from rpxy_l4.net.datagram import Address, Sender
from rpxy_l4.net.inbox import address_of
from rpxy_l4.net.mmsg import DATAGRAM_BYTES, MOST
from rpxy_l4.snapshot import Bind, Route, Target
from rpxy_l4.verdict import Match, NeedMore, Transport
from rpxy_l4.workers import poller
from rpxy_l4.workers.access_log import describe, endpoint
from rpxy_l4.workers.context import RECOGNISED, Context, Generation, Half, observe

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
_MAX_HELD: Final = 16_384
"""Bytes of a first flight that are kept to be sent again to another target."""
_MAX_UNDECIDED: Final = 1024
"""Flows of one worker that may wait for the rest of their first flight; each holds at most about 16 KiB."""

_SHARE: Final = 0.75
"""Of the descriptors: a flood of datagrams from made-up addresses must leave some for connections."""
_QUIET_SECONDS: Final = 5.0
"""Flows have no end of their own: a stopping worker waits for those in use, not for those that may be again."""

Key = bytes
"""The client's address, and on a wildcard address the one of ours that it used."""

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class UdpListener:
    """One client-facing socket of this slot, and its flows. Owns its copy of the socket."""

    def __init__(self, context: Context, bind: Bind, sock: socket.socket, undecided: dict[UdpFlow, None]) -> None:
        """Receive from now on. ``undecided`` is shared by all listeners of the worker, oldest first."""
        self.bind = bind
        self.generation: Generation | None = None
        """The configuration for new flows."""
        self.accepts = True
        """False while the listener only serves the flows it has."""
        self.flows: dict[Key, UdpFlow] = {}
        self.undecided = undecided
        self.socket = sock
        self._most = MOST
        self._context = context
        context.poller.add(sock.fileno(), self, poller.LEVEL)

    def close(self) -> None:
        """End every flow and close this worker's copy of the socket."""
        for flow in list(self.flows.values()):
            flow.end()
        self._context.poller.remove(self.socket.fileno())
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
                return
            total = sum(len(message[1]) for message in messages)
            if total > _BUSY_BYTES:
                self._most = max(1, self._most // 2)
            elif total < _BUSY_BYTES // 4:
                self._most = min(MOST, 2 * self._most)

    def _deliver(self, messages: Sequence[Message]) -> None:
        """Give each flow what came for it, in order, and what came together together."""
        key: Key = b""
        together: list[Message] = []
        for message in messages:
            reply = message[3]
            its_key = message[0] if reply is None else message[0] + reply[2]
            if its_key != key:
                if together:
                    self._give(key, together)
                key, together = its_key, []
            together.append(message)
        if together:
            self._give(key, together)

    def _give(self, key: Key, messages: Sequence[Message]) -> None:
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
        half, (name, _, _, reply) = generation.udp, messages[0]
        if not self.accepts:
            half.cells[L_DROPPED + DROP_INDEX[Drop.DRAINING]] += _datagrams(messages)
            return None
        full = context.udp_sessions.count(context.poller.now) >= half.side.max_sessions
        if full or not context.has_descriptors(_SHARE):
            rejection, drop = (Rejection.LIMIT, Drop.LIMIT) if full else (Rejection.RESOURCES, Drop.RESOURCES)
            half.cells[L_DROPPED + DROP_INDEX[drop]] += _datagrams(messages)
            half.cells[L_REJECTED + REJECTION_INDEX[rejection]] += 1
            if generation.snapshot.access_log:
                client, listener = endpoint(*address_of(name)[:2]), generation.snapshot.listener
                head = describe(client, listener, Transport.UDP, Detected.SKIPPED, None, None)
                context.log.refused(f"{head} reason={rejection}", rejection, context.poller.now)
            return None
        flow = self.flows[key] = UdpFlow(context, self, generation, half, key, address_of(name), reply)
        context.row[Cell.UDP_OPENED] += 1
        context.demand += 1
        return flow

    def forget(self, key: Key) -> None:
        """Forget a flow that has closed its socket."""
        del self.flows[key]
        self._context.row[Cell.UDP_CLOSED] += 1
        self._context.demand -= 1


class UdpFlow:
    """One UDP pseudo connection: a client address and the local address it used."""

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
        "_generation",
        "_half",
        "_held",
        "_idle",
        "_is_closed",
        "_is_watched",
        "_key",
        "_large",
        "_last",
        "_listener",
        "_match",
        "_route",
        "_socket",
        "_t_decided",
        "_t_open",
        "_target",
        "_to_client",
        "_to_target",
        "_tries",
    )

    def __init__(
        self,
        context: Context,
        listener: UdpListener,
        generation: Generation,
        half: Half,
        key: Key,
        client: Address,
        reply: Ancillary | None,
    ) -> None:
        """Begin undecided, unless there is nothing to detect."""
        self._context = context
        self._listener = listener
        self._generation = generation
        self._half = half
        self._key = key
        self._client = client
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
        self._is_closed = False
        self._is_watched = False
        """Whether it is in the table of deadlines, where it may be only once."""
        self._bytes_in = self._bytes_out = self._datagrams_in = self._datagrams_out = 0
        self._t_open = self._t_decided = self._last = context.poller.now

    # From the client

    def take(self, messages: Sequence[Message]) -> None:
        """Forward what the client sent, or hold it while the flow is undecided."""
        self._last = self._context.poller.now
        try:
            if self._to_target is None:
                self._detect(messages)
                return
            if self._candidates:
                for message in messages:
                    self._hold(message)
                if self._holds_too_much:
                    self._settle()
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

    def _wait_for_more(self) -> None:
        undecided = self._listener.undecided
        if len(undecided) >= _MAX_UNDECIDED:
            next(iter(undecided)).refuse(Rejection.RESOURCES, Drop.UNDECIDED)
        undecided[self] = None
        self._watch(self._t_open + _UNDECIDED_SECONDS)

    def _decide(self, match: Match | None, detected: Detected) -> None:
        """Take the route that detection leads to, and send what was held."""
        now = self._context.poller.now
        self._listener.undecided.pop(self, None)
        self._detector = None
        self._t_decided = now
        self._match = match
        self._detected = detected
        cells = self._half.cells
        cells[L_DETECTED + DETECTED_INDEX[detected]] += 1
        if detected is not Detected.SKIPPED:
            observe(cells, L_DETECTION_HISTOGRAM, DETECTION_BUCKETS, now - self._t_open)
        self._route = self._half.router.find(match)
        if self._route is None:
            self.refuse(Rejection.NO_ROUTE, Drop.NO_ROUTE)
            return
        self._candidates = list(self._context.candidates(self._route, self._client[:2]))
        self._idle = self._route.idle_lifetime
        if self._open_target():
            self._watch_idleness()
        elif not self._is_closed:
            self.refuse(Rejection.NO_TARGET, Drop.NO_TARGET)

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
                if error.errno in _OUT_OF_RESOURCES:
                    if self._target is None:
                        self.refuse(Rejection.RESOURCES, Drop.RESOURCES)
                    return False
                continue
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
        except OSError:  # an ICMP error: the target may be back in a moment, so the flow lives on
            self._target_refuses()
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
            except OSError:  # as above
                self._target_refuses()
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

    def on_deadline(self, now: float) -> None:
        """Stop waiting for the rest of a first flight, or end an idle flow."""
        self._is_watched = False
        if self._is_closed:
            return
        if self._to_target is None:
            self._decide(None, Detected.TIMEOUT)
        elif now - self._last >= self._idle:
            self._finish(Reason.IDLE)
        else:
            self._watch_idleness()

    def _watch_idleness(self) -> None:
        if self._idle != float("inf"):
            self._watch(self._last + self._idle)

    def _watch(self, deadline: float) -> None:
        """Be called at a deadline, or at an earlier one that was asked for before."""
        if not self._is_watched:
            self._is_watched = True
            self._context.alarm.add(deadline, self)

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
        # First of all: a fault in what follows must not leave the flow half closed, or count it twice.
        self._close()
        self._cells[T_CLOSED + REASON_INDEX[reason]] += 1
        observe(self._half.cells, L_SESSION_HISTOGRAM, SESSION_BUCKETS, now - self._t_open)
        if self._generation.snapshot.access_log:
            resolved = f" address={endpoint(self._address, self._target.port)}" if self._target.is_name else ""
            tried = f" tries={self._tries}" if self._tries > 1 else ""
            context.log.session(
                f"{self._describe()} target={self._target.text}{resolved}{tried} bytes_in={self._bytes_in}"
                f" bytes_out={self._bytes_out} datagrams_in={self._datagrams_in} datagrams_out={self._datagrams_out}"
                f" detect_ms={(self._t_decided - self._t_open) * 1e3:.1f}"
                f" duration_ms={(now - self._t_open) * 1e3:.1f} reason={reason}"
            )

    def _describe(self) -> str:
        host, port = self._client[:2]
        listener = self._generation.snapshot.listener
        return describe(endpoint(host, port), listener, Transport.UDP, self._detected, self._match, self._route)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._context.poller.close(self._socket.detach())
            self._socket = None
            self._descriptor = -1

    @property
    def is_quiet(self) -> bool:
        """Whether it carries nothing just now that would be worth waiting for."""
        return self._context.poller.now - self._last > _QUIET_SECONDS

    def _close(self) -> None:
        self._is_closed = True
        self._settle()
        self._drop_socket()
        self._listener.undecided.pop(self, None)
        self._listener.forget(self._key)


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
