"""Everything that ``/metrics`` shows, made afresh for each scrape. Does no I/O: what it shows is given to it.

Which values of a label exist before their first event: of a label that names a fault or a decision, all that can occur,
so that an alert sees the first one. The exception is ``sessions_closed_total``, whose reasons come once for each
target: the ordinary ends are always there, the others from their first event on. Faults of single targets are
always visible in ``target_connects_total``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rpxy_l4.admin.proc import Reading
from rpxy_l4.admin.resolver import LookupResult
from rpxy_l4.control import Status, WorkerStatus
from rpxy_l4.endings import ConnectResult, Detected, Drop, Reason, Rejection
from rpxy_l4.metrics.layout import (
    ACCEPT_ERRNOS,
    CONNECT_BUCKETS,
    DETECTION_BUCKETS,
    L_ACCEPT_ERRORS,
    L_DETECTED,
    L_DETECTION_HISTOGRAM,
    L_DROPPED,
    L_PROXY_HEADERS,
    L_REJECTED,
    L_SESSION_HISTOGRAM,
    L_SOCKET_ERRORS,
    MICROSECONDS,
    SESSION_BUCKETS,
    SOCKET_ERRNOS,
    T_BYTES_IN,
    T_BYTES_OUT,
    T_CLOSED,
    T_CONNECT_HISTOGRAM,
    T_CONNECTS,
    T_DATAGRAMS_IN,
    T_DATAGRAMS_OUT,
    T_OPENED,
    Cell,
    ListenerSeries,
    TargetSeries,
)
from rpxy_l4.metrics.totals import Column, Totals, histogram, read_totals, worker_sessions
from rpxy_l4.verdict import TRANSPORT_OF, Protocol, Transport

PREFIX: Final = "rpxy_l4_"

_WORKER_STATES: Final = ("ready", "starting", "draining", "dead")
_RESTART_CAUSES: Final = ("exit", "signal", "heartbeat")
_RELOAD_RESULTS: Final = ("success", "failure", "unchanged")
_SHA256_SHOWN: Final = 12

_ORDINARY_ENDS: Final = {
    Transport.TCP: frozenset({Reason.CLIENT_EOF, Reason.TARGET_EOF}),
    Transport.UDP: frozenset({Reason.IDLE, Reason.UNCONFIRMED}),
}

_LISTENER: Final = ("listener", "protocol")
_TARGET: Final = ("listener", "protocol", "route", "target")

Lookups = Mapping[tuple[str, LookupResult], int]


def _results_of(transport: Transport) -> list[Detected]:
    others = {Detected(protocol.value) for protocol in Protocol if TRANSPORT_OF[protocol] is not transport}
    if transport is Transport.TCP:
        others.add(Detected.REMEMBERED)
    return [result for result in Detected if result not in others]


def _counter(name: str, text: str, labels: Iterable[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, labels=tuple(labels))


def _gauge(name: str, text: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=tuple(labels))


def _histogram(name: str, text: str, labels: Iterable[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(PREFIX + name, text, labels=tuple(labels))


def _observe(
    family: HistogramMetricFamily, labels: Sequence[str], bounds: Sequence[float], cells: Sequence[int]
) -> None:
    counted = histogram(cells)
    names = [*(str(bound) for bound in bounds), "+Inf"]
    family.add_metric(labels, list(zip(names, counted.cumulative, strict=True)), counted.seconds)


class ProxyCollector(Collector):
    """One consistent view of all workers."""

    def __init__(
        self,
        *,
        rows: Sequence[memoryview],
        status: Callable[[], Status | None],
        processes: Callable[[Mapping[int, int | None]], Mapping[int, Reading]],
        lookups: Callable[[], Lookups],
        expiries: Callable[[], Mapping[str, float]],
        build: Mapping[str, str],
    ) -> None:
        """``rows`` are those of the workers. The callables are asked at each scrape, in the thread that serves it."""
        self._rows = rows
        self._status = status
        self._processes = processes
        self._lookups = lookups
        self._expiries = expiries
        self._build = build

    def describe(self) -> list[Metric]:
        """Return nothing, so that registration does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family; before the supervisor's first word only those that need none."""
        family = _gauge("build_info", "Versions of the program and of what it runs on; always 1.", self._build)
        family.add_metric(list(self._build.values()), 1)
        yield family
        yield from _dns(self._lookups(), self._expiries())
        status = self._status()
        if status is None:
            return
        totals = read_totals(self._rows, status.directory)
        yield from _configuration(status)
        yield from _workers(status)
        yield from self._each_worker(status.workers, status.worker_cpu)
        yield from _sessions(status, totals)
        yield from _listeners(status.directory.listeners, totals.listeners)
        yield from _connects(status.directory.targets, totals.targets)
        dropped = _counter("log_lines_dropped_total", "Log lines that nobody took in time.", ["stream"])
        dropped.add_metric(["access"], totals.access_lines_dropped)
        dropped.add_metric(["error"], totals.event_lines_dropped)
        yield dropped

    def _each_worker(self, workers: Sequence[WorkerStatus], gone: Iterable[int]) -> Iterator[Metric]:
        cpu = _counter("worker_cpu_seconds_total", "CPU time of the processes of a worker.", ["worker", "mode"])
        resident = _gauge("worker_resident_memory_bytes", "Resident memory of a worker.", ["worker"])
        open_fds = _gauge("worker_open_fds", "Open file descriptors of a worker.", ["worker"])
        max_fds = _gauge("worker_max_fds", "Soft limit of open file descriptors of a worker.", ["worker"])
        sessions = _gauge(
            "worker_sessions", "Open sessions of a worker, undecided ones included.", ["worker", "protocol"]
        )
        handed = _counter(
            "connections_handed_total", "TCP connections that a worker accepted and handed to another.", ["worker"]
        )
        lag = _gauge(
            "worker_loop_lag_seconds", "Longest delay of a worker's event loop since the worker started.", ["worker"]
        )
        in_kernel = _gauge("worker_kernel_flows", "UDP flows of a worker that are in the kernel path.", ["worker"])
        by_kernel = _counter(
            "kernel_datagrams_total", "UDP datagrams of a worker's flows that the kernel path relayed.", ["worker"]
        )
        # The last row is the supervisor's, which keeps the books of these.
        begun = _counter("kernel_connections_total", "TCP connections that the kernel path began.", [])
        now = _gauge("kernel_connections", "TCP connections that are in the kernel path.", [])
        tcp_now, _ = worker_sessions(self._rows[-1])
        begun.add_metric([], self._rows[-1][Cell.TCP_OPENED])
        now.add_metric([], tcp_now)
        # With those that have left: a counter does not vanish.
        pids: dict[int, int | None] = {**dict.fromkeys(gone), **{worker.number: worker.pid for worker in workers}}
        readings = self._processes(pids)
        for index, reading in sorted(readings.items()):
            if reading.cpu_user is not None and reading.cpu_system is not None:
                cpu.add_metric([str(index + 1), "user"], reading.cpu_user)
                cpu.add_metric([str(index + 1), "system"], reading.cpu_system)
            handed.add_metric([str(index + 1)], self._rows[index][Cell.TCP_HANDED])
            by_kernel.add_metric([str(index + 1)], self._rows[index][Cell.KERNEL_DATAGRAMS])
        for worker in workers:
            number, reading, row = str(worker.number + 1), readings[worker.number], self._rows[worker.number]
            for family, value in (
                (resident, reading.resident_bytes),
                (open_fds, reading.open_fds),
                (max_fds, reading.max_fds),
            ):
                if value is not None:
                    family.add_metric([number], value)
            for protocol, count in zip(("tcp", "udp"), worker_sessions(row), strict=True):
                sessions.add_metric([number, protocol], count)
            lag.add_metric([number], row[Cell.LOOP_LAG] / MICROSECONDS)
            in_kernel.add_metric([number], row[Cell.UDP_IN_KERNEL])
        yield from (cpu, resident, open_fds, max_fds, sessions, handed, lag, in_kernel, by_kernel, begun, now)


def _dns(lookups: Lookups, expiries: Mapping[str, float]) -> Iterator[Metric]:
    counter = _counter("dns_lookups_total", "Lookups of targets' names, by how they ended.", ["name", "result"])
    for (name, result), count in sorted(lookups.items()):
        counter.add_metric([name, result], count)
    yield counter
    expiry = _gauge(
        "dns_expiry_timestamp_seconds", "Until when a name's addresses are fresh; in the past: stale.", ["name"]
    )
    for name, when in sorted(expiries.items()):
        expiry.add_metric([name], when)
    yield expiry


def _configuration(status: Status) -> Iterator[Metric]:
    snapshot = status.snapshot
    info = _gauge("config_info", "The configuration in force; always 1.", ["sha256", "generation"])
    info.add_metric([snapshot.sha256[:_SHA256_SHOWN], str(snapshot.generation)], 1)
    yield info
    ok = _gauge("config_last_reload_successful", "1 when the last reload was applied or had nothing to change.")
    ok.add_metric([], int(status.last_reload_ok))
    yield ok
    when = _gauge("config_last_reload_success_timestamp_seconds", "When a configuration was last applied.")
    when.add_metric([], status.last_reload_success)
    yield when
    reloads = _counter("config_reloads_total", "Attempts to reload the configuration.", ["result"])
    for result in _RELOAD_RESULTS:
        reloads.add_metric([result], status.reloads.get(result, 0))
    yield reloads
    kernel_path = _gauge("kernel_path_info", "1: what is decided is forwarded in the kernel; 0: it is not.", ["detail"])
    kernel_path.add_metric([status.kernel_path], int(status.uses_kernel_path))
    yield kernel_path


def _workers(status: Status) -> Iterator[Metric]:
    workers = _gauge("workers", "Slots by the state of their worker process.", ["state"])
    for state in _WORKER_STATES:
        workers.add_metric([state], sum(worker.state == state for worker in status.workers))
    yield workers
    restarts = _counter("worker_restarts_total", "Workers replaced because they died or hung.", ["cause"])
    for cause in _RESTART_CAUSES:
        restarts.add_metric([cause], status.restarts.get(cause, 0))
    yield restarts


def _sessions(status: Status, totals: Totals) -> Iterator[Metric]:
    began = _counter("sessions_total", "TCP connections and UDP flows given to a target.", _TARGET)
    now = _gauge("sessions", "Sessions open now.", _TARGET)
    closed = _counter("sessions_closed_total", "Sessions that ended, by cause.", (*_TARGET, "reason"))
    size = _counter("bytes_total", "Payload relayed; in is from client to target.", (*_TARGET, "direction"))
    datagrams = _counter(
        "datagrams_total", "UDP datagrams relayed; in is from client to target.", (*_TARGET, "direction")
    )
    cells = totals.targets
    for key, series in status.directory.targets.items():
        labels = [key.listener, key.transport, key.route, key.target]
        began.add_metric(labels, cells[T_OPENED][series])
        now.add_metric(labels, totals.open_sessions[series])
        for i, reason in enumerate(Reason):
            count = cells[T_CLOSED + i][series]
            if count or reason in _ORDINARY_ENDS[key.transport]:
                closed.add_metric([*labels, reason], count)
        size.add_metric([*labels, "in"], cells[T_BYTES_IN][series])
        size.add_metric([*labels, "out"], cells[T_BYTES_OUT][series])
        if key.transport is Transport.UDP:
            datagrams.add_metric([*labels, "in"], cells[T_DATAGRAMS_IN][series])
            datagrams.add_metric([*labels, "out"], cells[T_DATAGRAMS_OUT][series])
    limit = _gauge("sessions_limit", "Most sessions that may be open at once.", _LISTENER)
    for side in (status.snapshot.tcp, status.snapshot.udp):
        if side is not None:
            limit.add_metric([status.snapshot.listener, side.transport], side.max_sessions)
    yield from (began, now, limit, closed, size, datagrams)


def _listeners(directory: Mapping[ListenerSeries, int], cells: Sequence[Column]) -> Iterator[Metric]:
    rejected = _counter(
        "sessions_rejected_total", "Sessions refused before a target was chosen.", (*_LISTENER, "reason")
    )
    dropped = _counter("datagrams_dropped_total", "UDP datagrams not relayed.", ["listener", "reason"])
    detected = _counter("detections_total", "What the first bytes were recognised as.", (*_LISTENER, "result"))
    lasted = _histogram("session_duration_seconds", "From a session's begin to its end.", _LISTENER)
    took = _histogram(
        "detection_duration_seconds", "From the begin of a session to the choice of its route.", _LISTENER
    )
    accept = _counter("accept_errors_total", "Failures to accept a TCP connection.", ["listener", "errno"])
    sockets = _counter(
        "socket_errors_total",
        "Sockets towards targets that the machine was too short of something for.",
        (*_LISTENER, "errno"),
    )
    headers = _counter("proxy_protocol_headers_total", "PROXY protocol headers received.", ["listener", "result"])
    for key, series in directory.items():
        labels = [key.listener, key.transport]

        def at(first: int, count: int, series: int = series) -> list[int]:
            return [column[series] for column in cells[first : first + count]]

        for reason, count in zip(Rejection, at(L_REJECTED, len(Rejection)), strict=True):
            rejected.add_metric([*labels, reason], count)
        results = dict(zip(Detected, at(L_DETECTED, len(Detected)), strict=True))
        for result in _results_of(key.transport):
            detected.add_metric([*labels, result], results[result])
        _observe(lasted, labels, SESSION_BUCKETS, at(L_SESSION_HISTOGRAM, len(SESSION_BUCKETS) + 2))
        _observe(took, labels, DETECTION_BUCKETS, at(L_DETECTION_HISTOGRAM, len(DETECTION_BUCKETS) + 2))
        for errno, count in zip(SOCKET_ERRNOS, at(L_SOCKET_ERRORS, len(SOCKET_ERRNOS)), strict=True):
            sockets.add_metric([*labels, errno], count)
        if key.transport is Transport.UDP:
            for drop, count in zip(Drop, at(L_DROPPED, len(Drop)), strict=True):
                dropped.add_metric([key.listener, drop], count)
        else:
            for errno, count in zip(ACCEPT_ERRNOS, at(L_ACCEPT_ERRORS, len(ACCEPT_ERRNOS)), strict=True):
                accept.add_metric([key.listener, errno], count)
            for outcome, count in zip(("accepted", "refused"), at(L_PROXY_HEADERS, 2), strict=True):
                headers.add_metric([key.listener, outcome], count)
    yield from (rejected, dropped, detected, lasted, took, accept, sockets, headers)


def _connects(directory: Mapping[TargetSeries, int], cells: Sequence[Column]) -> Iterator[Metric]:
    # A target of a route is one machine, whichever listener leads to it.
    same: dict[tuple[str, str], list[int]] = {}
    for key, series in directory.items():
        if key.transport is Transport.TCP:
            same.setdefault((key.route, key.target), []).append(series)
    connects = _counter(
        "target_connects_total", "Attempts to connect to a target, by how they ended.", ["route", "target", "result"]
    )
    took = _histogram("target_connect_duration_seconds", "Time to connect to a target.", ["route", "target"])
    for (route, target), blocks in same.items():

        def at(first: int, count: int, blocks: Sequence[int] = blocks) -> list[int]:
            return [sum(column[series] for series in blocks) for column in cells[first : first + count]]

        for result, count in zip(ConnectResult, at(T_CONNECTS, len(ConnectResult)), strict=True):
            connects.add_metric([route, target, result], count)
        _observe(took, [route, target], CONNECT_BUCKETS, at(T_CONNECT_HISTOGRAM, len(CONNECT_BUCKETS) + 2))
    yield from (connects, took)
