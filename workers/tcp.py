"""TCP: accepting clients, and the life of one session.

A session reads until the detector has decided, connects to a target (the next one where one fails), and relays both
directions until both have ended. It owns both sockets from the moment it has them to its own end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from rpxy_l4.access_log import describe, endpoint
from rpxy_l4.addresses import SocketAddress
from rpxy_l4.detect.tcp import TcpDetector
from rpxy_l4.endings import ConnectResult, Detected, Reason, Rejection
from rpxy_l4.metrics.layout import (
    ACCEPT_ERRNOS,
    CONNECT_BUCKETS,
    CONNECT_INDEX,
    DETECTED_INDEX,
    DETECTION_BUCKETS,
    L_ACCEPT_ERRORS,
    L_DETECTED,
    L_DETECTION_HISTOGRAM,
    L_PROXY_HEADERS,
    L_REJECTED,
    L_SESSION_HISTOGRAM,
    REASON_INDEX,
    REJECTION_INDEX,
    SESSION_BUCKETS,
    T_BYTES_IN,
    T_BYTES_OUT,
    T_CLOSED,
    T_CONNECT_HISTOGRAM,
    T_CONNECTS,
    T_OPENED,
    Cell,
)
from rpxy_l4.metrics.slab import observe
from rpxy_l4.net import stream
from rpxy_l4.proxy_protocol import build as build_proxy_header
from rpxy_l4.proxy_protocol import parse as parse_proxy_header
from rpxy_l4.snapshot import AtLimit, Bind, Route, Target
from rpxy_l4.verdict import Match, NeedMore, NoMatch, Transport
from rpxy_l4.workers import poller
from rpxy_l4.workers.context import RECOGNISED, Context, Generation, Half, count_shortage
from rpxy_l4.workers.relay import BUFFER_BYTES, WAIT, Direction, Outcome

EVENTS: Final = logging.getLogger(__name__)

_ACCEPT_BATCH: Final = 64
_DESCRIPTORS: Final = 2
"""Of a session: the client's socket and the target's."""
_CUT_SECONDS: Final = 30.0
"""How long one end may take to read what the other had sent before it was reset."""
_UNDECIDED_SHARE: Final = 0.5
"""Of ``tcp_max_connections``: clients that say nothing must leave places for those that do."""
_MAX_UNDECIDED: Final = 1024
"""Sessions of one worker, however many there may be in all; each holds at most ``DETECT_LIMIT`` bytes."""
_OPENED: Final = int(Cell.TCP_OPENED)
_ENDED: Final = int(Cell.TCP_CLOSED)
_CONNECTED: Final = T_CONNECTS + CONNECT_INDEX[ConnectResult.OK]
_NO_CANDIDATES: Final[Iterator[tuple[Target, str]]] = iter(())
_PAUSE: Final = 0.5
"""Seconds without accepting after the machine ran out of something."""

_LOOK: Final = 0.02
_LOOK_SOON: Final = 0.005
"""Seconds between two looks whether a session has ended in another worker."""

_EXHAUSTED: Final = {errno.EMFILE: "EMFILE", errno.ENFILE: "ENFILE", errno.ENOBUFS: "ENOBUFS", errno.ENOMEM: "ENOMEM"}

# accept(2): what had gone wrong with the connection while it was queued; the next one may be well.
_GONE: Final = frozenset({
    errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
})  # fmt: skip


class TcpListener:
    """One listening socket of a slot, or the worker's inbox of connections that others accepted. Owns its copy."""

    def __init__(
        self,
        context: Context,
        bind: Bind | str,
        sock: socket.socket,
        sessions: set[TcpSession],
        accept: Callable[[], tuple[int, SocketAddress]] | None = None,
    ) -> None:
        """Begin to accept once :meth:`resume` is called; new sessions are added to ``sessions``.

        ``accept`` takes the next connection from an inbox, with a descriptor and an address; what it brings is not
        handed on. ``bind`` is for the log then.
        """
        self.bind = bind
        self.generation: Generation | None = None
        """The configuration for new sessions."""
        self._context = context
        self._socket = sock
        self._accept = stream.acceptor(sock) if accept is None else accept
        self._may_hand_on = accept is None
        self._sessions = sessions
        self._paused = True
        self._timer: asyncio.TimerHandle | None = None
        """Set while paused, unless by :meth:`close`."""
        self._is_starved = False
        """Paused until a session ends, because descriptors are kept for those that are open."""
        self._is_full = False
        """Paused because there are as many sessions as there may be, and what comes on top is to wait."""

    def resume(self) -> None:
        """Accept, unless that is what happens already or the socket is closed."""
        self._is_starved = self._is_full = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._paused and self._socket.fileno() >= 0:
            self._paused = False
            self._context.poller.add(self._socket.fileno(), self, poller.LEVEL)

    def close(self) -> None:
        """Take what is queued, then close this worker's copy of the socket."""
        if self.generation is not None:
            # Bounded: a flood must not keep the listener alive.
            self.accept(2 * self.generation.snapshot.tcp_backlog)
        self.leave()

    def leave(self) -> None:
        """Close this worker's copy of the socket; what is queued is for the worker that has another one."""
        self._context.poller.remove(self._socket.fileno())
        self._socket.close()
        self._paused = True

    def on_event(self, descriptor: int, mask: int) -> None:  # noqa: ARG002  all that can be ready is a connection
        """Accept a batch; what is left makes another event."""
        self.accept(_ACCEPT_BATCH)

    def on_again(self) -> None:
        """Never asked for."""

    def abandon(self) -> None:
        """Go on with the next connection: the listener itself is never given up."""

    def accept(self, most: int) -> None:
        """Accept what is queued, at most ``most`` connections."""
        colleagues = self._context.colleagues if self._may_hand_on else None
        for _ in range(most):
            if not self._context.has_descriptors():
                self._is_starved = True
                self._out_of_resources(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            if delay := self._delay():
                self.pause(delay)
                return
            try:
                client, address = self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._out_of_resources(error)
                return
            if colleagues is not None and colleagues.hand(client, address, self._context.poller.now):
                continue
            os.set_blocking(client, False)
            self._begin(client, address)

    def _begin(self, client: int, address: SocketAddress) -> None:
        context, generation = self._context, self.generation
        if generation is None or generation.tcp is None:
            os.close(client)
            return
        half = generation.tcp
        context.row[_OPENED] += 1
        context.demand += _DESCRIPTORS
        session = TcpSession(context, self, generation, half, client, address[:2])
        self._sessions.add(session)
        rejection = None if half.side.at_limit is AtLimit.WAIT else self._beyond(half)
        if rejection is not None:
            stream.reset_on_close(client)
            session.refuse(rejection)
            return
        if half.admission is not None:
            half.admission.admit()
        try:
            context.poller.add(client, session, poller.STREAM)
        except OSError as error:
            EVENTS.warning("cannot watch a connection on %s: %s", self.bind, error.strerror)
            session.refuse(Rejection.RESOURCES)
            return
        try:
            session.start()
            if generation.learns_clients:
                self._learn(client, address, generation.snapshot.generation)
        except Exception:  # noqa: BLE001  the loop's edge: a fault in one session must not end the others
            EVENTS.exception("fault while accepting a session; it was closed")
            session.abandon()

    def _learn(self, client: int, address: SocketAddress, generation: int) -> None:
        """Let the kernel path begin what this client opens from now on."""
        clients = self._context.clients
        if clients is not None and clients.are_wanted:
            with contextlib.suppress(OSError):  # the session is over already
                clients.admit(address[:2], stream.local_address(client), generation, self._context.poller.now)

    def _beyond(self, half: Half) -> Rejection | None:
        """Return the limit that the connection just accepted is beyond."""
        context = self._context
        if context.tcp_sessions.count(context.poller.now, half.side.max_sessions) > half.side.max_sessions:
            return Rejection.LIMIT
        if half.admission is not None and half.admission.delay(context.poller.now):
            return Rejection.RATE
        return None

    def _delay(self) -> float:
        """Return for how long the next connection has to wait in the queue before it is worth looking again."""
        context = self._context
        half = None if self.generation is None else self.generation.tcp
        if half is None or half.side.at_limit is not AtLimit.WAIT:
            return 0.0
        room = half.side.max_sessions
        if self._may_hand_on and context.colleagues is not None:
            room -= context.colleagues.under_way(context.poller.now)
        if context.tcp_sessions.count(context.poller.now, room) >= room:
            self._is_full = True
            # Other workers say nothing when a session of theirs ends. The first to look takes its place, and that is
            # to be a worker with less than its share: else one with many sessions would take up all of them again.
            return _LOOK_SOON if self._has_less_than_its_share() else _LOOK
        return 0.0 if half.admission is None else half.admission.delay(context.poller.now)

    def _has_less_than_its_share(self) -> bool:
        if self.generation is None or self.generation.tcp is None:
            return True
        context = self._context
        share = max(1, self.generation.tcp.side.max_sessions // context.living.count(context.poller.now))
        return context.row[_OPENED] - context.row[_ENDED] < share

    def end_session(self, session: TcpSession) -> None:
        """Forget a session that has closed its sockets."""
        self._sessions.discard(session)
        self._context.row[_ENDED] += 1
        self._context.demand -= _DESCRIPTORS
        if self._is_starved or (self._is_full and self._has_less_than_its_share()):
            self.resume()

    def _out_of_resources(self, error: OSError) -> None:
        name = _EXHAUSTED.get(error.errno or 0, "other")
        if self.generation is not None and self.generation.tcp is not None:
            self.generation.tcp.cells[L_ACCEPT_ERRORS + ACCEPT_ERRNOS.index(name)] += 1
        EVENTS.warning("cannot accept on %s: %s; trying again in %s s", self.bind, error.strerror, _PAUSE)
        self.pause()

    def pause(self, seconds: float = _PAUSE) -> None:
        """Stop accepting for a moment; clients wait in the accept queue, and nothing spins."""
        if not self._paused:
            self._paused = True
            self._context.poller.remove(self._socket.fileno())
            self._timer = self._context.loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        """Go on accepting when there is room."""
        self._timer = None
        if self._socket.fileno() < 0:
            return
        self._context.poller.begin_batch()
        if delay := self._delay():
            self._timer = self._context.loop.call_later(delay, self._look_again)
        else:
            self.resume()
        self._context.poller.end_batch()


# Stages of a session's life. Plain numbers, because finding a member of an enumeration costs as much as a call.
_HEADER: Final = 0
_DETECT: Final = 1
_CONNECT: Final = 2
_RELAY: Final = 3
_CLOSED: Final = 4


class TcpSession:
    """One TCP connection through the proxy."""

    __slots__ = (
        "_address",
        "_again",
        "_buffer",
        "_candidates",
        "_client",
        "_client_mask",
        "_context",
        "_destination",
        "_detected",
        "_detector",
        "_down",
        "_first_eof",
        "_generation",
        "_half",
        "_header_bytes",
        "_listener",
        "_lost",
        "_match",
        "_remote",
        "_route",
        "_socket",
        "_source",
        "_stage",
        "_t_connect",
        "_t_connected",
        "_t_decided",
        "_t_open",
        "_target",
        "_tries",
        "_up",
        "_wait",
    )

    def __init__(
        self,
        context: Context,
        listener: TcpListener,
        generation: Generation,
        half: Half,
        client: int,
        address: tuple[str, int],
    ) -> None:
        """Take ownership of the descriptor of an accepted, non-blocking socket."""
        self._context = context
        self._listener = listener
        self._generation = generation
        self._half = half
        self._client = client
        self._remote = address
        self._source = address
        """Who the client is: ``_remote``, or what a trusted PROXY header says."""
        self._destination: tuple[str, int] | None = None
        self._stage = _DETECT
        self._buffer = b""
        self._header_bytes = 1
        """Below this many bytes the PROXY header cannot be judged."""
        self._client_mask = 0
        """What the client's socket was ready for while there was no target; edge-triggered, so not said again."""
        self._detector: TcpDetector | None = None
        self._detected = Detected.SKIPPED
        self._match: Match | None = None
        self._route: Route | None = None
        self._candidates: Iterator[tuple[Target, str]] = _NO_CANDIDATES
        self._target: Target | None = None
        self._address = ""
        self._socket = -1
        """Descriptor of the socket towards the target; -1: there is none."""
        self._tries = 0
        self._wait = 0.0
        """Seconds that the session now waits for something; 0: it does not wait."""
        self._up: Direction | None = None
        self._down: Direction | None = None
        self._first_eof: Reason | None = None
        self._lost: Reason | None = None
        self._again = False
        self._t_open = self._t_decided = self._t_connect = self._t_connected = context.poller.now

    @property
    def target_series(self) -> int | None:
        """That of its target in the counters; None while it has none."""
        return None if self._target is None else self._target.series

    def start(self) -> None:
        """Begin with the PROXY header, detection or the connection, whichever comes first here."""
        snapshot = self._generation.snapshot
        if snapshot.recv_proxy_protocol:
            if not _is_trusted(self._remote[0], snapshot.trusted_proxies):
                self.refuse(Rejection.ACL)
                return
            self._stage = _HEADER
        elif not self._half.wanted:
            self._decide(None, Detected.SKIPPED)
            return
        self._wait_for(snapshot.tcp_detect_timeout)
        undecided = self._context.undecided
        undecided[self] = None
        if len(undecided) > self._most_undecided():
            next(iter(undecided)).give_way()

    def _most_undecided(self) -> int:
        """Return how many sessions of this worker may wait for their first bytes."""
        context = self._context
        share = int(self._half.side.max_sessions * _UNDECIDED_SHARE) // context.living.count(context.poller.now)
        return max(1, min(_MAX_UNDECIDED, share))

    def _wait_for(self, seconds: float) -> None:
        """Have :meth:`on_deadline` called after some time, and not after what was asked for before."""
        if self._wait:
            self._context.alarm.cancel(self._wait, self)
        self._wait = seconds
        if seconds:
            self._context.alarm.wait(seconds, self)

    # Events

    def on_event(self, descriptor: int, mask: int) -> None:
        """Handle readiness of the client's or the target's socket, before bytes are relayed."""
        if descriptor != self._client:
            if self._stage == _CONNECT and mask & poller.WRITABLE:
                self._on_connected(mask)
            return
        self._client_mask |= mask
        if self._stage == _CONNECT:
            if mask & poller.BROKEN:
                self.refuse(Rejection.CLIENT_GONE)
        elif mask & poller.READABLE:
            self._read()

    def on_deadline(self) -> None:
        """Give up waiting for the client's first bytes, for the target, or for the rest of a cut-off stream.

        A session that lasted until now is kept alive from here on.
        """
        self._wait = 0.0
        stage = self._stage
        if stage == _HEADER:
            self._count_header(accepted=False)
            self.refuse(Rejection.PROXY_HEADER)
        elif stage == _DETECT:
            self._decide(None, Detected.TIMEOUT)
        elif stage == _CONNECT:
            self._attempt_failed(errno.ETIMEDOUT)
        elif stage == _RELAY:
            if self._lost is not None:
                self._finish(self._lost)
            else:
                # Most sessions end before: only those that last are worth the system calls.
                stream.keep_alive(self._socket)

    def on_again(self) -> None:
        """Go on relaying."""
        self._again = False
        for direction in (self._up, self._down):
            if direction is not None and direction.readable and not direction.done and self._stage == _RELAY:
                self._pump(direction)

    def abandon(self) -> None:
        """Close after a fault in this program."""
        if self._stage == _CLOSED:
            return
        if self._stage == _RELAY:
            self._finish(Reason.INTERNAL)
        else:
            self.refuse(Rejection.RESOURCES)

    # Before there is a target

    def _read(self) -> None:
        """Read what the client sent so far, and decide if that is enough."""
        while self._stage <= _DETECT:
            try:
                data = os.read(self._client, BUFFER_BYTES)
            except BlockingIOError:
                self._client_mask &= ~poller.DATA
                return
            except OSError:
                self.refuse(Rejection.CLIENT_GONE)
                return
            self._buffer = self._buffer + data if self._buffer else data
            if len(data) < BUFFER_BYTES and not self._client_mask & poller.ENDED:
                # epoll(7): less than asked for means that there is no more for now.
                self._client_mask &= ~poller.DATA
            if self._stage == _HEADER:
                self._take_header(not data)
            if self._stage == _DETECT:
                self._try_detect(not data)
            if not self._client_mask & poller.READABLE:
                return

    def _take_header(self, eof: bool) -> None:
        """Go on to detection when the PROXY header is complete; refuse the session when it never will be."""
        if len(self._buffer) < self._header_bytes and not eof:
            return
        header = parse_proxy_header(self._buffer)
        if isinstance(header, NeedMore) and not eof:
            self._header_bytes = header.total
            return
        if isinstance(header, NeedMore | NoMatch):
            self._count_header(accepted=False)
            self.refuse(Rejection.PROXY_HEADER)
            return
        self._count_header(accepted=True)
        self._buffer = self._buffer[header.consumed :]
        self._source = header.source or self._remote
        self._destination = header.destination
        self._stage = _DETECT

    def _count_header(self, *, accepted: bool) -> None:
        self._half.cells[L_PROXY_HEADERS + (0 if accepted else 1)] += 1

    def _try_detect(self, eof: bool) -> None:
        """Take a route, if what was received so far is enough to decide."""
        if not self._half.wanted:
            self._decide(None, Detected.SKIPPED)
            return
        if self._detector is None:
            self._detector = TcpDetector(self._half.wanted)
        verdict = self._detector.feed(self._buffer, eof)
        if isinstance(verdict, Match):
            self._decide(verdict, RECOGNISED[verdict.protocol])
        elif not isinstance(verdict, NeedMore):
            self._decide(None, Detected.UNKNOWN)

    def _decide(self, match: Match | None, detected: Detected) -> None:
        """Take the route that detection leads to."""
        self._t_decided = self._context.poller.now
        self._context.undecided.pop(self, None)
        self._detector = None
        if self._wait:
            self._wait_for(0.0)
        self._match = match
        self._detected = detected
        cells = self._half.cells
        cells[L_DETECTED + DETECTED_INDEX[detected]] += 1
        if detected is not Detected.SKIPPED:
            observe(cells, L_DETECTION_HISTOGRAM, DETECTION_BUCKETS, self._t_decided - self._t_open)
        route = self._half.router.find(match)
        if route is None:
            self.refuse(Rejection.DETECT_TIMEOUT if detected is Detected.TIMEOUT else Rejection.NO_ROUTE)
            return
        self._route = route
        self._candidates = self._context.candidates(route, self._source)
        self._stage = _CONNECT
        self._connect_next(Rejection.NO_TARGET)

    # Connecting

    def _connect_next(self, otherwise: Rejection | Reason) -> None:
        """Begin to connect to the next candidate; ``otherwise`` says what it means that there is none."""
        context = self._context
        for target, address in self._candidates:
            self._target, self._address = target, address
            self._tries += 1
            self._t_connect = context.poller.now
            try:
                self._socket = stream.connect(address, target.port)
                context.poller.add(self._socket, self, poller.STREAM)
            except OSError as error:
                if count_shortage(self._half.cells, error.errno) and error.errno in _EXHAUSTED:
                    EVENTS.warning("cannot connect to %s: %s", target.text, error.strerror)
                    self._drop_socket()
                    self._listener.pause()
                    self.refuse(Rejection.RESOURCES)
                    return
                otherwise = self._count_failure(error.errno or 0)
                continue
            self._wait_for(self._generation.snapshot.tcp_connect_timeout)
            return
        if isinstance(otherwise, Rejection):
            self.refuse(otherwise)
        else:
            self._open_target()
            self._finish(otherwise)

    def _attempt_failed(self, number: int) -> None:
        self._connect_next(self._count_failure(number))

    def _count_failure(self, number: int) -> Reason:
        """Count a failed attempt, let go of its socket, and return how the session ends if no other succeeds."""
        self._drop_socket()
        result = stream.connect_result(number)
        if self._target is not None:
            self._context.target_cells(self._target)[T_CONNECTS + CONNECT_INDEX[result]] += 1
            EVENTS.warning("cannot connect to target %s (%s): %s", self._target.text, self._address, result.value)
        match result:
            case ConnectResult.REFUSED:
                return Reason.CONNECT_REFUSED
            case ConnectResult.TIMEOUT:
                return Reason.CONNECT_TIMEOUT
            case ConnectResult.UNREACHABLE:
                return Reason.CONNECT_UNREACHABLE
            case _:
                return Reason.INTERNAL

    def _drop_socket(self) -> None:
        if self._socket >= 0:
            self._context.poller.close(self._socket)
            self._socket = -1

    def _on_connected(self, mask: int) -> None:
        """Start relaying, or try the next target."""
        assert self._target is not None  # noqa: S101  there is an attempt, or no such event
        if mask & poller.BROKEN and (number := stream.connect_error(self._socket)):
            self._attempt_failed(number)
            return
        context, client, target = self._context, self._client, self._socket
        self._t_connected = context.poller.now
        self._candidates = _NO_CANDIDATES
        self._stage = _RELAY
        if self._wait > stream.KEEPALIVE_SECONDS:
            self._wait_for(stream.KEEPALIVE_SECONDS)
        cells = self._open_target()
        cells[_CONNECTED] += 1
        observe(cells, T_CONNECT_HISTOGRAM, CONNECT_BUCKETS, self._t_connected - self._t_connect)
        first = self._proxy_header() + self._buffer
        self._buffer = b""
        conduit = context.conduit
        self._up = up = Direction(self, conduit, client, target, cells, T_BYTES_IN, first)
        self._down = down = Direction(self, conduit, target, client, cells, T_BYTES_OUT)
        up.other, down.other = down, up
        context.poller.hand_over(client, up)
        context.poller.hand_over(target, down)
        up.readable = bool(self._client_mask & poller.READABLE)
        up.hup = bool(self._client_mask & poller.ENDED)
        if first or up.readable:
            self._pump(up)
        if mask & poller.READABLE and self._stage == _RELAY:
            self.on_readiness(down, mask)

    def _open_target(self) -> memoryview:
        """Count the session as given to its target, and return the target's counters."""
        assert self._target is not None  # noqa: S101  only once there is one
        cells = self._context.target_cells(self._target)
        cells[T_OPENED] += 1
        return cells

    def _proxy_header(self) -> bytes:
        version = None if self._route is None else self._route.proxy_version
        if version is None:
            return b""
        return build_proxy_header(version, self._source, self._destination or stream.local_address(self._client))

    # Relaying

    def on_readiness(self, direction: Direction, mask: int) -> None:
        """Move what can be moved, now that the source of ``direction`` is ready for more than an ordinary message."""
        other = direction.other
        if mask & poller.READABLE:
            direction.readable = True
            if mask & poller.ENDED:
                direction.hup = True
            if not direction.done:
                self._pump(direction)
        if mask & poller.WRITABLE and self._stage == _RELAY and other.is_blocked:
            self._pump(other)
        # Reading would say so, but nothing is read: after an orderly end, or while the target does not take what the
        # client sent before it was reset. What a target sent before is still delivered: the client is there for it.
        if mask & poller.RESET and self._stage == _RELAY:
            upwards = direction is self._up
            if direction.done or (upwards and direction.is_blocked):
                self._finish(Reason.CLIENT_RESET if upwards else Reason.TARGET_RESET)

    def _pump(self, direction: Direction) -> None:
        self.on_outcome(direction, direction.pump())

    def on_outcome(self, direction: Direction, outcome: Outcome) -> None:
        """Go on as the last move demands."""
        if outcome is WAIT:
            return
        if outcome is Outcome.AGAIN:
            if not self._again:
                self._again = True
                self._context.again(self)
            return
        upwards, other = direction is self._up, direction.other
        if outcome is Outcome.DONE:
            if self._first_eof is None:
                self._first_eof = Reason.CLIENT_EOF if upwards else Reason.TARGET_EOF
            if other.done:
                self._finish(self._lost or self._first_eof)
        elif outcome is Outcome.SOURCE_LOST:
            self._finish(self._lost or (Reason.CLIENT_RESET if upwards else Reason.TARGET_RESET))
        else:
            direction.stop()
            self._lost = self._lost or (Reason.TARGET_RESET if upwards else Reason.CLIENT_RESET)
            if other.done:
                self._finish(self._lost)
                return
            other.cut = True
            self._wait_for(_CUT_SECONDS)
            # The other direction reads from the lost socket: what it sent before it was lost is still delivered.
            other.readable = other.hup = True
            self._pump(other)

    # The end

    def give_way(self) -> None:
        """Close to make room for a new connection, unless what the client has sent by now says what it is.

        Of many that come at once, none may have been looked at before the next is accepted.
        """
        self._read()
        if self._stage <= _DETECT:
            self.refuse(Rejection.EVICTED)

    def end(self) -> None:
        """Close now, because the worker stops."""
        if self._stage == _RELAY:
            self._finish(Reason.DRAIN)
        elif self._stage != _CLOSED:
            self.refuse(Rejection.DRAINING)

    def refuse(self, rejection: Rejection) -> None:
        """Close a session that no target was found for, and count why."""
        self._close()
        self._half.cells[L_REJECTED + REJECTION_INDEX[rejection]] += 1
        if self._generation.snapshot.access_log:
            self._context.log.refused(
                f"{self._log_head()} reason={rejection.value}", rejection.value, self._context.poller.now
            )

    def _finish(self, reason: Reason) -> None:
        """Close a session that was given to a target, and count and log its end."""
        assert self._target is not None  # noqa: S101  only once there is one
        context, now = self._context, self._context.poller.now
        if self._socket >= 0:
            if reason in {Reason.CLIENT_RESET, Reason.INTERNAL}:
                stream.reset_on_close(self._socket)
            if reason in {Reason.TARGET_RESET, Reason.INTERNAL}:
                stream.reset_on_close(self._client)
        up, down = self._up, self._down
        # First of all: a fault in what follows must not leave the session half closed, or count it twice.
        self._close()
        context.target_cells(self._target)[T_CLOSED + REASON_INDEX[reason]] += 1
        observe(self._half.cells, L_SESSION_HISTOGRAM, SESSION_BUCKETS, now - self._t_open)
        if self._generation.snapshot.access_log:
            tried = f" tries={self._tries}" if self._tries > 1 else ""
            resolved = f" address={endpoint(self._address, self._target.port)}" if self._target.is_name else ""
            connected = self._t_connected - self._t_connect if up is not None else 0.0
            context.log.session(
                f"{self._log_head()} target={self._target.text}{resolved}{tried}"
                f" bytes_in={up.moved if up else 0} bytes_out={down.moved if down else 0}"
                f" detect_ms={(self._t_decided - self._t_open) * 1e3:.1f} connect_ms={connected * 1e3:.1f}"
                f" duration_ms={(now - self._t_open) * 1e3:.1f} reason={reason.value}"
            )

    def _log_head(self) -> str:
        client = endpoint(*self._source)
        if self._source is not self._remote:
            client += f" proxied_by={endpoint(*self._remote)}"
        listener = self._generation.snapshot.listener
        route = None if self._route is None else self._route.name
        return describe(client, listener, Transport.TCP, self._detected, self._match, route)

    def _close(self) -> None:
        self._context.undecided.pop(self, None)
        self._stage = _CLOSED
        if self._wait:
            self._wait_for(0.0)
        for direction in (self._up, self._down):
            if direction is not None:
                direction.forget()
        self._up = self._down = None
        self._context.poller.close(self._client)
        self._drop_socket()
        self._listener.end_session(self)


def _is_trusted(host: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    address = ip_address(host)
    return any(address in network for network in networks if network.version == address.version)
