"""Targets that a reload took out of the configuration, and when the sessions that still use them are to end."""

from __future__ import annotations

import math

from rpxy_l4.metrics.settle import left_open


class Removed:
    """Those of one worker, by their series in the counters."""

    def __init__(self, row: memoryview) -> None:
        """``row`` is the worker's: it says whether there are sessions to look for."""
        self._row = row
        self._served: frozenset[int] = frozenset()
        self._ends: dict[int, float] = {}

    def apply(self, served: frozenset[int], until: float) -> None:
        """Note what a configuration serves. Sessions of what it does not have time until then; infinity: all they want.

        Those that had less time already get no more of it, and what has come back has no end any more.
        """
        gone = (self._served | self._ends.keys()) - served
        self._ends = {series: min(self._ends.get(series, until), until) for series in gone}
        if until == math.inf:
            self._ends = dict.fromkeys(gone, math.inf)
        self._served = served

    def take_in(self, series: int, until: float) -> None:
        """Note that a session has come from another worker, whose target may have left before this one began."""
        if series not in self._served:
            self._ends.setdefault(series, until)

    def due(self, now: float) -> frozenset[int]:
        """Return the series of which sessions are open whose time is over."""
        return frozenset(series for series, end in self._ends.items() if end <= now and left_open(self._row, series))
