"""TCP: accepting clients, and the life of one session.

A session reads until the detector has decided, connects to a target (the next one where one fails), and relays both
directions until both have ended. It owns both sockets from the moment it has them to its own end.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

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
from rpxy_l4.net import stream
from rpxy_l4.proxy_protocol import build as build_proxy_header
from rpxy_l4.proxy_protocol import parse as parse_proxy_header
from rpxy_l4.snapshot import Bind, Route, Target
from rpxy_l4.verdict import Match, NeedMore, NoMatch, Transport
from rpxy_l4.workers import poller
from rpxy_l4.workers.access_log import describe, endpoint
from rpxy_l4.workers.context import Context, Generation, Half, observe
from rpxy_l4.workers.relay import Direction, Outcome

EVENTS: Final = logging.getLogger(__name__)

_ACCEPT_BATCH: Final = 64
_READ_BYTES: Final = 65_536
_DESCRIPTORS: Final = 2
"""Of a session: the client's socket and the target's."""
_CUT_SECONDS: Final = 30.0
"""How long one end may take to read what the other had sent before it was reset."""
_PAUSE: Final = 0.5
"""Seconds without accepting after the machine ran out of something."""

_EXHAUSTED: Final = {errno.EMFILE: "EMFILE", errno.ENFILE: "ENFILE", errno.ENOBUFS: "ENOBUFS", errno.ENOMEM: "ENOMEM"}

# accept(2): what had gone wrong with the connection while it was queued; the next one may be well.
_GONE: Final = frozenset({
    errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET,
})  # fmt: skip


class TcpListener:
    """One listening socket of this slot. Owns its copy of it."""

    def __init__(self, context: Context, bind: Bind, sock: socket.socket, sessions: set[TcpSession]) -> None:
        """Begin to accept once :meth:`resume` is called; new sessions are added to ``sessions``."""
        self.bind = bind
        self.generation: Generation | None = None
        """The configuration for new sessions."""
        self._context = context
        self._socket = sock
        self._sessions = sessions
        self._paused = True

    def resume(self) -> None:
        """Accept, unless that is what happens already or the socket is closed."""
        if self._paused and self._socket.fileno() >= 0:
            self._paused = False
            self._context.poller.add(self._socket, self, poller.LEVEL)

    def close(self) -> None:
        """Take what is queued, then close this worker's copy of the socket."""
        if self.generation is not None:
            # Bounded: a flood must not keep the listener alive.
            self.accept(2 * self.generation.snapshot.tcp_backlog)
        self._context.poller.remove(self._socket)
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
        for _ in range(most):
            if not self._context.has_descriptors():
                self._out_of_resources(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            try:
                client, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._out_of_resources(error)
                return
            client.setblocking(False)
            self._begin(client, address)

    def _begin(self, client: socket.socket, address: tuple[str, int]) -> None:
        context, generation = self._context, self.generation
        if generation is None or generation.tcp is None:
            client.close()
            return
        half = generation.tcp
        context.row[Cell.TCP_OPENED] += 1
        context.demand += _DESCRIPTORS
        session = TcpSession(context, self, generation, half, client, (address[0], address[1]))
        self._sessions.add(session)
        if context.open_sessions(Cell.TCP_OPENED, Cell.TCP_CLOSED) > half.side.max_sessions:
            session.refuse(Rejection.LIMIT)
            return
        try:
            context.poller.add(client, session, poller.STREAM)
            session.start()
        except Exception:  # noqa: BLE001  the loop's edge: a fault in one session must not end the others
            EVENTS.exception("fault while accepting a session; it was closed")
            session.abandon()

    def end_session(self, session: TcpSession) -> None:
        """Forget a session that has closed its sockets."""
        self._sessions.discard(session)
        self._context.row[Cell.TCP_CLOSED] += 1
        self._context.demand -= _DESCRIPTORS

    def _out_of_resources(self, error: OSError) -> None:
        name = _EXHAUSTED.get(error.errno or 0, "other")
        if self.generation is not None and self.generation.tcp is not None:
            self.generation.tcp.cells[L_ACCEPT_ERRORS + ACCEPT_ERRNOS.index(name)] += 1
        EVENTS.warning("cannot accept on %s: %s; trying again in %s s", self.bind, error.strerror, _PAUSE)
        self.pause()

    def pause(self) -> None:
        """Stop accepting for a moment; clients wait in the accept queue, and nothing spins."""
        if not self._paused:
            self._paused = True
            self._context.poller.remove(self._socket)
            self._context.loop.call_later(_PAUSE, self.resume)


class _Stage(enum.IntEnum):
    HEADER = 0
    DETECT = 1
    CONNECT = 2
    RELAY = 3
    CLOSED = 4


class TcpSession:
    """One TCP connection through the proxy."""

    __slots__ = (
        "_address",
        "_again",
        "_buffer",
        "_candidates",
        "_client",
        "_client_ended",
        "_context",
        "_deadline",
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
    )

    def __init__(
        self,
        context: Context,
        listener: TcpListener,
        generation: Generation,
        half: Half,
        client: socket.socket,
        address: tuple[str, int],
    ) -> None:
        """Take ownership of an accepted, non-blocking socket."""
        self._context = context
        self._listener = listener
        self._generation = generation
        self._half = half
        self._client = client
        self._remote = address
        self._source = address
        """Who the client is: ``_remote``, or what a trusted PROXY header says."""
        self._destination: tuple[str, int] | None = None
        self._stage = _Stage.DETECT
        self._buffer = bytearray()
        self._header_bytes = 1
        """Below this many bytes the PROXY header cannot be judged."""
        self._client_ended = False
        self._detector: TcpDetector | None = None
        self._detected = Detected.SKIPPED
        self._match: Match | None = None
        self._route: Route | None = None
        self._candidates: Iterator[tuple[Target, str]] = iter(())
        self._target: Target | None = None
        self._address = ""
        self._socket: socket.socket | None = None
        """Towards the target."""
        self._tries = 0
        self._deadline = 0.0
        self._up: Direction | None = None
        self._down: Direction | None = None
        self._first_eof: Reason | None = None
        self._lost: Reason | None = None
        self._again = False
        self._t_open = self._t_decided = self._t_connect = self._t_connected = context.poller.now

    def start(self) -> None:
        """Begin with the PROXY header, detection or the connection, whichever comes first here."""
        snapshot = self._generation.snapshot
        if snapshot.recv_proxy_protocol:
            if not _is_trusted(self._remote[0], snapshot.trusted_proxies):
                self.refuse(Rejection.ACL)
                return
            self._stage = _Stage.HEADER
        elif not self._half.wanted:
            self._decide(None, Detected.SKIPPED)
            return
        self._set_deadline(self._t_open + snapshot.tcp_detect_timeout)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        self._context.alarm.add(deadline, self)

    # Events

    def on_event(self, descriptor: int, mask: int) -> None:
        """Handle readiness of the client's or the target's socket."""
        stage = self._stage
        if stage is _Stage.RELAY:
            self._on_relay(descriptor, mask)
            return
        if mask & poller.ENDED and descriptor == self._client.fileno():
            # The edge will not come again: it must be known when relaying begins.
            self._client_ended = True
        if stage is _Stage.CONNECT:
            if descriptor == self._client.fileno():
                if mask & poller.BROKEN:
                    self.refuse(Rejection.CLIENT_GONE)
            elif mask & poller.WRITABLE:
                self._on_connected(mask)
        elif stage is not _Stage.CLOSED and mask & poller.READABLE:
            self._read()

    def on_deadline(self, now: float) -> None:
        """Give up waiting for the client's first bytes, for the target, or for the rest of a cut-off stream."""
        stage = self._stage
        if stage is _Stage.CLOSED or not self._deadline:
            return
        if now < self._deadline:
            self._context.alarm.add(self._deadline, self)
        elif stage is _Stage.RELAY:
            self._finish(self._lost or Reason.INTERNAL)
        elif stage is _Stage.HEADER:
            self._count_header(accepted=False)
            self.refuse(Rejection.PROXY_HEADER)
        elif stage is _Stage.DETECT:
            self._decide(None, Detected.TIMEOUT)
        else:
            self._attempt_failed(errno.ETIMEDOUT)

    def on_again(self) -> None:
        """Go on relaying."""
        self._again = False
        for direction in (self._up, self._down):
            if direction is not None and direction.readable and not direction.done and self._stage is _Stage.RELAY:
                self._pump(direction)

    def abandon(self) -> None:
        """Close after a fault in this program."""
        if self._stage is _Stage.CLOSED:
            return
        if self._stage is _Stage.RELAY:
            self._finish(Reason.INTERNAL)
        else:
            self.refuse(Rejection.RESOURCES)

    # Before there is a target

    def _read(self) -> None:
        """Read what the client sent so far, and decide if that is enough."""
        eof = False
        while not eof:
            try:
                data = self._client.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self.refuse(Rejection.CLIENT_GONE)
                return
            self._buffer += data
            eof = not data
            self._client_ended = self._client_ended or eof
            if self._stage is _Stage.HEADER:
                self._take_header(eof)
            if self._stage is _Stage.DETECT:
                self._try_detect(eof)
            if self._stage > _Stage.DETECT:
                return

    def _take_header(self, eof: bool) -> None:
        """Go on to detection when the PROXY header is complete; refuse the session when it never will be."""
        if len(self._buffer) < self._header_bytes and not eof:
            return
        header = parse_proxy_header(bytes(self._buffer))
        if isinstance(header, NeedMore) and not eof:
            self._header_bytes = header.total
            return
        if isinstance(header, NeedMore | NoMatch):
            self._count_header(accepted=False)
            self.refuse(Rejection.PROXY_HEADER)
            return
        self._count_header(accepted=True)
        del self._buffer[: header.consumed]
        self._source = header.source or self._remote
        self._destination = header.destination
        self._stage = _Stage.DETECT

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
            self._decide(verdict, Detected(verdict.protocol.value))
        elif not isinstance(verdict, NeedMore):
            self._decide(None, Detected.UNKNOWN)

    def _decide(self, match: Match | None, detected: Detected) -> None:
        """Take the route that detection leads to."""
        self._t_decided = self._context.poller.now
        self._detector = None
        self._deadline = 0.0
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
        self._stage = _Stage.CONNECT
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
                if error.errno in _EXHAUSTED:
                    EVENTS.warning("cannot connect to %s: %s", target.text, error.strerror)
                    self._drop_socket()
                    self._listener.pause()
                    self.refuse(Rejection.RESOURCES)
                    return
                otherwise = self._count_failure(error.errno or 0)
                continue
            self._set_deadline(self._t_connect + self._generation.snapshot.tcp_connect_timeout)
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
        if self._socket is not None:
            self._context.poller.close(self._socket)
            self._socket = None

    def _on_connected(self, mask: int) -> None:
        """Start relaying, or try the next target."""
        assert self._socket is not None  # noqa: S101  there is an attempt, or no such event
        assert self._target is not None  # noqa: S101  likewise
        if number := stream.connect_error(self._socket):
            self._attempt_failed(number)
            return
        self._t_connected = self._context.poller.now
        self._deadline = 0.0
        self._candidates = iter(())
        self._stage = _Stage.RELAY
        cells = self._open_target()
        cells[T_CONNECTS + CONNECT_INDEX[ConnectResult.OK]] += 1
        observe(cells, T_CONNECT_HISTOGRAM, CONNECT_BUCKETS, self._t_connected - self._t_connect)
        first = self._proxy_header() + self._buffer
        self._buffer = bytearray()
        self._up = Direction(self._client, self._socket, cells, T_BYTES_IN, first)
        self._down = Direction(self._socket, self._client, cells, T_BYTES_OUT, b"")
        self._up.hup = self._client_ended
        self._down.hup = bool(mask & poller.ENDED)
        self._pump(self._up)
        if self._stage is _Stage.RELAY:
            self._pump(self._down)

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
        host, port = self._client.getsockname()[:2]
        return build_proxy_header(version, self._source, self._destination or (host, port))

    # Relaying

    def _on_relay(self, descriptor: int, mask: int) -> None:
        up, down = self._up, self._down
        assert up is not None  # noqa: S101  set before the stage
        assert down is not None  # noqa: S101  set before the stage
        reader, writer = (up, down) if descriptor == self._client.fileno() else (down, up)
        if mask & poller.READABLE:
            reader.readable = True
            if mask & poller.ENDED:
                reader.hup = True
            if not reader.done:
                self._pump(reader)
        if mask & poller.WRITABLE and writer.is_blocked and self._stage is _Stage.RELAY:
            self._pump(writer)
        # Reading would say so, but nothing is read: after an orderly end, or while the target does not take what the
        # client sent before it was reset. What a target sent before is still delivered: the client is there for it.
        if mask & poller.RESET and self._stage is _Stage.RELAY and (reader.done or (reader is up and up.is_blocked)):
            self._finish(Reason.CLIENT_RESET if reader is up else Reason.TARGET_RESET)

    def _pump(self, direction: Direction) -> None:
        outcome = direction.pump(self._context.conduit)
        if outcome is Outcome.WAIT:
            return
        if outcome is Outcome.AGAIN:
            if not self._again:
                self._again = True
                self._context.again(self)
            return
        up, down = self._up, self._down
        assert up is not None  # noqa: S101  this is one of them
        assert down is not None  # noqa: S101  this is one of them
        upwards = direction is up
        other = down if upwards else up
        if outcome is Outcome.DONE:
            if self._first_eof is None:
                self._first_eof = Reason.CLIENT_EOF if upwards else Reason.TARGET_EOF
            if other.done:
                self._finish(self._lost or self._first_eof)
        elif outcome is Outcome.SOURCE_LOST:
            self._finish(self._lost or (Reason.CLIENT_RESET if upwards else Reason.TARGET_RESET))
        else:
            direction.stop(self._context.conduit)
            self._lost = self._lost or (Reason.TARGET_RESET if upwards else Reason.CLIENT_RESET)
            if other.done:
                self._finish(self._lost)
                return
            other.cut = True
            self._set_deadline(self._context.poller.now + _CUT_SECONDS)
            # The other direction reads from the lost socket: what it sent before it was lost is still delivered.
            other.readable = other.hup = True
            self._pump(other)

    # The end

    def end(self) -> None:
        """Close now, because the worker stops."""
        if self._stage is _Stage.RELAY:
            self._finish(Reason.DRAIN)
        elif self._stage is not _Stage.CLOSED:
            self.refuse(Rejection.DRAINING)

    def refuse(self, rejection: Rejection) -> None:
        """Close a session that no target was found for, and count why."""
        self._close()
        self._half.cells[L_REJECTED + REJECTION_INDEX[rejection]] += 1
        self._context.log.refused(
            f"{self._log_head()} reason={rejection.value}", rejection.value, self._context.poller.now
        )

    def _finish(self, reason: Reason) -> None:
        """Close a session that was given to a target, and count and log its end."""
        assert self._target is not None  # noqa: S101  only once there is one
        context, now = self._context, self._context.poller.now
        if self._socket is not None:
            if reason is Reason.CLIENT_RESET:
                stream.reset_on_close(self._socket)
            elif reason in {Reason.TARGET_RESET, Reason.INTERNAL}:
                stream.reset_on_close(self._client)
        up = self._up.moved if self._up is not None else 0
        down = self._down.moved if self._down is not None else 0
        tried = f" tries={self._tries}" if self._tries > 1 else ""
        resolved = f" address={endpoint(self._address, self._target.port)}" if self._target.is_name else ""
        connect_ms = (self._t_connected - self._t_connect) * 1e3 if self._up is not None else 0.0
        # First of all: a fault in what follows must not leave the session half closed, or count it twice.
        self._close()
        context.target_cells(self._target)[T_CLOSED + REASON_INDEX[reason]] += 1
        observe(self._half.cells, L_SESSION_HISTOGRAM, SESSION_BUCKETS, now - self._t_open)
        context.log.session(
            f"{self._log_head()} target={self._target.text}{resolved}{tried} bytes_in={up} bytes_out={down}"
            f" detect_ms={(self._t_decided - self._t_open) * 1e3:.1f} connect_ms={connect_ms:.1f}"
            f" duration_ms={(now - self._t_open) * 1e3:.1f} reason={reason.value}"
        )

    def _log_head(self) -> str:
        client = endpoint(*self._source)
        if self._source is not self._remote:
            client += f" proxied_by={endpoint(*self._remote)}"
        listener = self._generation.snapshot.listener
        return describe(client, listener, Transport.TCP, self._detected, self._match, self._route)

    def _close(self) -> None:
        self._stage = _Stage.CLOSED
        for direction in (self._up, self._down):
            if direction is not None:
                direction.stop(self._context.conduit)
        # The table of deadlines may hold this object for a while yet.
        self._up = self._down = self._detector = None
        self._buffer = bytearray()
        self._context.poller.close(self._client)
        self._drop_socket()
        self._listener.end_session(self)


def _is_trusted(host: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    address = ip_address(host)
    return any(address in network for network in networks if network.version == address.version)
