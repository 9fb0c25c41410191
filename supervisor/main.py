"""The supervisor's loop: it waits for signals, children, channels and the file, and does what ``policy`` decides.

No event loop and no thread exists in this process, so that a fork copies nothing half done. It touches no client bytes:
whatever happens here, established sessions go on.

A start is the first reload. A configuration passes three points, and one that fails before the second changes nothing:
it is *loaded* (read, checked, its new addresses bound), then *incoming* (the admin process looks up its names), then
*in force* (sent to every worker, the new ones of later times included).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from setproctitle import setproctitle

from rpxy_l4 import logs
from rpxy_l4.access_log import AccessLog
from rpxy_l4.control import (
    Addresses,
    Applied,
    Apply,
    Drain,
    Draining,
    Inherit,
    Inherited,
    Message,
    NotApplied,
    Place,
    Release,
    Released,
    ReopenLogs,
    Status,
    WorkerStatus,
)
from rpxy_l4.errors import ConfigError
from rpxy_l4.flow_memory import ENTRY_BYTES, FlowMemories
from rpxy_l4.kernel.path import KernelPathError, PlainRemains
from rpxy_l4.metrics.layout import Cell, Directory
from rpxy_l4.metrics.settle import balance, settle
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.metrics.totals import worker_sessions
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.kernel import raise_open_files
from rpxy_l4.net.listen import BindError, ListeningSocket
from rpxy_l4.net.memory import SharedMemory
from rpxy_l4.orders import Command, Request, workers_wanted
from rpxy_l4.snapshot import Bind, Snapshot
from rpxy_l4.supervisor import keepsake, policy, systemd, upgrade
from rpxy_l4.supervisor.children import Child, close_inherited, start
from rpxy_l4.supervisor.config_file import ConfigFile
from rpxy_l4.supervisor.desk import Asker, Desk
from rpxy_l4.supervisor.inboxes import Inboxes
from rpxy_l4.supervisor.keepsake import Keepsake
from rpxy_l4.supervisor.kernel_path import KernelPathKeeper
from rpxy_l4.supervisor.kernel_sessions import KernelSessions
from rpxy_l4.supervisor.policy import ADMIN, Abort, Action, Dismiss, Finish, Kill, Seat, Spawn, Suspect
from rpxy_l4.supervisor.reload import (
    content_of,
    descriptors_wanted,
    load,
    new_names,
    plan_binds,
    printable,
    read_content,
)
from rpxy_l4.supervisor.report import Report, WorkerReport, as_data, as_text
from rpxy_l4.supervisor.signals import SIGNALS, Order, SignalInbox, name_of
from rpxy_l4.supervisor.slots import MOST_AT_A_TIME, Move, Moves, deal, plan_moves
from rpxy_l4.supervisor.sockets import ListeningSockets
from rpxy_l4.supervisor.staffing import Post, plan_staff
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.supervisor.systemd import Manager
from rpxy_l4.supervisor.timers import Timers
from rpxy_l4.supervisor.upgrade import State
from rpxy_l4.verdict import Transport
from rpxy_l4.version import VERSION

_LOG: Final = logging.getLogger(__name__)

RunWorker = Callable[[int, int, Channel, Slab, FlowMemories], int]
RunAdmin = Callable[[Channel, Slab, int, ListeningSocket | None], int]

# A configuration does not wait longer for its names. Those that are found later are sent later.
NAMES_PATIENCE: Final = 2.0
# How long workers may take to close their copies of the listening sockets before the supervisor closes its own.
CLOSE_PATIENCE: Final = 1.0
PROGRESS_INTERVAL: Final = 5.0
RESEND_INTERVAL: Final = 0.5
# After a fault of our own: how long to wait before going on, and before trying again what may have been left undone.
FAULT_PAUSE: Final = 0.1
FAULT_RETRY: Final = 1.0
_NANOSECONDS: Final = 1_000_000_000
_ADMIN_BACKLOG: Final = 128
_CHECK_PATIENCE: Final = 30.0
_BARRIER_PATIENCE: Final = 5.0
_DRAIN_TICK: Final = 0.1
_LEAST_REMEMBERED: Final = 1 << 16
_REMEMBERED: Final = 600.0
"""Seconds that the target of a flow is remembered after its end."""

# What operators at the desk wait for.
_NEXT_RELOAD: Final = "the next reload"
_UPGRADE: Final = "the upgrade"

# What the log and they are told. Templates of their own, because the log's limit goes by template.
_NOT_RELOADED: Final = "the configuration was not reloaded, nothing has changed:\n%s"
_NOT_UPGRADED: Final = "no upgrade, nothing has changed: %s"
_NEVER_IN_FORCE: Final = "generation %d was never in force on all workers"


class Supervisor:
    """Owns configuration, listening sockets, counters and children."""

    def __init__(
        self,
        config: Path,
        log_dir: Path | None,
        *,
        run_worker: RunWorker,
        run_admin: RunAdmin,
        manager: Manager = Manager(),  # noqa: B008  immutable
        before: State | None = None,
    ) -> None:
        """Load the configuration and listen on its addresses; nothing is forked yet.

        ``run_worker`` and ``run_admin`` are what the children do. Of what ``manager`` has passed, listening sockets of
        a supervisor before are taken over, and all else is closed. ``before`` is what an older version left in this
        process: its configuration, sockets, counters and children are taken over, and the file is not read.

        Raises ConfigError for a file that is wrong or cannot be read, BindError for an address that cannot be listened
        on, KernelPathError for a kernel path that is insisted on and cannot be had.
        """
        self._log_dir = log_dir
        self._run_worker = run_worker
        self._run_admin = run_admin
        self._open_files = raise_open_files()
        self._cpus = len(os.sched_getaffinity(0))

        self._name = printable(config)
        self._content = read_content(config, may_wait=True) if before is None else content_of(before.content)
        """The configuration that was last found good."""
        slots = self._slots_of(manager) if before is None else before.slots
        kept = keepsake.find(manager.passed, slots)

        def first(known: Directory) -> tuple[Snapshot, Directory]:
            generation = 1 if before is None else before.generation + 1
            return load(self._content, self._name, generation=generation, known=known, cpus=self._cpus, slots=slots)

        try:
            snapshot, self._directory = first(_known(before, kept))
        except ConfigError:
            if kept is None:
                raise
            # Perhaps only because the directory of all the supervisors before is full.
            kept = None
            snapshot, self._directory = first(Directory())
        self._manager = manager
        self._notifier = systemd.Notifier(manager.told)
        self._ping_interval = systemd.watchdog_interval(manager.told, os.getpid())
        self._timers = Timers()
        self._file = ConfigFile(config, self._timers, self._want_reload)
        self._file.seen = self._content.sha256
        self._incoming: Snapshot | None = None
        self._in_force: Snapshot | None = None
        self._announced = 0
        """The last generation that was reported as applied."""

        self._slots = snapshot.slots if before is None else before.slots
        self._wanted = min(snapshot.workers, self._slots) if before is None else before.workers
        """How many workers there are to be."""
        self._owners = deal(self._slots, range(self._wanted)) if before is None else dict(before.owners)
        """The worker of each slot."""
        self._moves = Moves()
        self._has_moved = False
        """Whether slots have moved and nobody was told."""
        # Workers that leave may take their time, and those who follow them have numbers, and rows, of their own.
        self._rows = 2 * self._slots
        # Two more: the supervisor's own, and the one where the admin process beats.
        self._counters = SharedMemory(Slab.size(self._rows + 2), None if before is None else before.counters)
        self._slab = Slab(self._rows + 2, memory=self._counters.view)
        if before is not None:
            self._flows, self._secret = SharedMemory(before.flow_bytes, before.flows), before.secret
        elif kept is not None and kept.slots == self._slots:
            self._flows, self._secret = kept.memory, kept.secret
            _LOG.info("the flows of before are remembered")
        else:
            self._flows, self._secret = SharedMemory(_flow_bytes(snapshot, self._slots)), os.urandom(16)
        self._shelf = keepsake.Shelf()
        self._sockets = ListeningSockets(self._slots)
        self._admin_sockets = ListeningSockets(1)
        self._desk = Desk(self._serve)
        self._inboxes = Inboxes()
        self._kernel_path = KernelPathKeeper(
            self._slots,
            [self._slab.row(number) for number in range(self._rows)],
            KernelSessions(
                self._slab.row(self._rows),
                AccessLog(logs.current().access, "kernel", lambda: None),
                lambda: self._directory,
            ),
        )

        self._seats = {number: Seat(number) for number in (ADMIN, *range(self._wanted))}
        self._children: dict[int, Child] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._cpu_of_the_dead: dict[int, tuple[float, float]] = {}
        self._restarts = {"exit": 0, "signal": 0, "heartbeat": 0}
        self._reloads = {"success": 0, "failure": 0, "unchanged": 0}
        self._last_reload_ok = True
        self._last_reload_success = 0.0
        self._check: upgrade.Check | None = None
        """The new program, judging whether it can take over."""
        self._judged: Snapshot | None = None
        """The configuration that it judges."""
        self._upgrade_is_due = False
        self._is_upgraded = before is not None
        self._is_cramped = False
        """Whether it was said that an upgrade waits for a free row."""
        if before is None:
            self._adopt(snapshot)
        else:
            self._take_over(before, snapshot)
        try:
            self._kernel_path.prepare(snapshot)
        except KernelPathError as error:
            if before is None:
                raise
            # There was one before, and clients that rely on this service.
            _LOG.error('kernel_path = "on" is not possible any more: %s', error)
        self._bind(snapshot)
        for name in keepsake.NAMES:  # what is kept there may be of before, and not of use
            self._notifier.remove(name)
        self._put_by()
        self._notifier.store(keepsake.MEMORY, (self._flows.descriptor,))
        self._notifier.store(keepsake.MEANING, (self._shelf.descriptor,))
        self._status_is_due = False

        self._reload_is_due = False
        self._stopping = False
        self._finished = False
        self._drained_by = math.inf
        """Until when TCP connections in the kernel path may go on; before it stops, for ever."""
        self._grace = -math.inf
        self._wake_at = -math.inf
        """When time alone would change something."""
        self._receive(snapshot)

    def _slots_of(self, manager: Manager) -> int | None:
        """Return how many slots a supervisor before this one had; None if nobody knows, or if they are too few."""
        stored = [systemd.parse_socket_name(name) for name, _ in manager.passed]
        totals = {each.slots for each in stored if each is not None}
        if len(totals) != 1:
            return None
        (slots,) = totals
        wanted, _ = load(self._content, self._name, generation=1, known=Directory(), cpus=self._cpus)
        if wanted.workers <= slots:
            return slots
        _LOG.warning("%d workers need more than the %d slots of before: all sockets are new", wanted.workers, slots)
        return None

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        setproctitle(f"rpxy-l4: supervisor [{self._name}]")
        self._inbox = SignalInbox()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ, self._on_signal)
        self._desk.start(self._selector)
        self._kernel_path.start(self._selector, self._after)
        self._file.start(self._selector)
        for number in self._children:
            self._listen_to(number)
        if ADMIN in self._children:
            self._dismiss(ADMIN)
        # What was loaded until now stays where it is: the collector would touch, and so copy, its pages in each child.
        gc.collect()
        gc.freeze()
        self._ping()
        self._act()
        while not self._finished:
            self._turn()
        self._desk.close_listener()
        self._kernel_path.close()
        _LOG.info("stopped")
        return ExitStatus.OK

    def _turn(self) -> None:
        """Wait until something happens or time alone would change something, and deal with it."""
        timeout = None if self._wake_at == math.inf else max(0.0, self._wake_at - time.monotonic())
        events = self._selector.select(timeout)
        now = time.monotonic()
        self._grace = max(self._grace, policy.grace_after(self._wake_at, now))
        for key, _ in events:
            self._attempt(key.data)
        for timer in self._timers.due(now):
            self._attempt(timer)
        self._act()

    def _act(self) -> None:
        """Bring everything forward that can go forward."""
        self._wake_at = time.monotonic() + FAULT_RETRY
        for step in (
            self._roll_out,
            self._close_after_drain,
            self._staff,
            self._move_slots,
            self._dismiss_leavers,
            self._begin_upgrade,
            self._govern,
            self._share_inboxes,
            self._share_kernel_paths,
            self._send_status,
        ):
            self._attempt(step)
        self._wake_at = min(self._wake_at, self._timers.next)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do one step; a fault in it is logged, and the others go on."""
        try:
            step()
        except Exception:  # noqa: BLE001  the loop's edge: without the supervisor, nothing is ever replaced or reloaded
            _LOG.critical("a fault of the supervisor's own in %s", step, exc_info=True)
            # What is still to be dealt with comes again at once: a fault that stays must not spin.
            time.sleep(FAULT_PAUSE)  # noqa: TID251  there is no event to wait for

    def _govern(self) -> None:
        """Start, judge and end children."""
        while True:
            for number, seat in self._seats.items():
                row = self._slab.row(self._rows + 1 if number == ADMIN else number)
                seat.beat = row[Cell.HEARTBEAT] / _NANOSECONDS
                seat.slots_due_by = self._moves.due_by(number)
            seats = tuple(self._seats.values())
            decision = policy.decide(
                seats, stopping=self._stopping, now=time.monotonic(), grace=self._grace, drained=self._is_drained()
            )
            for action in decision.actions:
                self._carry_out(action)
            if self._finished or not decision.actions:
                break
        self._wake_at = decision.wake_at

    def _is_drained(self) -> bool:
        """Whether no TCP connection is in the kernel path when it stops: they end in their own time, if it lasts."""
        if self._stopping and self._kernel_path.live:
            if time.monotonic() < self._drained_by:
                self._after(_DRAIN_TICK, _nothing)
                return False
            self._kernel_path.end_connections()
        return True

    def _after(self, delay: float, timer: Callable[[], None]) -> None:
        """Call a method once, ``delay`` seconds from now; this replaces an earlier wish for it."""
        self._timers.set(timer, time.monotonic() + delay)

    # Configuration

    def _bind(self, snapshot: Snapshot) -> None:
        """Listen on what is new in this configuration: on all of it, or raise BindError and on none of it."""
        plan = plan_binds(self._sockets.binds, snapshot.binds)
        admin = () if snapshot.admin is None else (snapshot.admin,)
        desk = self._desk.prepare(snapshot.control)
        try:
            self._sockets.open(plan.open, snapshot.tcp_backlog, now=time.monotonic())
            try:
                self._admin_sockets.open(plan_binds(self._admin_sockets.binds, admin).open, _ADMIN_BACKLOG)
            except BindError:
                self._sockets.close(plan.open)
                raise
        except BindError:
            if desk is not None:
                desk.withdraw()
            raise
        self._desk.move(snapshot.control, desk)
        self._store(plan.open)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Listen on what a supervisor before this one listened on, with what waits there."""
        known = [
            (systemd.parse_socket_name(name), descriptor)
            for name, descriptor in self._manager.passed
            if name not in keepsake.NAMES
        ]
        for stored, descriptor in known:
            if stored is None:
                _LOG.warning("closing descriptor %d, which was passed to this program for nothing it knows", descriptor)
                os.close(descriptor)
        refused = self._sockets.adopt(
            [(*stored, number) for stored, number in known if stored is not None], snapshot.binds
        )
        for stored, _ in known:
            if stored is not None and stored[:2] in refused:
                self._notifier.remove(systemd.socket_name(*stored))
        if refused:
            # Until the manager has closed its copies, the addresses are taken.
            self._notifier.barrier(_BARRIER_PATIENCE)
        if self._sockets.binds:
            _LOG.info("taken over, with what waits there: %s", ", ".join(map(str, sorted(self._sockets.binds))))
        self._store(self._sockets.binds)

    def _store(self, binds: Iterable[Bind]) -> None:
        """Have the service manager keep copies of these sockets, for the case that this process dies."""
        for bind in binds:
            for slot, descriptor in enumerate(self._sockets.all_descriptors()[bind]):
                self._notifier.store(systemd.socket_name(bind, slot, self._slots), (descriptor,))

    def _put_by(self) -> None:
        """Write down what the flow memory means, for a supervisor after this one."""
        kept = Keepsake(self._flows, self._slots, self._secret, self._directory)
        self._shelf.write(kept.meaning())

    def _ping(self) -> None:
        if self._ping_interval is not None:
            self._notifier.watchdog()
            self._after(self._ping_interval, self._ping)

    def _receive(self, snapshot: Snapshot) -> None:
        """Have the names of a loaded configuration looked up."""
        wanted = descriptors_wanted(snapshot)
        if wanted > self._open_files * snapshot.workers:
            text = "the limits allow sessions that need %d descriptors, but %d workers may open %d each"
            _LOG.warning(text, wanted, snapshot.workers, self._open_files)
        self._incoming = snapshot
        self._status_is_due = True
        unknown = new_names(snapshot, self._in_force) - self._addresses.keys()
        self._after(NAMES_PATIENCE if unknown else 0.0, self._enforce)

    def _enforce(self) -> None:
        """Put the incoming configuration in force: send it to every worker."""
        snapshot = self._incoming
        self._timers.cancel(self._enforce)
        if snapshot is None or self._stopping:
            return
        if self._moves:
            # Who gives a slot and who takes it have to agree on what addresses there are.
            self._after(RESEND_INTERVAL, self._enforce)
            return
        before = self._in_force
        if before is not None and 1 < before.generation != self._announced:
            # A reload does not wait for the one before when no worker lives to apply that.
            self._count_reload("failure")
            _LOG.error(_NEVER_IN_FORCE, before.generation)
            never = _NEVER_IN_FORCE % before.generation
            self._desk.tell(_roll_out(before.generation), ExitStatus.FAILURE, never)
        self._incoming, self._in_force = None, snapshot
        self._status_is_due = True
        self._sockets.set_backlog(snapshot.tcp_backlog)
        self._file.watch(wanted=snapshot.watch)
        self._kernel_path.settle(snapshot)
        if before is not None and before.workers != snapshot.workers:
            self._want_workers(snapshot.workers)
        for number in self._configurable():
            self._send_configuration(number)

    def _send_configuration(self, number: int) -> None:
        """Send a worker the configuration in force, with the sockets that it does not have yet."""
        snapshot, child, seat = self._in_force, self._children[number], self._seats[number]
        if snapshot is None:
            return
        slots = frozenset(slot for slot, owner in self._owners.items() if owner == number)
        places = [Place(slot, bind) for slot in sorted(slots) for bind in snapshot.binds]
        # Of one that does not read, an answer is expected all the same.
        if seat.asked is None:
            seat.asked = time.monotonic()
        attached = child.attach(places, self._sockets)
        child.order += 1
        told = attached and self._kernel_path.tell(child)
        if not told or not child.send(Apply(snapshot, self._addresses, slots, child.order)):
            child.sent = 0
            self._after(RESEND_INTERVAL, self._resend)
            return
        child.sent, child.places, child.addresses_due = snapshot.generation, frozenset(places), False
        child.offered = child.places

    def _resend(self) -> None:
        """Tell the workers what could not be delivered."""
        if self._stopping or self._in_force is None:
            return
        for number in self._configurable():
            child = self._children[number]
            if child.connected and child.sent != self._in_force.generation:
                self._send_configuration(number)
        for child in map(self._children.__getitem__, self._workers()):
            if child.connected and child.addresses_due:
                self._send_addresses(child)

    def _send_addresses(self, child: Child) -> None:
        child.addresses_due = not child.send(Addresses(self._addresses))
        if child.addresses_due:
            self._after(RESEND_INTERVAL, self._resend)

    def _roll_out(self) -> None:
        """Report a configuration that every living worker has applied, and begin the reload that waited for that."""
        if self._stopping or self._incoming is not None or self._in_force is None:
            return
        snapshot = self._in_force
        workers = [self._children[number] for number in self._staying()]
        if self._has_old:
            return
        if any(child.applied != snapshot.generation for child in workers):
            return
        # A UDP socket with flows stays open in a worker for as long as a drain may last, and a moment.
        retired_until = time.monotonic() + snapshot.drain_timeout + policy.DRAIN_GRACE
        gone = plan_binds(self._sockets.binds, snapshot.binds).close
        self._sockets.close(gone, until=retired_until)
        for bind in gone:
            for slot in range(self._slots):
                self._notifier.remove(systemd.socket_name(bind, slot, self._slots))
        if workers and self._announced != snapshot.generation:
            self._announced = snapshot.generation
            self._last_reload_success = time.time()
            self._status_is_due = True
            if snapshot.generation > 1 and not self._is_upgraded:
                self._count_reload("success")
            # Whoever waits for the line may look at the metrics next.
            self._send_status()
            result = f"generation {snapshot.generation} applied on {len(workers)}/{self._wanted} workers"
            self._notifier.ready(result)
            self._desk.tell(_roll_out(snapshot.generation), ExitStatus.OK, result)
            if self._is_upgraded:
                self._is_upgraded = False
                _LOG.info("upgraded to version %s: %s", VERSION, result)
                self._desk.tell(_UPGRADE, ExitStatus.OK, f"upgraded to version {VERSION}: {result}")
            elif snapshot.generation > 1:
                _LOG.info("%s", result)
            else:
                _LOG.info("ready: %s, listening on %s", result, ", ".join(map(str, snapshot.binds)))
        if self._reload_is_due and not self._moves:
            self._reload_is_due = False
            self._reload(snapshot)

    def _want_reload(self) -> None:
        """Reload as soon as the configuration before is in force everywhere. Wishes until then are one wish."""
        self._reload_is_due = True
        if self._has_old:
            _LOG.info("the reload waits for the upgrade")

    def _reload(self, current: Snapshot) -> None:
        self._notifier.reloading(time.monotonic_ns() // 1000)
        try:
            content = self._file.read()
        except ConfigError as error:
            self._refuse(error.render(), ExitStatus.CONFIG)
            return
        if content.sha256 == current.sha256:
            self._count_reload("unchanged")
            unchanged = "the configuration file is unchanged"
            _LOG.info("%s", unchanged)
            self._notifier.ready(f"generation {current.generation}")
            self._desk.tell(_NEXT_RELOAD, ExitStatus.OK, f"{unchanged}; generation {current.generation} stays in force")
            return
        try:
            snapshot, directory = load(
                content,
                self._name,
                generation=current.generation + 1,
                known=self._directory,
                cpus=self._cpus,
                slots=self._slots,
            )
            self._kernel_path.prepare(snapshot)
            self._bind(snapshot)
        except ConfigError as error:
            self._refuse(error.render(), ExitStatus.CONFIG)
            return
        except KernelPathError as error:
            self._keep_kernel_path(current)
            self._refuse(f'kernel_path = "on" is not possible: {error}', ExitStatus.UNAVAILABLE)
            return
        except BindError as error:
            self._keep_kernel_path(current)
            self._refuse(f"cannot listen on {error}", ExitStatus.UNAVAILABLE)
            return
        self._content = content
        if snapshot.slots != self._slots:
            _LOG.warning("slots = %d takes effect at the next start; it stays %d", snapshot.slots, self._slots)
        if directory != self._directory:
            self._directory = directory
            self._put_by()
        self._desk.put_on(_NEXT_RELOAD, _roll_out(snapshot.generation))
        self._receive(snapshot)

    def _keep_kernel_path(self, snapshot: Snapshot) -> None:
        """Go on with the configuration of before; workers hear of it if there is another kernel path by now."""
        self._kernel_path.settle(snapshot)
        for number in self._configurable():
            if not self._kernel_path.tell(self._children[number]):
                self._send_configuration(number)

    def _refuse(self, why: str, status: ExitStatus) -> None:
        self._count_reload("failure")
        _LOG.error(_NOT_RELOADED, why)
        self._desk.tell(_NEXT_RELOAD, status, _NOT_RELOADED % why)
        self._notifier.ready(f"the configuration file is wrong; in force is that of before: {why}")

    def _count_reload(self, result: str) -> None:
        self._reloads[result] += 1
        self._last_reload_ok = result != "failure"
        self._status_is_due = True

    # Signals

    def _on_signal(self) -> None:
        for order in self._inbox.receive():
            match order:
                case Order.RELOAD:
                    self._want_reload()
                case Order.STOP:
                    self._stop(at_once=self._stopping)
                case Order.STOP_AT_ONCE:
                    self._stop(at_once=True)
                case Order.REOPEN_LOGS:
                    opened = logs.reopen()
                    for child in self._children.values():
                        child.send(ReopenLogs())
                    if opened:
                        _LOG.info("log files opened again")
                case Order.UPGRADE:
                    self._want_upgrade()
                case Order.MORE_WORKERS:
                    self._want_workers(self._wanted + 1)
                case Order.FEWER_WORKERS:
                    self._want_workers(self._wanted - 1)
                case Order.NOTHING:
                    pass

    # The end

    def _stop(self, *, at_once: bool) -> None:
        snapshot = self._in_force or self._incoming
        timeout = 0.0 if at_once or snapshot is None else snapshot.drain_timeout
        patience = timeout + (policy.STOP_GRACE if at_once else policy.DRAIN_GRACE)
        if at_once:
            _LOG.info("stopping at once")
        else:
            _LOG.info("draining %d sessions, up to %g s; a second signal stops at once", self._open_sessions(), timeout)
            self._after(PROGRESS_INTERVAL, self._report_progress)
        self._notifier.stopping()
        self._notifier.more_time(patience + policy.STOP_GRACE)
        if not self._stopping:
            self._after(CLOSE_PATIENCE, self._sockets.close_all)
        self._stopping = True
        self._drained_by = min(self._drained_by, time.monotonic() + timeout)
        self._kernel_path.stop()
        self._status_is_due = True
        self._file.stop()
        if self._check is not None:
            self._check.kill()
        for number in self._workers():
            self._drain(number, timeout, patience)

    def _drain(self, number: int, timeout: float, patience: float) -> None:
        """Have a worker finish its sessions, within ``timeout`` seconds, and end, within ``patience``."""
        self._children[number].drain_due = timeout
        self._tell_to_drain()
        seat = self._seats[number]
        kill_at = time.monotonic() + patience
        seat.kill_at = kill_at if seat.kill_at is None else min(seat.kill_at, kill_at)

    def _tell_to_drain(self) -> None:
        """Send the orders to drain, and those again that found no room."""
        for child in map(self._children.__getitem__, self._workers()):
            if child.drain_due is not None and child.connected:
                if child.send(Drain(child.drain_due)):
                    child.drain_due = None
                else:
                    self._after(RESEND_INTERVAL, self._tell_to_drain)

    def _close_after_drain(self) -> None:
        """Close the listening sockets as soon as no worker accepts from them any more."""
        if self._stopping and all(self._children[number].draining for number in self._workers()):
            self._timers.cancel(self._sockets.close_all)
            self._sockets.close_all()

    def _report_progress(self) -> None:
        if self._workers():
            _LOG.info("draining: %d sessions left", self._open_sessions())
            self._after(PROGRESS_INTERVAL, self._report_progress)

    def _open_sessions(self) -> int:
        return self._kernel_path.live + sum(sum(worker_sessions(self._slab.row(number))) for number in self._workers())

    # Operators

    def _serve(self, asker: Asker, request: Request) -> None:
        """Do what ``rpxy-l4 ctl`` asks, or begin to."""
        if self._stopping and request.command != Command.STATUS:
            asker.answer(ExitStatus.FAILURE, "it is stopping")
            return
        match request.command:
            case Command.STATUS:
                report = self._report()
                asker.answer(ExitStatus.OK, as_text(report), as_data(report))
            case Command.RELOAD:
                asker.waits_for = _NEXT_RELOAD
                self._want_reload()
            case Command.UPGRADE:
                asker.waits_for = _UPGRADE
                self._want_upgrade()
            case Command.WORKERS:
                try:
                    wanted = workers_wanted(request.argument, self._wanted)
                except ValueError as error:
                    asker.answer(ExitStatus.USAGE, str(error))
                    return
                said = self._want_workers(wanted)
                asker.answer(ExitStatus.OK if self._wanted == wanted else ExitStatus.FAILURE, said)

    def _report(self) -> Report:
        snapshot = self._in_force or self._newest()
        under_way = {
            "a reload": self._reload_is_due or self._incoming is not None or snapshot.generation != self._announced,
            "slots are moving": bool(self._moves),
            "an upgrade": self._upgrade_is_due or self._check is not None or self._has_old,
            "stopping": self._stopping,
        }
        return Report(
            version=VERSION,
            pid=os.getpid(),
            config=self._name,
            generation=snapshot.generation,
            sha256=snapshot.sha256,
            listening=[str(bind) for bind in sorted(self._sockets.binds)],
            wanted=self._wanted,
            slots=self._slots,
            workers=[self._worker_report(number) for number in sorted(self._seats) if number != ADMIN],
            reloads=self._reloads,
            last_reload_ok=self._last_reload_ok,
            kernel_path=self._kernel_path.state,
            kernel_connections=self._kernel_path.live,
            kernel_path_left=self._kernel_path.left(),
            under_way=[name for name, is_so in under_way.items() if is_so],
        )

    def _worker_report(self, number: int) -> WorkerReport:
        status = self._worker_status(number)
        slots = sorted(slot for slot, owner in self._owners.items() if owner == number)
        return WorkerReport(number + 1, status.pid, status.state, slots, *worker_sessions(self._slab.row(number)))

    # Workers and slots

    def _want_workers(self, count: int) -> str:
        """Have so many workers from now on, one at least, and as many as there are slots at most; say what comes."""
        if self._stopping:
            return "it is stopping"
        possible = max(1, min(count, self._slots))
        if possible != count:
            _LOG.warning("%d workers are not possible with %d slots", count, self._slots)
        said = f"{possible} workers from now on, {self._wanted} until now"
        if possible != self._wanted:
            _LOG.info("%s", said)
        self._wanted = possible
        return said if possible == count else f"{count} workers are not possible with {self._slots} slots; {said}"

    def _kept_seats(self) -> list[int]:
        """Return the numbers of the workers that are to stay, whether they live or not."""
        return sorted(seat.number for seat in self._seats.values() if seat.number != ADMIN and not seat.leaving)

    def _staff(self) -> None:
        """Add workers, or have some leave, until there are as many as wanted, all of this version."""
        if self._stopping:
            return
        posts = [self._post(seat) for seat in self._seats.values() if seat.number != ADMIN]
        plan = plan_staff(
            posts,
            set(self._owners.values()),
            self._wanted,
            self._rows,
            is_settled=self._in_force is not None and not self._moves,
        )
        for number in (*plan.leave, *plan.stay):
            self._seats[number].leaving = number in plan.leave
            self._status_is_due = True
        for number in plan.close:
            del self._seats[number]
        for number in plan.open:
            self._seats[number] = Seat(number)
        if plan.waits and not self._is_cramped:
            _LOG.warning("the upgrade waits until workers that leave have finished their sessions")
        self._is_cramped = plan.waits

    def _post(self, seat: Seat) -> Post:
        child = self._children.get(seat.number)
        is_old = child is not None and child.is_old
        return Post(seat.number, has_process=child is not None, is_leaving=seat.leaving, is_old=is_old)

    def _move_slots(self) -> None:
        """Begin to move slots from workers that leave, and to those that have less than others."""
        if self._stopping or self._moves or self._in_force is None:
            return
        staying = self._kept_seats()
        able = self._staying()
        if any(self._children[number].applied != self._in_force.generation for number in able):
            return
        # Who has slots keeps them until everybody is there who is to share them; the slots of the dead cannot wait.
        absent = [number for number in staying if number not in self._children]
        if absent and all(owner in self._children for owner in self._owners.values()):
            return
        plan = plan_moves(self._owners, staying, able)
        if not plan and self._has_moved:
            self._has_moved = False
            shares = Counter(self._owners.values())
            shown = ", ".join(f"{_title(owner)} has {count}" for owner, count in sorted(shares.items()))
            _LOG.info("slots have moved: %s", shown)
        # Of a giver that is gone, the flows are, too, and the slots wait.
        orphaned = [move for move in plan if not self._is_reachable(move.giver)]
        for move in orphaned:
            self._owners[move.slot] = move.taker
            self._has_moved = True
        for taker in sorted({move.taker for move in orphaned}):
            self._send_configuration(taker)
        for move in [move for move in plan if self._is_reachable(move.giver)][:MOST_AT_A_TIME]:
            self._begin_move(move, self._in_force)

    def _is_reachable(self, number: int) -> bool:
        child = self._children.get(number)
        return child is not None and child.connected

    def _begin_move(self, move: Move, snapshot: Snapshot) -> None:
        giver, taker = self._children[move.giver], self._children[move.taker]
        places = frozenset(Place(move.slot, bind) for bind in snapshot.binds)
        end, other_end = Channel.pair()
        try:
            if not giver.send(Release(move.slot), (end.fileno(),)):
                self._after(RESEND_INTERVAL, self._resend)
                return
            self._owners[move.slot] = move.taker
            giver.places = frozenset(place for place in giver.places if place.slot != move.slot)
            giver.offered &= giver.places
            giver.confirmed &= giver.places
            self._moves.begin(move, time.monotonic())
            self._has_moved = True
            if not taker.attach(sorted(places), self._sockets) or not taker.send(
                Inherit(move.slot), (other_end.fileno(),)
            ):
                # It gets the slot with its configuration, once more, and without the flows.
                self._has_done(move.slot, move.taker)
                taker.sent = 0
                self._after(RESEND_INTERVAL, self._resend)
        finally:
            end.close()
            other_end.close()

    def _has_done(self, slot: int, number: int) -> None:
        """Note that a worker has done its part for a slot that moves, or never will."""
        if self._moves.done(slot, number):
            self._settle_moves()

    def _settle_moves(self) -> None:
        """Bring the counters of flows given and taken together: nothing is on its way just now."""
        rows = [self._slab.row(row) for row in range(self._rows)]
        balance(rows, self._slab.row(self._rows), self._directory.targets.values())

    def _dismiss_leavers(self) -> None:
        """Let workers that leave finish their sessions, as soon as they have handed their slots over."""
        if self._stopping or self._in_force is None:
            return
        busy = self._moves.busy | set(self._owners.values())
        for number in self._workers():
            seat = self._seats[number]
            if seat.leaving and seat.kill_at is None and number not in busy:
                timeout = self._in_force.drain_timeout
                _LOG.info("%s leaves; it has %d sessions", _title(number), sum(worker_sessions(self._slab.row(number))))
                self._drain(number, timeout, timeout + policy.DRAIN_GRACE)

    def _share_inboxes(self) -> None:
        """Let workers hand connections to each other, if that is wanted."""
        if self._stopping or self._in_force is None:
            return
        owners = frozenset(self._owners.values())
        # Of the other version, nobody knows what it makes of a connection.
        receiving = [
            number
            for number in self._kept_seats()
            if number in owners and (number not in self._children or not self._children[number].is_old)
        ]
        told = {number: self._children[number] for number in self._configurable()}
        if not self._inboxes.update(self._seats, receiving, told, wanted=self._in_force.tcp_balance_workers):
            self._after(RESEND_INTERVAL, self._share_inboxes)

    def _share_kernel_paths(self) -> None:
        """Have workers hold what the kernel path needs to go on without this process.

        One for which something was lost first has a moment, until it is sent the configuration anew.
        """
        workers = [self._children[number] for number in self._configurable() if self._children[number].sent]
        if not self._kernel_path.share(workers):
            self._after(RESEND_INTERVAL, self._share_kernel_paths)

    # Another version of the program

    def _want_upgrade(self) -> None:
        """Upgrade as soon as nothing is under way that another program could not go on with."""
        self._upgrade_is_due = self._check is None
        if self._is_between:
            _LOG.info("the upgrade waits for what is under way")

    @property
    def _is_between(self) -> bool:
        """Whether a configuration or a slot is on its way, which a state does not tell."""
        return self._incoming is not None or self._in_force is None or bool(self._moves)

    def _begin_upgrade(self) -> None:
        """Have the new program judge what it would take over; this one goes on meanwhile."""
        if not self._upgrade_is_due or self._stopping or self._is_between:
            return
        self._upgrade_is_due = False
        self._judged = self._in_force
        try:
            self._check = upgrade.Check(self._state())
        except OSError as error:
            self._refuse_upgrade(f"cannot run the new program: {error.strerror}")
            return
        self._selector.register(self._check, selectors.EVENT_READ, self._on_checked)
        self._after(_CHECK_PATIENCE, self._check.kill)

    def _on_checked(self) -> None:
        assert self._check is not None  # noqa: S101  only then is there something to hear
        self._timers.cancel(self._check.kill)
        self._selector.unregister(self._check)
        objection = self._check.end()
        self._check = None
        if self._stopping:
            return
        if objection is not None:
            self._refuse_upgrade(f"the new program says: {objection}")
        elif self._is_between or self._in_force is not self._judged:  # what it would take over now is something else
            self._upgrade_is_due = True
        else:
            self._become_new()

    def _refuse_upgrade(self, why: str) -> None:
        _LOG.error(_NOT_UPGRADED, why)
        self._desk.tell(_UPGRADE, ExitStatus.FAILURE, _NOT_UPGRADED % why)

    def _state(self, kernel_paths: Sequence[PlainRemains] = ()) -> State:
        """Return what another program needs to go on from here."""
        assert self._in_force is not None  # noqa: S101  as the callers have made sure
        listener_series, target_series = self._directory.as_plain()
        control, askers = self._desk.descriptors(_UPGRADE)
        return State(
            content=self._content.data,
            generation=self._in_force.generation,
            slots=self._slots,
            workers=self._wanted,
            owners=self._owners,
            counters=self._counters.descriptor,
            flows=self._flows.descriptor,
            flow_bytes=len(self._flows.view),
            secret=self._secret,
            sockets=upgrade.as_plain(self._sockets.all_descriptors()),
            admin_sockets=upgrade.as_plain(self._admin_sockets.all_descriptors()),
            retired=[
                (str(bind.transport), bind.host, bind.port, until) for bind, until in self._sockets.retired.items()
            ],
            children=[
                upgrade.ChildState(
                    number=number,
                    pid=child.pid,
                    descriptor=child.descriptor,
                    channel=child.channel.fileno() if child.connected else None,
                    born=self._seats[number].born,
                    leaving=self._seats[number].leaving,
                    draining=child.draining,
                    kill_at=self._seats[number].kill_at,
                )
                for number, child in self._children.items()
            ],
            listener_series=listener_series,
            target_series=target_series,
            addresses=self._addresses,
            cpu_of_the_dead=self._cpu_of_the_dead,
            restarts=self._restarts,
            reloads=self._reloads,
            last_reload_ok=self._last_reload_ok,
            last_reload_success=self._last_reload_success,
            seen=self._file.seen,
            control=control,
            askers=askers,
            kernel_paths=kernel_paths,
        )

    def _become_new(self) -> None:
        """Execute the new program in this process; of this one is left then what the state names, and signals."""
        self._desk.tell(_NEXT_RELOAD, ExitStatus.FAILURE, "an upgrade begins; the configuration is reloaded after it")
        # Until the new program listens to them, no signal may end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        handed: list[PlainRemains] = []
        try:
            _LOG.info("upgrading: %s", " ".join(upgrade.command()))
            self._inbox.put_back()
            self._inboxes.relieve(self._children)
            # The workers' flows are theirs again, and go to the new ones that way.
            handed = self._kernel_path.hand_on()
            if self._reload_is_due:
                signal.raise_signal(signal.SIGHUP)
            upgrade.execute(self._state(handed), systemd.successor(self._manager.told))
        except OSError as error:
            self._refuse_upgrade(f"cannot execute the new program: {error.strerror}")
            assert self._in_force is not None  # noqa: S101  as for the state
            self._kernel_path.take_over(handed)
            with contextlib.suppress(KernelPathError):
                self._kernel_path.prepare(self._in_force)
            self._kernel_path.settle(self._in_force)
            for number in self._configurable():
                self._send_configuration(number)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _take_over(self, before: State, snapshot: Snapshot) -> None:
        """Go on with what the program before has left in this process."""
        for descriptor in before.descriptors():
            os.set_inheritable(descriptor, False)
        retired = {Bind(Transport(transport), host, port): until for transport, host, port, until in before.retired}
        self._sockets.take_over(upgrade.as_binds(before.sockets), retired)
        self._admin_sockets.take_over(upgrade.as_binds(before.admin_sockets), {})
        self._desk.take_over(snapshot.control, before.control, before.askers, _UPGRADE)
        self._kernel_path.take_over(before.kernel_paths)
        self._addresses = dict(before.addresses)
        self._cpu_of_the_dead = dict(before.cpu_of_the_dead)
        self._restarts |= before.restarts
        self._reloads |= before.reloads
        self._last_reload_ok = before.last_reload_ok
        self._last_reload_success = before.last_reload_success
        self._file.seen = before.seen
        self._seats = {ADMIN: Seat(ADMIN), **{number: Seat(number) for number in set(self._owners.values())}}
        for left in before.children:
            seat = self._seats.setdefault(left.number, Seat(left.number))
            seat.occupied, seat.born, seat.leaving, seat.kill_at = True, left.born, left.leaving, left.kill_at
            self._children[left.number] = Child.of_another_program(
                left.pid, left.descriptor, left.channel, draining=left.draining
            )

    # Children

    def _workers(self) -> list[int]:
        """Return the numbers of the workers that have a process."""
        return [number for number in self._children if number != ADMIN]

    def _staying(self) -> list[int]:
        """Return the numbers of those that are not leaving and run this version."""
        return [
            number
            for number in self._workers()
            if not self._seats[number].leaving and not self._children[number].is_old
        ]

    def _configurable(self) -> list[int]:
        """Return the numbers of those that are told each configuration: those of this version not yet told to end."""
        return [
            number
            for number in self._workers()
            if self._seats[number].kill_at is None and not self._children[number].is_old
        ]

    @property
    def _has_old(self) -> bool:
        """Whether a worker of the version before still has to be replaced, or to hand slots over."""
        owners = set(self._owners.values())
        return any(
            self._children[number].is_old and (number in owners or not self._seats[number].leaving)
            for number in self._workers()
        )

    def _carry_out(self, action: Action) -> None:
        match action:
            case Spawn(number):
                self._spawn(number)
            case Suspect(number):
                self._seats[number].suspected = time.monotonic()
            case Abort(number, why):
                _LOG.error("%s hangs (%s): aborting it", _title(number), why)
                self._children[number].hung = True
                self._seats[number].kill_at = time.monotonic() + policy.ABORT_GRACE
                os.kill(self._children[number].pid, signal.SIGABRT)
            case Kill(number):
                _LOG.warning("%s does not end: killing it", _title(number))
                self._seats[number].kill_at = math.inf
                os.kill(self._children[number].pid, signal.SIGKILL)
            case Dismiss(number):
                self._dismiss(number)
            case Finish():
                self._finished = True

    def _spawn(self, number: int) -> None:
        seat = self._seats[number]
        seat.born = time.monotonic()
        try:
            child = start(self._be_admin if number == ADMIN else partial(self._be_worker, number))
        except OSError as error:
            _LOG.error("cannot start %s: %s", _title(number), error.strerror)
            seat.fill_at = seat.born + policy.BACK_OFF[-1]
            return
        if seat.fill_at:
            _LOG.info("%s is process %d now", _title(number), child.pid)
        self._children[number] = child
        seat.occupied, seat.asked, seat.kill_at = True, None, None
        self._listen_to(number)
        if number == ADMIN:
            child.places = _admin_places(self._newest())
        else:
            self._send_configuration(number)
        self._status_is_due = True

    def _listen_to(self, number: int) -> None:
        """Have a child's messages and its end noticed."""
        child = self._children[number]
        self._selector.register(child.descriptor, selectors.EVENT_READ, partial(self._on_death, number))
        if child.connected:
            self._selector.register(child.channel, selectors.EVENT_READ, partial(self._on_message, number))

    def _dismiss(self, number: int) -> None:
        self._seats[number].kill_at = time.monotonic() + policy.STOP_GRACE
        self._disconnect(number)

    def _be_worker(self, number: int, channel: Channel) -> int:
        """In the child: be a worker."""
        self._become(f"worker {number + 1}", channel)
        memories = FlowMemories(self._flows.view, self._slots, self._secret, _REMEMBERED)
        return self._run_worker(number, self._rows, channel, self._slab, memories)

    def _be_admin(self, channel: Channel) -> int:
        """In the child: be the admin process."""
        bind = self._newest().admin
        listening = None if bind is None else self._admin_sockets.copy(bind)
        # Its packages take a while to load, and until then it would look like a second supervisor.
        setproctitle("rpxy-l4: admin")
        self._become("admin", channel, *(() if listening is None else (listening.fileno(),)))
        return self._run_admin(channel, self._slab, self._rows + 1, listening)

    def _become(self, role: str, channel: Channel, *keep: int) -> None:
        """In the child: let go of everything that is the supervisor's."""
        try:
            logs.setup(role, self._log_dir)
        except OSError as error:
            # Better the log of before than no worker.
            logs.current().rename(role)
            _LOG.error("cannot open the log files (%s), so those that the supervisor has open stay in use", error)
        self._inbox.leave_to_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # Objects that would close their descriptors a second time, when those belong to something else by then.
        self._selector.close()
        self._sockets.close_all()
        self._admin_sockets.close_all()
        self._desk.leave_to_parent()
        self._kernel_path.leave_to_parent()
        self._inboxes.close_all()
        self._file.leave_to_parent()
        for child in self._children.values():
            child.disconnect()
        close_inherited((channel.fileno(), *keep, *logs.current().descriptors()))

    def _on_message(self, number: int) -> None:
        child = self._children.get(number)
        while child is not None and child.connected:
            try:
                received = child.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._disconnect(number)
                return
            message, descriptors = received
            for descriptor in descriptors:
                os.close(descriptor)
            self._hear(number, child, message)

    def _hear(self, number: int, child: Child, message: Message) -> None:
        match message:
            case Applied(generation, order):
                child.applied = generation
                if order == child.order and child.sent:
                    child.confirmed = child.offered
                    self._seats[number].asked = None
                self._status_is_due = True
            case NotApplied():
                if number in self._configurable():
                    # What it has was confirmed; the rest is sent again, and it has its full time for that.
                    child.sent, child.places = 0, child.confirmed
                    child.inbox, child.colleagues, child.kernel_path, child.held = None, {}, b"", frozenset()
                    self._seats[number].asked = time.monotonic()
                    self._after(RESEND_INTERVAL, self._resend)
            case Released(slot) | Inherited(slot):
                self._has_done(slot, number)
            case Draining():
                child.draining = True
                self._status_is_due = True
            case Addresses(addresses):
                self._take_addresses(dict(addresses))
            case _:
                _LOG.error("the supervisor has no use for %s", type(message).__name__)

    def _take_addresses(self, found: dict[str, tuple[str, ...]]) -> None:
        """Tell the workers. What a name last had stays in use while it is not in the table: the admin may be new."""
        names = self._newest().names | (self._in_force.names if self._in_force is not None else frozenset())
        known = {**self._addresses, **found}
        addresses = {name: known[name] for name in sorted(names) if name in known}
        if addresses != self._addresses:
            self._addresses = addresses
            for child in map(self._children.__getitem__, self._workers()):
                if child.sent or child.is_old:
                    self._send_addresses(child)
        if self._incoming is not None and new_names(self._incoming, self._in_force) <= addresses.keys():
            self._enforce()

    def _newest(self) -> Snapshot:
        """Return what the admin process works with: the configuration to come, or the one in force."""
        snapshot = self._incoming or self._in_force
        assert snapshot is not None  # noqa: S101  one of them is always there
        return snapshot

    def _disconnect(self, number: int) -> None:
        child = self._children[number]
        if child.connected:
            self._selector.unregister(child.channel)
            child.disconnect()

    def _on_death(self, number: int) -> None:
        child, seat = self._children[number], self._seats[number]
        self._on_message(number)
        self._selector.unregister(child.descriptor)
        self._disconnect(number)
        exit_code, *cpu = child.end()
        del self._children[number]
        seat.occupied, seat.asked, seat.kill_at = False, None, None
        self._status_is_due = True
        lost = 0
        if number != ADMIN:
            lost = settle(self._slab.row(number), self._directory.targets.values())
            user, system = self._cpu_of_the_dead.get(number, (0.0, 0.0))
            self._cpu_of_the_dead[number] = user + cpu[0], system + cpu[1]
        if self._moves.abandon(number):
            self._settle_moves()
        if exit_code == 0 and (self._stopping or seat.leaving or child.is_old):
            return
        now = time.monotonic()
        delay, seat.short_lives = policy.back_off(seat.short_lives, now - seat.born)
        seat.fill_at = now + delay
        if delay:
            self._kernel_path.clear(frozenset(slot for slot, owner in self._owners.items() if owner == number))
        if number != ADMIN and not self._stopping and not seat.leaving:
            self._restarts[policy.cause_of_death(exit_code, hung=child.hung)] += 1
        how = f"exit status {exit_code}" if exit_code >= 0 else name_of(-exit_code)
        sessions = "" if number == ADMIN else f"; {lost} sessions lost"
        _LOG.error("%s (process %d) has died: %s%s", _title(number), child.pid, how, sessions)

    # The admin process

    def _send_status(self) -> None:
        """Tell the admin process what has changed; when it does not listen, try again."""
        admin = self._children.get(ADMIN)
        if not self._status_is_due or admin is None:
            return
        snapshot = self._newest()
        places = _admin_places(snapshot)
        status = Status(
            snapshot=self._in_force or snapshot,
            incoming=self._incoming,
            directory=self._directory,
            workers=tuple(self._worker_status(number) for number in sorted(self._seats) if number != ADMIN),
            worker_cpu=self._cpu_of_the_dead,
            restarts=self._restarts,
            reloads=self._reloads,
            last_reload_ok=self._last_reload_ok,
            last_reload_success=self._last_reload_success,
            draining=self._stopping,
            uses_kernel_path=self._kernel_path.is_used,
            kernel_path=self._kernel_path.state,
        )
        if not admin.send(status, self._admin_sockets.descriptors(places - admin.places)):
            self._after(RESEND_INTERVAL, self._send_status)
            return
        self._status_is_due = False
        admin.places = places
        self._admin_sockets.close(plan_binds(self._admin_sockets.binds, [place.bind for place in places]).close)

    def _worker_status(self, number: int) -> WorkerStatus:
        child = self._children.get(number)
        if child is None:
            return WorkerStatus(number, None, "dead")
        # One of the version before serves its slots until they are taken.
        has_left = self._seats[number].leaving and number not in self._owners.values()
        state = "draining" if child.draining or has_left else "ready" if child.applied or child.is_old else "starting"
        return WorkerStatus(number, child.pid, state)


def _nothing() -> None:
    """Wake the loop, no more."""


def _known(before: State | None, kept: Keepsake | None) -> Directory:
    """Return the series that there are already."""
    if before is not None:
        return before.directory()
    return Directory() if kept is None else kept.directory


def _roll_out(generation: int) -> str:
    """Return what operators wait for whose reload has become this generation."""
    return f"generation {generation}"


def _flow_bytes(snapshot: Snapshot, slots: int) -> int:
    """Return how much memory to reserve for flows: four times as many as there may be, to last for a reload, too."""
    flows = 0 if snapshot.udp is None else snapshot.udp.max_sessions
    return max(_LEAST_REMEMBERED, 4 * flows) // slots * ENTRY_BYTES * slots


def _admin_places(snapshot: Snapshot) -> frozenset[Place]:
    return frozenset() if snapshot.admin is None else frozenset((Place(0, snapshot.admin),))


def _title(number: int) -> str:
    return "the admin process" if number == ADMIN else f"worker {number + 1}"
