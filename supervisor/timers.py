"""Calls that are to be made later. Pure: the time is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

Call = Callable[[], None]


class Timers:
    """At most one appointment for each call. Times are those of one clock, in seconds."""

    def __init__(self) -> None:
        """Nothing is to be done."""
        self._calls: dict[Call, float] = {}

    def set(self, call: Call, at: float) -> None:
        """Have it made at this time, in place of an earlier appointment for it."""
        self._calls[call] = at

    def cancel(self, call: Call) -> None:
        """Forget its appointment; no fault when there is none."""
        self._calls.pop(call, None)

    def due(self, now: float) -> Iterator[Call]:
        """Take out and yield what is due, the earliest first.

        Each is looked at when its turn comes, so that one call may cancel or put off another that was due with it. What
        is set meanwhile is left for the next time.
        """
        for call, at in sorted(self._calls.items(), key=lambda item: item[1]):
            if at <= now and self._calls.get(call) == at:
                del self._calls[call]
                yield call

    @property
    def next(self) -> float:
        """When something will be due; infinite when there is nothing."""
        return min(self._calls.values(), default=math.inf)
