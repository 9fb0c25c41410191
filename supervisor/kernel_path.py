"""Whether there is a kernel path just now, and what it has of TCP: the supervisor's decision."""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from rpxy_l4.balance import table
from rpxy_l4.control import HoldKernelPaths, KernelPiece, UseKernelPath
from rpxy_l4.endings import Reason
from rpxy_l4.kernel.attachment import Attachment, remove_stale_filters
from rpxy_l4.kernel.connections import Connections, Plan
from rpxy_l4.kernel.layout import Choosing, Remote, address
from rpxy_l4.kernel.netlink import Policies
from rpxy_l4.kernel.path import KernelPath, KernelPathError, PlainRemains, Remains
from rpxy_l4.kernel.routes import Routes
from rpxy_l4.metrics.layout import Cell
from rpxy_l4.net.channel import DESCRIPTORS_AT_A_TIME
from rpxy_l4.snapshot import NEAR_LIMIT, LoadBalance, OnRouteRemoved, Route, Snapshot, Target
from rpxy_l4.snapshot import KernelPath as Wish
from rpxy_l4.supervisor.children import Child
from rpxy_l4.supervisor.kernel_sessions import KernelSessions
from rpxy_l4.supervisor.signals import SIGNALS

_LOG: Final = logging.getLogger(__name__)

_NOT_WANTED: Final = "the configuration has no use for it"
_LEAST: Final = 1 << 14
_MOST: Final = 1 << 17
"""Flows that there is room for, whatever the configuration says: each takes 128 bytes of the kernel's memory, always.
Those that find no room stay in user space."""
_LEAST_CONNECTIONS: Final = 1 << 12
_MOST_CONNECTIONS: Final = 1 << 16
"""TCP connections that there is room for; each takes 640 bytes of the kernel's memory, always."""

_TICK: Final = 1.0
_MANY: Final = 1000
_SOON: Final = 0.1
"""While so many connections end, what is told of them is taken more often."""
_ROUTES_DELAY: Final = 0.1
"""After news of routes: more follow."""
_LINES_AT_A_TIME: Final = 3000
_PORTS_SECONDS: Final = 10.0
"""How often ports of connections of before are said to be in use: what remembers it has room for the newest only."""
_LOOK_AT: Final = 4096
"""Entries that are looked at in a row: some 15 ms."""

_CHOOSING: Final = {
    LoadBalance.SOURCE_IP: Choosing.BY_ADDRESS,
    LoadBalance.SOURCE_SOCKET: Choosing.BY_SOCKET,
    LoadBalance.RANDOM: Choosing.ANY,
    LoadBalance.NONE: Choosing.ANY,
}

After = Callable[[float, Callable[[], None]], None]


class Old(NamedTuple):
    """A kernel path that begins nothing new."""

    remains: Remains
    connections: Connections


class Removal(NamedTuple):
    """Targets that have left the configuration, and when their sessions end."""

    at: float
    series: frozenset[int]


class KernelPathKeeper:
    """Loads the kernel path when a configuration wants it, and closes it when none does any more."""

    def __init__(self, slots: int, workers: Sequence[memoryview], sessions: KernelSessions) -> None:
        """Have none; it is going to be shared out among so many slots. ``workers`` are the rows of the workers."""
        self._slots = slots
        self._workers = workers
        self._sessions = sessions
        self._selector: selectors.BaseSelector | None = None
        self._after: After | None = None
        self._path: KernelPath | None = None
        self._connections: Connections | None = None
        """Those of the path, where it has room for any."""
        self._old: list[Old] = []
        self._snapshot: Snapshot | None = None
        """The configuration in force."""
        self._why_not = _NOT_WANTED
        self._why_tcp_stays: str | None = None
        self._removals: list[Removal] = []
        self._routes: Routes | None = None
        self._policies: Policies | None = None
        self._is_barred = False
        """Whether this host has policies of IPsec, which packets would miss."""
        self._are_clients_suspect = self._were_clients_suspect = False
        """Whether the ways to clients may have changed."""
        self._ports_due = 0.0
        self._plan: tuple[Route, Plan] | None = None
        """What the kernel follows, and for which route."""
        self._is_stopping = False
        self._said = ""
        remove_stale_filters()

    @property
    def state(self) -> str:
        """``in use: ...`` with how and where, or ``not used: ...`` with the reason."""
        if self._path is None:
            return f"not used: {self._why_not}"
        where = f"in use: {self._path.mode} on {', '.join(self._path.interfaces)}"
        if self._path.is_guarded:
            where += " (at three times the cost, without CAP_PERFMON)"
        if self._path.connections and self._why_tcp_stays is None and self._snapshot is not None:
            tcp = f"{min(self._path.connections, _most_connections(self._snapshot))} connections at most"
        else:
            tcp = f"no connections, as {self._why_tcp_stays or 'there was no memory for them'}"
        return f"{where}; UDP: {self._path.capacity} flows at most; TCP: {tcp}"

    @property
    def is_used(self) -> bool:
        """Whether there is one."""
        return self._path is not None

    @property
    def live(self) -> int:
        """How many TCP connections are in the kernel."""
        return sum(connections.live for connections in self._all())

    def _all(self) -> list[Connections]:
        current = [] if self._connections is None else [self._connections]
        return [*current, *(old.connections for old in self._old)]

    def left(self) -> dict[str, int]:
        """Return how many packets it has left to the sockets, by why; empty where there is none."""
        if self._path is None:
            return {}
        return {why.name.lower().replace("_", " "): count for why, count in self._path.left().items()}

    # Coming and going

    def prepare(self, snapshot: Snapshot) -> None:
        """Load what this configuration wants. Raises KernelPathError when it insists on what cannot be had."""
        if snapshot.kernel_path is Wish.OFF:
            return
        room = _room_for_connections(snapshot)
        if self._path is not None and self._path.connections >= room:
            return
        try:
            path = self._load(snapshot, room)
            try:
                connections = Connections(path.maps) if room else None
            except OSError as error:
                path.close()
                raise KernelPathError(f"{error.strerror}") from None
        except KernelPathError as error:
            if self._path is None:
                self._why_not = str(error)
            if snapshot.kernel_path is Wish.ON:
                raise
            if self._path is not None:
                _LOG.warning("kernel path: stays as it is: %s", error)
            return
        self._let_go()
        self._path = path
        self._connections = connections
        self._ports_due = 0.0
        self._plan = None
        self._listen()

    def _load(self, snapshot: Snapshot, connections: int) -> KernelPath:
        flows = 0 if snapshot.udp is None else snapshot.udp.max_sessions
        # Slots are never equally full.
        wanted = min(max(_LEAST, 2 * flows), _MOST)
        # The kernel's verifier gives up whenever a signal comes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            path = KernelPath(wanted // self._slots * self._slots, connections)
            try:
                path.attach()
            except KernelPathError:
                path.close()
                raise
            return path
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def settle(self, snapshot: Snapshot) -> None:
        """Say what there is for a configuration that comes into force, and close what it has no use for."""
        before, self._snapshot = self._snapshot, snapshot
        if snapshot.kernel_path is Wish.OFF:
            self._let_go()
            self._why_not = _NOT_WANTED
        if snapshot.on_route_removed is OnRouteRemoved.DRAIN:
            # Those of an old program may be of any target that there was.
            had = self._sessions.series if before is None else _series(before)
            self._removals.append(Removal(time.monotonic() + snapshot.drain_timeout, had))
        if self._connections is not None:
            self._connections.begin_epoch(snapshot.generation)
        self._follow()
        # That nothing is there which nobody asked for is no news at the start.
        if self.state != self._said and (self._said or snapshot.kernel_path is not Wish.OFF):
            _LOG.info("kernel path: %s", self.state)
            self._said = self.state

    def _let_go(self) -> None:
        """Have none any more. TCP connections that there are go on until they end."""
        if self._path is None:
            return
        self._unwatch_interfaces(self._path)
        connections, self._connections = self._connections, None
        path, self._path = self._path, None
        if connections is not None:
            connections.begin_no_more()
            if connections.pending:
                remains = path.retire()
                self._old.append(Old(remains, connections))
                self._watch_interfaces(remains.attachment)
                return
            self._close_books(connections)
        path.close()

    def tell(self, child: Child) -> bool:
        """Have a worker use what there is; False when it could not be told."""
        token = b"" if self._path is None else self._path.token
        if child.kernel_path == token:
            return True
        if self._path is None:
            sent = child.send(UseKernelPath(token, self._slots, 0))
        else:
            sent = child.send(UseKernelPath(token, self._slots, self._path.capacity), self._path.descriptors)
        if sent:
            child.kernel_path = token
        return sent

    def share(self, workers: Iterable[Child]) -> bool:
        """Have workers hold what TCP connections need to outlive this process; False when not all could be told."""
        pieces = {} if self._path is None else self._path.pieces
        for old in self._old:
            pieces |= old.remains.pieces
        wanted = frozenset(pieces)
        missed = [child for child in workers if child.held != wanted and not _share(pieces, wanted, child)]
        return not missed

    def clear(self, slots: frozenset[int]) -> None:
        """Take the flows of slots out whose worker is dead and is not replaced at once: their ports are free."""
        if self._path is not None and slots:
            try:
                self._path.clear(slots, self._path.capacity // self._slots)
            except OSError as error:
                _LOG.warning("kernel path: flows of a dead worker stay in: %s", error.strerror)

    def start(self, selector: selectors.BaseSelector, after: After) -> None:
        """Have a selector watch for new interfaces and routes, and the books kept, with calls to be made later."""
        self._selector, self._after = selector, after
        for old in self._old:
            self._watch_interfaces(old.remains.attachment)
        self._listen()

    def _listen(self) -> None:
        if self._selector is None or self._after is None:
            return
        if self._path is not None:
            self._watch_interfaces(self._path)
        self._watch_routes()
        self._after(0.0, self._tick)

    def _watch_interfaces(self, source: KernelPath | Attachment | None) -> None:
        if self._selector is not None and source is not None:
            self._selector.register(source, selectors.EVENT_READ, source.on_news)

    def _unwatch_interfaces(self, source: KernelPath | Attachment | None) -> None:
        if self._selector is not None and source is not None:
            self._selector.unregister(source)

    # Where TCP connections go

    def _follow(self) -> None:
        """Have connections go where the configuration in force says."""
        connections, snapshot = self._connections, self._snapshot
        if snapshot is None:
            return
        self._why_tcp_stays = snapshot.why_tcp_stays
        if connections is None:
            return
        if self._is_barred:
            self._why_tcp_stays = "this host has policies of IPsec"
        if self._is_stopping:
            self._why_tcp_stays = "it is stopping"
        if self._why_tcp_stays is None:
            self._set_room(connections)
            self._why_tcp_stays = self._lead(connections, snapshot)
        if self._why_tcp_stays is not None:
            connections.pause()

    def _lead(self, connections: Connections, snapshot: Snapshot) -> str | None:
        """Begin to take connections, or return why not."""
        try:
            if self._routes is None:
                self._routes = Routes()
                self._watch_routes()
            assert snapshot.tcp is not None  # noqa: S101  it says that connections may be taken
            assert snapshot.tcp.default is not None  # noqa: S101  likewise
            return self._lead_by(connections, snapshot.tcp.default, self._routes, tells=snapshot.access_log)
        except OSError as error:
            return f"of a fault: {error.strerror}"

    def _lead_by(self, connections: Connections, route: Route, routes: Routes, *, tells: bool) -> str | None:
        """Have connections take a route, unless they do already; or return why not."""
        targets = route.targets if route.load_balance is not LoadBalance.NONE else route.targets[:1]
        choices: Sequence[int] = range(len(targets))
        if self._plan is not None and self._plan[0] == route:
            choices = self._plan[1].choices
        elif route.load_balance in {LoadBalance.SOURCE_IP, LoadBalance.SOURCE_SOCKET}:
            choices = table(targets)  # some hundred milliseconds for a hundred targets
        plan = Plan(_CHOOSING[route.load_balance], [_remote(target, routes) for target in targets], choices, tells)
        if self._plan == (route, plan):
            connections.go_on(plan)
            return None
        self._plan = None
        why = connections.follow(plan)
        if why is None:
            self._plan = route, plan
        return why

    def _watch_routes(self) -> None:
        if self._selector is not None and self._routes is not None:
            with contextlib.suppress(KeyError):  # it is watched already
                self._selector.register(self._routes, selectors.EVENT_READ, self._on_routes)

    def _on_routes(self) -> None:
        """Look at routes in a moment; the news is left where it is until then, and wakes nobody."""
        assert self._selector is not None  # noqa: S101  called by it
        assert self._after is not None  # noqa: S101  set with it
        assert self._routes is not None  # noqa: S101  it is what has news
        self._selector.unregister(self._routes)
        self._after(_ROUTES_DELAY, self._look_at_routes)
        self._are_clients_suspect = True

    def _look_at_routes(self) -> None:
        """Have connections, new and old, take the ways that there are now."""
        if self._routes is None:
            return
        self._watch_routes()
        self._routes.drain()
        self._follow()
        for connections in self._all():
            connections.lead_anew(self._routes)

    # The books of TCP

    def _tick(self) -> None:
        assert self._after is not None  # noqa: S101  called by that
        if not self._all():
            return
        self._after(_TICK, self._tick)  # whatever happens in this one
        for connections in self._all():
            self._sessions.count(connections)
            if self._sessions.tell(connections, _LINES_AT_A_TIME) > _MANY:
                self._after(_SOON, self._tick)
            for lost in connections.sweep(_LOOK_AT):
                self._sessions.lose(lost, tells=self._tells)
        self._sessions.flush()
        self._end_removed()
        self._close_old()
        if self._connections is not None:
            self._look_for_policies()
            self._look_at_clients(self._connections)
            self._keep_ports_free(self._connections)
            self._set_room(self._connections)

    def _look_at_clients(self, connections: Connections) -> None:
        """Forget clients to whom there is another way; once more a tick later: workers may have told of the old one."""
        if self._routes is not None and (self._are_clients_suspect or self._were_clients_suspect):
            self._were_clients_suspect, self._are_clients_suspect = self._are_clients_suspect, False
            connections.check_clients(self._routes)

    def _keep_ports_free(self, connections: Connections) -> None:
        now = time.monotonic()
        if self._old and now >= self._ports_due:
            self._ports_due = now + _PORTS_SECONDS
            for old in self._old:
                connections.avoid(old.connections, _PORTS_SECONDS)

    @property
    def _tells(self) -> bool:
        return self._snapshot is not None and self._snapshot.access_log

    def _set_room(self, connections: Connections) -> None:
        """Leave so many places as the sessions in user space do not take."""
        if self._snapshot is None or self._path is None:
            return
        in_user_space = sum(row[Cell.TCP_OPENED] - row[Cell.TCP_CLOSED] for row in self._workers)
        in_old = sum(old.connections.live for old in self._old)
        most = _most_connections(self._snapshot) - in_user_space - in_old
        connections.allow(min(self._path.connections, most), in_old)

    def _look_for_policies(self) -> None:
        try:
            if self._policies is None:
                self._policies = Policies()
            is_barred = self._policies.exist()
        except OSError:  # then it is as it was a moment ago
            return
        if is_barred != self._is_barred:
            self._is_barred = is_barred
            self._follow()

    def _end_removed(self) -> None:
        """End connections to targets that left the configuration a drain timeout ago."""
        now = time.monotonic()
        due = [removal for removal in self._removals if removal.at <= now]
        if not due or self._snapshot is None:
            return
        self._removals = [removal for removal in self._removals if removal.at > now]
        gone = frozenset().union(*(removal.series for removal in due)) - _series(self._snapshot)
        if gone:
            self._end(gone)

    def _end(self, series: frozenset[int] | None) -> None:
        for connections in self._all():
            self._sessions.count(connections)
            for lost in connections.end_all(series, Reason.DRAIN):
                self._sessions.lose(lost, tells=self._tells)
            self._sessions.count(connections)
        self._sessions.flush()

    def _close_old(self) -> None:
        for old in [old for old in self._old if not old.connections.pending]:
            self._close_books(old.connections)
            self._unwatch_interfaces(old.remains.attachment)
            old.remains.close()
            self._old.remove(old)

    def _close_books(self, connections: Connections) -> None:
        """Count and tell all that there is to tell, and look no more."""
        self._sessions.count(connections)
        while self._sessions.tell(connections, _LINES_AT_A_TIME):
            pass
        self._sessions.flush()
        connections.close()

    # The end

    def stop(self) -> None:
        """Begin no TCP connection any more."""
        self._is_stopping = True
        self._follow()

    def end_connections(self) -> None:
        """End what is left of them: both ends hear of it with their next packet."""
        self._end(None)

    def hand_on(self) -> list[PlainRemains]:
        """Have none any more; return what serves the connections that there are, for another program to go on with."""
        self._let_go()
        handed: list[PlainRemains] = []
        while self._old:
            old = self._old.pop()
            self._unwatch_interfaces(old.remains.attachment)
            handed.append(old.remains.hand_on())
            self._close_books(old.connections)
        return handed

    def take_over(self, handed: Sequence[PlainRemains]) -> None:
        """Go on with what a program before this one has left."""
        if handed and self._routes is None:
            with contextlib.suppress(OSError):  # then they do not follow routes
                self._routes = Routes()
        for plain in handed:
            remains = Remains.of_plain(plain)
            try:
                self._old.append(Old(remains, Connections(remains.maps)))
                self._watch_interfaces(remains.attachment)
            except OSError as error:
                _LOG.warning("kernel path: TCP connections of before are ended: %s", error.strerror)
                self._sessions.settle()
                remains.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what is a Python object, and change nothing else."""
        if self._path is not None:
            self._path.leave_to_parent()
        for old in self._old:
            old.remains.leave_to_parent()
        for each in (self._routes, self._policies):
            if each is not None:
                each.close()

    def close(self) -> None:
        """Have none any more, and no connections: the kernel is as it was before."""
        self._let_go()
        for old in self._old:
            self._close_books(old.connections)
            old.remains.close()
        self._old.clear()


def _share(pieces: Mapping[KernelPiece, int], wanted: frozenset[KernelPiece], child: Child) -> bool:
    """Have a worker hold these pieces and no others; False when it could not be told."""
    new = sorted(wanted - child.held)
    for start in range(0, max(1, len(new)), DESCRIPTORS_AT_A_TIME):
        now = new[start : start + DESCRIPTORS_AT_A_TIME]
        if not child.send(HoldKernelPaths(wanted, tuple(now)), [pieces[piece] for piece in now]):
            return False
        child.held = child.held & wanted | frozenset(now)
    return True


def _room_for_connections(snapshot: Snapshot) -> int:
    """Return how many TCP connections a kernel path is to have room for; 0 where none go by it.

    A power of two, so that not each raise of the limit loads another one.
    """
    if snapshot.tcp is None or snapshot.why_tcp_stays is not None:
        return 0
    wanted = max(_LEAST_CONNECTIONS, min(snapshot.tcp.max_sessions, _MOST_CONNECTIONS))
    return int(1 << (wanted - 1).bit_length())


def _most_connections(snapshot: Snapshot) -> int:
    """Return how many may be in the kernel: near the limit, user space decides, which knows the number exactly."""
    if snapshot.tcp is None:
        return 0
    most = snapshot.tcp.max_sessions
    return most - max(most >> 3, NEAR_LIMIT)


def _series(snapshot: Snapshot) -> frozenset[int]:
    """Return the series of the targets that connections in the kernel can have."""
    if snapshot.tcp is None or snapshot.tcp.default is None:
        return frozenset()
    return frozenset(target.series for target in snapshot.tcp.default.targets)


def _remote(target: Target, routes: Routes) -> Remote | None:
    """Return how a target is reached; None where only user space can."""
    if target.is_name:
        return None
    there = address(target.host, target.port)
    source = routes.source(there.packed)
    passage = None if source is None else routes.find(there.packed, source)
    if source is None or passage is None or there.is_link_local:
        return None
    return Remote(there, source, *passage, target.series)
