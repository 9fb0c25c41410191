"""The books of TCP connections in the kernel path: counters and lines of the access log, as of those in workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rpxy_l4.access_log import AccessLog, describe, endpoint
from rpxy_l4.endings import ConnectResult, Detected, Rejection
from rpxy_l4.kernel.connections import Connections, Lost
from rpxy_l4.kernel.layout import REASONS, End, Total
from rpxy_l4.metrics.layout import (
    CONNECT_BUCKETS,
    CONNECT_INDEX,
    DETECTED_INDEX,
    L_DETECTED,
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
    Directory,
    ListenerSeries,
    TargetSeries,
    listener_offset,
    target_offset,
)
from rpxy_l4.metrics.slab import observe
from rpxy_l4.verdict import Transport

_NANOSECONDS: Final = 1_000_000_000

Labels = dict[int, TargetSeries]


class KernelSessions:
    """Writes to a row of counters that only its owner writes to, and to an access log."""

    def __init__(self, row: memoryview, log: AccessLog, directory: Callable[[], Directory]) -> None:
        """Begin. ``directory`` tells what the series are."""
        self._row = row
        self._log = log
        self._directory = directory
        self._labels: Labels = {}
        self._dropped = log.dropped
        """Lines that found no room, as far as they are counted."""

    def _label(self, series: int) -> TargetSeries:
        if series not in self._labels:
            self._labels = {number: label for label, number in self._directory().targets.items()}
        return self._labels[series]

    @property
    def series(self) -> frozenset[int]:
        """Those of all targets of TCP."""
        return frozenset(
            number for label, number in self._directory().targets.items() if label.transport is Transport.TCP
        )

    def settle(self) -> None:
        """Count connections as ended that nobody can look after any more."""
        self._row[Cell.TCP_CLOSED] = self._row[Cell.TCP_OPENED]

    def _listener(self, label: TargetSeries) -> int:
        """Return where the block of its listener begins."""
        return listener_offset(self._directory().listeners[ListenerSeries(label.listener, Transport.TCP)])

    def count(self, connections: Connections) -> None:
        """Count what has passed since the last time."""
        row = self._row
        for series, change in connections.news():
            start, listener = target_offset(series), self._listener(self._label(series))
            row[start + T_OPENED] += change[Total.OPENED]
            row[start + T_BYTES_IN] += change[Total.BYTES_IN]
            row[start + T_BYTES_OUT] += change[Total.BYTES_OUT]
            for number, reason in enumerate(REASONS):
                row[start + T_CLOSED + REASON_INDEX[reason]] += change[Total.CLOSED + number]
            for result, word in (
                (ConnectResult.OK, Total.OPENED),
                (ConnectResult.REFUSED, Total.REFUSED),
                (ConnectResult.TIMEOUT, Total.UNANSWERED),
            ):
                row[start + T_CONNECTS + CONNECT_INDEX[result]] += change[word]
            for cell in range(len(CONNECT_BUCKETS) + 2):
                row[start + T_CONNECT_HISTOGRAM + cell] += change[Total.CONNECT + cell]
            for cell in range(len(SESSION_BUCKETS) + 2):
                row[listener + L_SESSION_HISTOGRAM + cell] += change[Total.SESSION + cell]
            row[listener + L_DETECTED + DETECTED_INDEX[Detected.SKIPPED]] += change[Total.OPENED]
            row[Cell.ACCESS_LINES_DROPPED] += change[Total.UNTOLD]
        begun, gone = connections.uncounted()
        # In this order: who reads never sees more of them end than begin.
        row[Cell.TCP_OPENED] += begun
        row[Cell.TCP_CLOSED] += gone

    def tell(self, connections: Connections, most: int) -> int:
        """Write the lines of up to ``most`` connections that have ended; return how many."""
        count = 0
        for series, end in connections.ends(most):
            self._line(series, end, time.monotonic_ns())
            count += 1
        return count

    def lose(self, lost: Lost, *, tells: bool) -> None:
        """Count, and if wanted tell of, a connection that was taken out."""
        row, label = self._row, self._label(lost.series)
        listener = self._listener(label)
        if lost.end is None:
            row[listener + L_REJECTED + REJECTION_INDEX[Rejection.CLIENT_GONE]] += 1
            return
        reason, now = lost.end.reason, time.monotonic_ns()
        row[target_offset(lost.series) + T_CLOSED + REASON_INDEX[reason]] += 1
        observe(row, listener + L_SESSION_HISTOGRAM, SESSION_BUCKETS, max(0, now - lost.end.begun) / _NANOSECONDS)
        if tells:
            self._line(lost.series, lost.end._replace(ended=now), now)

    def _line(self, series: int, end: End, now: int) -> None:
        label = self._label(series)
        head = describe(endpoint(*end.client), label.listener, Transport.TCP, Detected.SKIPPED, None, label.route)
        self._log.session(
            f"{head} target={label.target} bytes_in={end.bytes_in} bytes_out={end.bytes_out} detect_ms=0.0"
            f" connect_ms={(end.connected - end.begun) / 1e6:.1f} duration_ms={(end.ended - end.begun) / 1e6:.1f}"
            f" reason={end.reason.value}",
            age=(now - end.ended) / _NANOSECONDS,
        )

    def flush(self) -> None:
        """Write what was collected, and count what found no room."""
        self._log.flush()
        self._row[Cell.ACCESS_LINES_DROPPED] += self._log.dropped - self._dropped
        self._dropped = self._log.dropped
