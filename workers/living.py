"""Who else serves the listener just now, from the rows that all workers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpxy_l4.metrics.layout import Cell

# Workers come and go seldom, and there may be hundreds of rows to look at.
_FRESH_SECONDS: Final = 0.1


class Living:
    """The workers that live, beside this one."""

    def __init__(self, rows: Sequence[memoryview], own: int) -> None:
        """``rows`` are those that workers can have; this worker's is number ``own``."""
        self._rows = [row for number, row in enumerate(rows) if number != own]
        self._at = -1.0
        self._others: list[memoryview] = []

    def others(self, now: float) -> Sequence[memoryview]:
        """Return the rows of the others, who lived at most a moment before ``now``, the time of a batch."""
        if now - self._at > _FRESH_SECONDS:
            self._at = now
            # Cleared when a worker has died.
            self._others = [row for row in self._rows if row[Cell.HEARTBEAT]]
        return self._others

    def count(self, now: float) -> int:
        """Return how many workers there are, this one included."""
        return 1 + len(self.others(now))
