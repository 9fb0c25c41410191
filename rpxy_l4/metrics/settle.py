"""The books of a worker that died: what it held is counted as lost, so that nothing stays open for ever. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import REASON_INDEX, T_CLOSED, T_OPENED, Cell, target_offset

_REASONS: Final = len(Reason)
_LOST: Final = T_CLOSED + REASON_INDEX[Reason.WORKER_LOST]


def settle(row: memoryview, targets: Iterable[int]) -> int:
    """Close in the row of a dead worker what it left open; return how many sessions with a target were lost.

    ``targets`` are the target series that may have been used. Only for the row's new owner, while no worker fills the
    slot. Counters only grow; what describes a living worker is cleared.
    """
    lost = 0
    for series in targets:
        start = target_offset(series)
        closed = sum(row[start + T_CLOSED : start + T_CLOSED + _REASONS])
        # A worker counts ``opened`` first, so this is never negative.
        left = row[start + T_OPENED] - closed
        row[start + _LOST] += left
        lost += left
    row[Cell.TCP_CLOSED] = row[Cell.TCP_OPENED]
    row[Cell.UDP_CLOSED] = row[Cell.UDP_OPENED]
    for cell in (Cell.HEARTBEAT, Cell.GENERATION, Cell.LOOP_LAG, Cell.DRAINING):
        row[cell] = 0
    return lost
