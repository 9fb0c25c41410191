"""The books of workers that died: what they held is counted as lost, so that nothing stays open for ever. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import REASON_INDEX, T_CLOSED, T_GIVEN, T_OPENED, T_TAKEN, Cell, target_offset

_REASONS: Final = len(Reason)
_LOST: Final = T_CLOSED + REASON_INDEX[Reason.WORKER_LOST]


def left_open(row: memoryview, series: int) -> int:
    """Return how many sessions of a target series are open in the worker of a row; never negative."""
    start = target_offset(series)
    gone = sum(row[start + T_CLOSED : start + T_CLOSED + _REASONS]) + row[start + T_GIVEN]
    # A worker counts what comes first.
    return row[start + T_OPENED] + row[start + T_TAKEN] - gone


def settle(row: memoryview, targets: Iterable[int]) -> int:
    """Close in the row of a dead worker what it left open; return how many sessions with a target were lost.

    ``targets`` are the target series that may have been used. Only for the row's new owner, while no worker writes
    there. Counters only grow; what describes a living worker is cleared.
    """
    lost = 0
    for series in targets:
        left = left_open(row, series)
        row[target_offset(series) + _LOST] += left
        lost += left
    row[Cell.TCP_CLOSED] = row[Cell.TCP_OPENED]
    row[Cell.UDP_CLOSED] = row[Cell.UDP_OPENED]
    for cell in (
        Cell.HEARTBEAT,
        Cell.GENERATION,
        Cell.LOOP_LAG,
        Cell.DRAINING,
        Cell.UDP_UNCONFIRMED,
        Cell.UDP_IN_KERNEL,
    ):
        row[cell] = 0
    return lost


def balance(rows: Sequence[memoryview], own: memoryview, targets: Iterable[int]) -> int:
    """Make up for flows that a worker gave and none took, or took though who gave them was counted as having lost them.

    ``rows`` are those of all workers, ``own`` is one that only the caller writes to. Only while no flow is on its way,
    and after the dead were settled. Returns how many were lost.
    """
    lost = 0
    for series in targets:
        start = target_offset(series)
        missing = sum(row[start + T_GIVEN] - row[start + T_TAKEN] for row in (*rows, own))
        if missing > 0:
            own[start + T_TAKEN] += missing
            own[start + _LOST] += missing
            lost += missing
        elif missing < 0:
            own[start + T_GIVEN] -= missing
            own[start + T_OPENED] -= missing
    return lost
