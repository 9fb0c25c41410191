"""The supervisor's loop: it waits for signals, children, channels and the file, and does what ``policy`` decides.

No event loop and no thread exists in this process, so that a fork copies nothing half done. It touches no client bytes:
whatever happens here, established sessions go on.

A start is the first reload. A configuration passes three points, and one that fails before the second changes nothing:
it is *loaded* (read, checked, its new addresses bound), then *incoming* (the admin process looks up its names), then
*in force* (sent to every worker, the new ones of later times included).
"""

from __future__ import annotations

import gc
import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from setproctitle import setproctitle

from rpxy_l4 import logs
from rpxy_l4.control import (
    Addresses,
    Applied,
    Apply,
    Drain,
    Draining,
    Message,
    NotApplied,
    ReopenLogs,
    Status,
    WorkerStatus,
)
from rpxy_l4.errors import ConfigError
from rpxy_l4.metrics.layout import Cell, Directory
from rpxy_l4.metrics.settle import settle
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.metrics.totals import worker_sessions
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.kernel import raise_open_files
from rpxy_l4.net.listen import BindError, ListeningSocket
from rpxy_l4.snapshot import Snapshot
from rpxy_l4.supervisor import policy
from rpxy_l4.supervisor.children import Child, close_inherited, start
from rpxy_l4.supervisor.policy import ADMIN, Abort, Action, Dismiss, Finish, Kill, Seat, Spawn, Suspect
from rpxy_l4.supervisor.reload import descriptors_wanted, load, new_names, plan_binds, printable, read_content
from rpxy_l4.supervisor.signals import SIGNALS, Order, SignalInbox, name_of
from rpxy_l4.supervisor.sockets import ListeningSockets
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.supervisor.timers import Timers
from rpxy_l4.supervisor.watch import FileWatch

_LOG: Final = logging.getLogger(__name__)

RunWorker = Callable[[int, int, Channel, Slab], int]
RunAdmin = Callable[[Channel, Slab, int, ListeningSocket | None], int]

# An editor writes a file in several steps; this is how long it must have been quiet.
DEBOUNCE: Final = 0.25
# Changes that inotify does not see: NFS, overlays, a directory replaced as a whole.
POLL_INTERVAL: Final = 10.0
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


class Supervisor:
    """Owns configuration, listening sockets, counters and children."""

    def __init__(self, config: Path, log_dir: Path | None, *, run_worker: RunWorker, run_admin: RunAdmin) -> None:
        """Load the configuration and listen on its addresses; nothing is forked yet.

        ``run_worker`` and ``run_admin`` are what the children do. Raises ConfigError for a file that is wrong or
        cannot be read, BindError for an address that cannot be listened on.
        """
        self._config = config
        self._log_dir = log_dir
        self._run_worker = run_worker
        self._run_admin = run_admin
        self._open_files = raise_open_files()
        self._cpus = len(os.sched_getaffinity(0))

        self._name = printable(config)
        self._is_regular = config.is_file()
        content = read_content(config, may_wait=True)
        snapshot, self._directory = load(content, self._name, generation=1, known=Directory(), cpus=self._cpus)
        self._seen: str | None = content.sha256
        """Of the content that was last tried, None when it could not be read."""
        self._incoming: Snapshot | None = None
        self._in_force: Snapshot | None = None
        self._announced = 0
        """The last generation that was reported as applied."""

        self._slots = snapshot.workers
        # One row more than workers: the admin process beats there.
        self._slab = Slab(self._slots + 1)
        self._sockets = ListeningSockets(self._slots)
        self._admin_sockets = ListeningSockets(1)
        self._bind(snapshot)

        self._seats = {slot: Seat(slot) for slot in (ADMIN, *range(self._slots))}
        self._children: dict[int, Child] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._cpu_of_the_dead: dict[int, tuple[float, float]] = {}
        self._restarts = {"exit": 0, "signal": 0, "heartbeat": 0}
        self._reloads = {"success": 0, "failure": 0, "unchanged": 0}
        self._last_reload_ok = True
        self._last_reload_success = 0.0
        self._status_is_due = False

        self._timers = Timers()
        self._reload_is_due = False
        self._stopping = False
        self._finished = False
        self._grace = -math.inf
        self._wake_at = -math.inf
        """When time alone would change something."""
        self._watch: FileWatch | None = None
        self._receive(snapshot)

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        setproctitle(f"rpxy-l4: supervisor [{self._name}]")
        self._inbox = SignalInbox()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ, self._on_signal)
        # What was loaded until now stays where it is: the collector would touch, and so copy, its pages in each child.
        gc.collect()
        gc.freeze()
        self._act()
        while not self._finished:
            self._turn()
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
        for step in (self._roll_out, self._close_after_drain, self._govern, self._send_status):
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
            for slot, seat in self._seats.items():
                row = self._slab.row(self._slots if slot == ADMIN else slot)
                seat.beat = row[Cell.HEARTBEAT] / _NANOSECONDS
            seats = tuple(self._seats.values())
            decision = policy.decide(seats, stopping=self._stopping, now=time.monotonic(), grace=self._grace)
            for action in decision.actions:
                self._carry_out(action)
            if self._finished or not decision.actions:
                break
        self._wake_at = decision.wake_at

    def _after(self, delay: float, timer: Callable[[], None]) -> None:
        """Call a method once, ``delay`` seconds from now; this replaces an earlier wish for it."""
        self._timers.set(timer, time.monotonic() + delay)

    # Configuration

    def _bind(self, snapshot: Snapshot) -> None:
        """Listen on what is new in this configuration: on all of it, or raise BindError and on none of it."""
        plan = plan_binds(self._sockets.binds, snapshot.binds)
        self._sockets.open(plan.open, snapshot.tcp_backlog, now=time.monotonic())
        admin = () if snapshot.admin is None else (snapshot.admin,)
        try:
            self._admin_sockets.open(plan_binds(self._admin_sockets.binds, admin).open, _ADMIN_BACKLOG)
        except BindError:
            self._sockets.close(plan.open)
            raise

    def _receive(self, snapshot: Snapshot) -> None:
        """Have the names of a loaded configuration looked up."""
        wanted = descriptors_wanted(snapshot)
        if wanted > self._open_files * self._slots:
            text = "the limits allow sessions that need %d descriptors, but %d workers may open %d each"
            _LOG.warning(text, wanted, self._slots, self._open_files)
        self._incoming = snapshot
        self._status_is_due = True
        self._after(NAMES_PATIENCE if new_names(snapshot, self._in_force) else 0.0, self._enforce)

    def _enforce(self) -> None:
        """Put the incoming configuration in force: send it to every worker."""
        snapshot = self._incoming
        self._timers.cancel(self._enforce)
        if snapshot is None or self._stopping:
            return
        before = self._in_force
        if before is not None and 1 < before.generation != self._announced:
            # A reload does not wait for the one before when no worker lives to apply that.
            self._count_reload("failure")
            _LOG.error("generation %d was never in force on all workers", before.generation)
        self._incoming, self._in_force = None, snapshot
        self._status_is_due = True
        self._sockets.set_backlog(snapshot.tcp_backlog)
        self._set_watch(wanted=snapshot.watch)
        for slot in self._workers():
            self._send_configuration(slot)

    def _send_configuration(self, slot: int) -> None:
        """Send a worker the configuration in force, with the sockets that it does not have yet."""
        snapshot, child, seat = self._in_force, self._children[slot], self._seats[slot]
        if snapshot is None:
            return
        attached = tuple(bind for bind in snapshot.binds if bind not in child.binds)
        # Of one that does not read, an answer is expected all the same.
        if seat.asked is None:
            seat.asked = time.monotonic()
        if not child.send(Apply(snapshot, self._addresses, attached), self._sockets.of_slot(slot, attached)):
            self._after(RESEND_INTERVAL, self._resend)
            return
        child.sent, child.binds, child.addresses_due = snapshot.generation, snapshot.binds, False

    def _resend(self) -> None:
        """Tell the workers what could not be delivered."""
        if self._stopping or self._in_force is None:
            return
        for slot in self._workers():
            child = self._children[slot]
            if not child.connected:
                continue
            if child.sent != self._in_force.generation:
                self._send_configuration(slot)
            elif child.addresses_due:
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
        workers = [self._children[slot] for slot in self._workers()]
        if any(child.applied != snapshot.generation for child in workers):
            return
        # A UDP socket with flows stays open in a worker for as long as a drain may last, and a moment.
        retired_until = time.monotonic() + snapshot.drain_timeout + policy.DRAIN_GRACE
        self._sockets.close(plan_binds(self._sockets.binds, snapshot.binds).close, until=retired_until)
        if workers and self._announced != snapshot.generation:
            self._announced = snapshot.generation
            self._last_reload_success = time.time()
            self._status_is_due = True
            if snapshot.generation > 1:
                self._count_reload("success")
            # Whoever waits for the line may look at the metrics next.
            self._send_status()
            result = f"generation {snapshot.generation} applied on {len(workers)}/{self._slots} workers"
            if snapshot.generation > 1:
                _LOG.info("%s", result)
            else:
                _LOG.info("ready: %s, listening on %s", result, ", ".join(map(str, snapshot.binds)))
        if self._reload_is_due:
            self._reload_is_due = False
            self._reload(snapshot)

    def _want_reload(self) -> None:
        """Reload as soon as the configuration before is in force everywhere. Wishes until then are one wish."""
        self._reload_is_due = True

    def _reload(self, current: Snapshot) -> None:
        # What happened to the file until now is in what is read next.
        self._timers.cancel(self._want_reload)
        self._has_changed()
        try:
            content = read_content(self._config)
        except ConfigError as error:
            self._seen = None
            self._refuse(error.render())
            return
        self._seen = content.sha256
        if content.sha256 == current.sha256:
            self._count_reload("unchanged")
            _LOG.info("the configuration file is unchanged")
            return
        try:
            snapshot, directory = load(
                content,
                self._name,
                generation=current.generation + 1,
                known=self._directory,
                cpus=self._cpus,
            )
            self._bind(snapshot)
        except ConfigError as error:
            self._refuse(error.render())
            return
        except BindError as error:
            self._refuse(f"cannot listen on {error}")
            return
        if snapshot.workers != self._slots:
            _LOG.warning("workers = %d takes effect at the next start; it stays %d", snapshot.workers, self._slots)
        self._directory = directory
        self._receive(snapshot)

    def _refuse(self, why: str) -> None:
        self._count_reload("failure")
        _LOG.error("the configuration was not reloaded, nothing has changed:\n%s", why)

    def _count_reload(self, result: str) -> None:
        self._reloads[result] += 1
        self._last_reload_ok = result != "failure"
        self._status_is_due = True

    # The file

    def _set_watch(self, *, wanted: bool) -> None:
        if not wanted or not self._is_regular:
            self._timers.cancel(self._poll)
            self._stop_watching()
            return
        self._after(POLL_INTERVAL, self._poll)
        try:
            self._begin_watching()
        except OSError as error:
            _LOG.warning(
                "cannot watch %s (%s); it is looked at every %.0f s", self._name, error.strerror, POLL_INTERVAL
            )

    def _begin_watching(self) -> None:
        """Watch the file, or find the way to it anew. Raises OSError when it cannot be watched now."""
        if self._watch is None:
            self._watch = FileWatch(self._config)
            self._selector.register(self._watch, selectors.EVENT_READ, self._on_file_event)
        else:
            self._watch.follow()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._selector.unregister(self._watch)
            self._watch.close()
            self._watch = None

    def _has_changed(self) -> bool:
        """Empty the watch's queue of events; whether there was one about the file."""
        try:
            return self._watch is not None and self._watch.changed()
        except OSError as error:
            _LOG.warning(
                "cannot go on watching %s (%s); it is looked at every %.0f s",
                self._name,
                error.strerror,
                POLL_INTERVAL,
            )
            self._stop_watching()
            return True

    def _on_file_event(self) -> None:
        if self._has_changed():
            self._after(DEBOUNCE, self._want_reload)

    def _poll(self) -> None:
        """Without an event: reload only what is really new."""
        self._after(POLL_INTERVAL, self._poll)
        try:
            # Before the file is read, so that no change falls between. The directory may be another one by now.
            self._begin_watching()
        except OSError:  # it was said when it began
            self._stop_watching()
        try:
            digest = read_content(self._config).sha256
        except ConfigError:
            digest = None
        if digest != self._seen:
            self._want_reload()

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
        if not self._stopping:
            self._after(CLOSE_PATIENCE, self._sockets.close_all)
        self._stopping = True
        self._status_is_due = True
        self._stop_watching()
        for slot in self._workers():
            self._children[slot].send(Drain(timeout))
            seat = self._seats[slot]
            kill_at = time.monotonic() + patience
            seat.kill_at = kill_at if seat.kill_at is None else min(seat.kill_at, kill_at)

    def _close_after_drain(self) -> None:
        """Close the listening sockets as soon as no worker accepts from them any more."""
        if self._stopping and all(self._children[slot].draining for slot in self._workers()):
            self._timers.cancel(self._sockets.close_all)
            self._sockets.close_all()

    def _report_progress(self) -> None:
        if self._workers():
            _LOG.info("draining: %d sessions left", self._open_sessions())
            self._after(PROGRESS_INTERVAL, self._report_progress)

    def _open_sessions(self) -> int:
        return sum(sum(worker_sessions(self._slab.row(slot))) for slot in self._workers())

    # Children

    def _workers(self) -> list[int]:
        """Return the slots that a process fills."""
        return [slot for slot in self._children if slot != ADMIN]

    def _carry_out(self, action: Action) -> None:
        match action:
            case Spawn(slot):
                self._spawn(slot)
            case Suspect(slot):
                self._seats[slot].suspected = time.monotonic()
            case Abort(slot, why):
                _LOG.error("%s hangs (%s): aborting it", _title(slot), why)
                self._children[slot].hung = True
                self._seats[slot].kill_at = time.monotonic() + policy.ABORT_GRACE
                os.kill(self._children[slot].pid, signal.SIGABRT)
            case Kill(slot):
                _LOG.warning("%s does not end: killing it", _title(slot))
                self._seats[slot].kill_at = math.inf
                os.kill(self._children[slot].pid, signal.SIGKILL)
            case Dismiss(slot):
                self._seats[slot].kill_at = time.monotonic() + policy.STOP_GRACE
                self._disconnect(slot)
            case Finish():
                self._finished = True

    def _spawn(self, slot: int) -> None:
        seat = self._seats[slot]
        seat.born = time.monotonic()
        try:
            child = start(self._be_admin if slot == ADMIN else partial(self._be_worker, slot))
        except OSError as error:
            _LOG.error("cannot start %s: %s", _title(slot), error.strerror)
            seat.fill_at = seat.born + policy.BACK_OFF[-1]
            return
        if seat.fill_at:
            _LOG.info("%s is process %d now", _title(slot), child.pid)
        self._children[slot] = child
        seat.occupied, seat.asked, seat.kill_at = True, None, None
        self._selector.register(child.descriptor, selectors.EVENT_READ, partial(self._on_death, slot))
        self._selector.register(child.channel, selectors.EVENT_READ, partial(self._on_message, slot))
        if slot == ADMIN:
            bind = self._newest().admin
            child.binds = () if bind is None else (bind,)
        else:
            self._send_configuration(slot)
        self._status_is_due = True

    def _be_worker(self, slot: int, channel: Channel) -> int:
        """In the child: be a worker."""
        self._become(f"worker {slot + 1}", channel)
        return self._run_worker(slot, self._slots, channel, self._slab)

    def _be_admin(self, channel: Channel) -> int:
        """In the child: be the admin process."""
        bind = self._newest().admin
        listening = None if bind is None else self._admin_sockets.copy(bind)
        # Its packages take a while to load, and until then it would look like a second supervisor.
        setproctitle("rpxy-l4: admin")
        self._become("admin", channel, *(() if listening is None else (listening.fileno(),)))
        return self._run_admin(channel, self._slab, self._slots, listening)

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
        if self._watch is not None:
            self._watch.close()
        for child in self._children.values():
            child.disconnect()
        close_inherited((channel.fileno(), *keep, *logs.current().descriptors()))

    def _on_message(self, slot: int) -> None:
        child = self._children.get(slot)
        while child is not None and child.connected:
            try:
                received = child.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._disconnect(slot)
                return
            message, descriptors = received
            for descriptor in descriptors:
                os.close(descriptor)
            self._hear(slot, child, message)

    def _hear(self, slot: int, child: Child, message: Message) -> None:
        match message:
            case Applied(generation):
                child.applied = generation
                if generation == child.sent:
                    child.confirmed = child.binds
                if generation == child.sent:
                    self._seats[slot].asked = None
                self._status_is_due = True
            case NotApplied():
                # What it has was confirmed; the rest is sent again, and it has its full time for that.
                child.sent, child.binds = child.applied, child.confirmed
                self._seats[slot].asked = time.monotonic()
                self._after(RESEND_INTERVAL, self._resend)
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
            for slot in self._workers():
                if self._children[slot].sent:
                    self._send_addresses(self._children[slot])
        if self._incoming is not None and new_names(self._incoming, self._in_force) <= addresses.keys():
            self._enforce()

    def _newest(self) -> Snapshot:
        """Return what the admin process works with: the configuration to come, or the one in force."""
        snapshot = self._incoming or self._in_force
        assert snapshot is not None  # noqa: S101  one of them is always there
        return snapshot

    def _disconnect(self, slot: int) -> None:
        child = self._children[slot]
        if child.connected:
            self._selector.unregister(child.channel)
            child.disconnect()

    def _on_death(self, slot: int) -> None:
        child, seat = self._children[slot], self._seats[slot]
        self._on_message(slot)
        self._selector.unregister(child.descriptor)
        self._disconnect(slot)
        exit_code, *cpu = child.end()
        del self._children[slot]
        seat.occupied, seat.asked, seat.kill_at = False, None, None
        self._status_is_due = True
        lost = 0
        if slot != ADMIN:
            lost = settle(self._slab.row(slot), self._directory.targets.values())
            user, system = self._cpu_of_the_dead.get(slot, (0.0, 0.0))
            self._cpu_of_the_dead[slot] = user + cpu[0], system + cpu[1]
        if self._stopping and exit_code == 0:
            return
        now = time.monotonic()
        delay, seat.short_lives = policy.back_off(seat.short_lives, now - seat.born)
        seat.fill_at = now + delay
        if slot != ADMIN and not self._stopping:
            self._restarts[policy.cause_of_death(exit_code, hung=child.hung)] += 1
        how = f"exit status {exit_code}" if exit_code >= 0 else name_of(-exit_code)
        sessions = "" if slot == ADMIN else f"; {lost} sessions lost"
        _LOG.error("%s (process %d) has died: %s%s", _title(slot), child.pid, how, sessions)

    # The admin process

    def _send_status(self) -> None:
        """Tell the admin process what has changed; when it does not listen, try again."""
        admin = self._children.get(ADMIN)
        if not self._status_is_due or admin is None:
            return
        snapshot = self._newest()
        binds = () if snapshot.admin is None else (snapshot.admin,)
        new = plan_binds(admin.binds, binds).open
        status = Status(
            snapshot=self._in_force or snapshot,
            incoming=self._incoming,
            directory=self._directory,
            workers=tuple(self._worker_status(slot) for slot in range(self._slots)),
            worker_cpu=self._cpu_of_the_dead,
            restarts=self._restarts,
            reloads=self._reloads,
            last_reload_ok=self._last_reload_ok,
            last_reload_success=self._last_reload_success,
            draining=self._stopping,
        )
        if not admin.send(status, self._admin_sockets.of_slot(0, new)):
            self._after(RESEND_INTERVAL, self._send_status)
            return
        self._status_is_due = False
        admin.binds = binds
        self._admin_sockets.close(plan_binds(self._admin_sockets.binds, binds).close)

    def _worker_status(self, slot: int) -> WorkerStatus:
        child = self._children.get(slot)
        if child is None:
            return WorkerStatus(slot, None, "dead")
        state = "draining" if child.draining else "ready" if child.applied else "starting"
        return WorkerStatus(slot, child.pid, state)


def _title(slot: int) -> str:
    return "the admin process" if slot == ADMIN else f"worker {slot + 1}"
