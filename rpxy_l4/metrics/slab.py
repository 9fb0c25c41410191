"""Rows of 64-bit counters in shared memory. Each has one writer.

Row *n* is worker *n*'s, and the supervisor's while no such worker lives. Behind them are two more: what the supervisor
makes up for, and where the admin process beats.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Sequence

from rpxy_l4.metrics.layout import MICROSECONDS, ROW_CELLS

_CELL_BYTES = 8


class Slab:
    """Shared memory, made before the first fork.

    An aligned 8-byte store is never seen half done, so readers take no lock as long as each cell has one writer.
    """

    def __init__(self, rows: int, cells: int = ROW_CELLS, memory: memoryview | None = None) -> None:
        """Use ``memory``, of :meth:`size` bytes, with what stands in it; None: anonymous memory full of zeros."""
        self.rows = rows
        self._cells = cells
        if memory is None:
            # The memoryview keeps the mapping alive. Pages that are never written take no memory.
            memory = memoryview(mmap.mmap(-1, self.size(rows, cells)))
        self._all = memory.cast("Q")

    @staticmethod
    def size(rows: int, cells: int = ROW_CELLS) -> int:
        """Return how many bytes so many rows take."""
        return rows * cells * _CELL_BYTES

    def row(self, number: int) -> memoryview:
        """Return the cells of a row, writable in place (format ``Q``)."""
        if not 0 <= number < self.rows:
            msg = f"no row {number} in a slab of {self.rows}"
            raise IndexError(msg)
        return self._all[number * self._cells : (number + 1) * self._cells]


def observe(cells: memoryview, offset: int, bounds: Sequence[float], seconds: float) -> None:
    """Add one observation, which must not be negative, to the histogram at ``offset``."""
    cells[offset + bisect.bisect_left(bounds, seconds)] += 1
    cells[offset + len(bounds) + 1] += int(seconds * MICROSECONDS)
