"""The counters of all slots added up, for whoever shows them. Pure.

The tables are read by columns, one cell of every series at a time, because the order matters: a worker counts
``opened`` before ``closed``, so whoever reads every ``closed`` first never sees more sessions end than begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import (
    LISTENER_CELLS,
    MICROSECONDS,
    T_CLOSED,
    T_OPENED,
    TARGET_CELLS,
    Cell,
    Directory,
    listener_offset,
    target_offset,
)

Column = list[int]
"""One cell of each series, by the index of the series."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over slots. ``targets[T_BYTES_IN][series]`` is the value of one cell of one block."""

    listeners: tuple[Column, ...]
    targets: tuple[Column, ...]
    open_sessions: Column
    """By target series; never negative."""
    access_lines_dropped: int
    event_lines_dropped: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """What Prometheus calls a histogram."""

    cumulative: tuple[int, ...]
    """Events at or below each bound; one more element counts all of them."""
    seconds: float
    """Sum of the durations."""


def read_totals(rows: Sequence[memoryview], directory: Directory) -> Totals:
    """Add up the rows of all slots, at least one, for the series of the directory."""
    targets = _read(
        rows,
        start=target_offset(0),
        stride=TARGET_CELLS,
        series=len(directory.targets),
        first=range(T_CLOSED, T_CLOSED + len(Reason)),
    )
    closed = targets[T_CLOSED : T_CLOSED + len(Reason)]
    return Totals(
        listeners=_read(rows, start=listener_offset(0), stride=LISTENER_CELLS, series=len(directory.listeners)),
        targets=targets,
        open_sessions=[
            opened - sum(ended) for opened, ended in zip(targets[T_OPENED], zip(*closed, strict=True), strict=True)
        ],
        access_lines_dropped=sum(row[Cell.ACCESS_LINES_DROPPED] for row in rows),
        event_lines_dropped=sum(row[Cell.EVENT_LINES_DROPPED] for row in rows),
    )


def _read(
    rows: Sequence[memoryview], *, start: int, stride: int, series: int, first: range = range(0)
) -> tuple[Column, ...]:
    columns: dict[int, Column] = {}
    end = start + stride * series
    for cell in (*first, *(cell for cell in range(stride) if cell not in first)):
        # Slices, because 16 slots with thousands of series are to be read in milliseconds.
        slices = [row[start + cell : end : stride].tolist() for row in rows]
        columns[cell] = [sum(cells) for cells in zip(*slices, strict=True)]
    return tuple(columns[cell] for cell in range(stride))


def worker_sessions(row: memoryview) -> tuple[int, int]:
    """Return the open TCP sessions and UDP flows of one slot, undecided ones included."""
    tcp_closed = row[Cell.TCP_CLOSED]
    udp_closed = row[Cell.UDP_CLOSED]
    return row[Cell.TCP_OPENED] - tcp_closed, row[Cell.UDP_OPENED] - udp_closed


def histogram(cells: Sequence[int]) -> Histogram:
    """Read a histogram's cells: events per bucket, those above the last bound, the sum in microseconds."""
    counted = 0
    cumulative = []
    for events in cells[:-1]:
        counted += events
        cumulative.append(counted)
    return Histogram(tuple(cumulative), cells[-1] / MICROSECONDS)
