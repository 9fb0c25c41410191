"""Rows of 64-bit counters in memory shared by fork. Row *n* has one writer: slot *n*, or the admin process the last."""

from __future__ import annotations

import mmap

from rpxy_l4.metrics.layout import ROW_CELLS

_CELL_BYTES = 8


class Slab:
    """Anonymous shared memory, made before the first fork: nothing to name, nothing to clean up.

    An aligned 8-byte store is never seen half done, so readers take no lock as long as each cell has one writer.
    """

    def __init__(self, rows: int, cells: int = ROW_CELLS) -> None:
        """Reserve ``rows`` rows of zeros. Pages that are never written take no memory."""
        self.rows = rows
        self._cells = cells
        # The memoryview keeps the mapping alive.
        self._all = memoryview(mmap.mmap(-1, rows * cells * _CELL_BYTES)).cast("Q")

    def row(self, slot: int) -> memoryview:
        """Return the cells of a slot, writable in place (format ``Q``)."""
        if not 0 <= slot < self.rows:
            msg = f"no row {slot} in a slab of {self.rows}"
            raise IndexError(msg)
        return self._all[slot * self._cells : (slot + 1) * self._cells]
