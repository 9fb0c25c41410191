"""Deadlines of many items: a table for those that move often, and queues for those that are mostly taken back."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, TypeVar

T = TypeVar("T")


class TimerTable(Generic[T]):
    """Items by deadline, in buckets of ``granularity`` seconds.

    There is no removal and no postponing: both would cost more than they save where every packet moves a deadline.
    Instead the owner of an item keeps its present deadline in the item itself, for the price of one assignment, and
    looks at it when the item comes out of ``expire``: in the past, act; in the future, ``add`` the item again; gone,
    forget it. So an item should be in a table once, and its owner must not bring a deadline nearer than the one it
    was added with.
    """

    __slots__ = ("_buckets", "_granularity", "_order")

    def __init__(self, granularity: float) -> None:
        """Make an empty table. ``granularity``, in seconds, is how late an item may come out."""
        self._granularity = granularity
        self._buckets: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, deadline: float, item: T) -> None:
        """Hold ``item`` until ``deadline``, a finite time on the clock that ``expire`` is given. May be in the past."""
        key = math.ceil(deadline / self._granularity)
        if key * self._granularity < deadline:  # the division was rounded down
            key += 1
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = [item]
            heapq.heappush(self._order, key)
        else:
            bucket.append(item)

    def expire(self, now: float) -> list[T]:
        """Take out every item whose bucket is due, the earliest bucket first, in the order of adding within one.

        Never an item before its deadline; at most one granularity after it, if asked that often.
        """
        due: list[T] = []
        while self._order and self._order[0] * self._granularity <= now:
            due += self._buckets.pop(heapq.heappop(self._order))
        return due

    def next_deadline(self) -> float | None:
        """When ``expire`` will next have something to give; None for an empty table."""
        return self._order[0] * self._granularity if self._order else None


class WaitingLines(Generic[T]):
    """Items that wait for one of a few durations, and nearly always leave before it is over.

    One line for each duration, in the order of adding, which is the order of deadlines; so all costs are constant, and
    an item that left is not kept alive. An item may be in one line at a time.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._lines: dict[float, dict[T, float]] = {}

    def add(self, now: float, duration: float, item: T) -> None:
        """Let ``item`` wait for ``duration`` seconds from ``now``, which must not be before that of an earlier call."""
        line = self._lines.get(duration)
        if line is None:
            line = self._lines[duration] = {}
        line[item] = now + duration

    def discard(self, duration: float, item: T) -> None:
        """Let ``item`` leave the line of ``duration``; harmless when it is not there."""
        line = self._lines.get(duration)
        if line is not None:
            line.pop(item, None)

    def expire(self, now: float) -> list[T]:
        """Take out every item whose time is over, and forget durations that nobody waits for."""
        due: list[T] = []
        for duration, line in list(self._lines.items()):
            over = list(itertools.takewhile(lambda item: line[item] <= now, line))  # noqa: B023  used up at once
            for item in over:
                del line[item]
            due += over
            if not line:
                del self._lines[duration]
        return due

    def next_deadline(self) -> float | None:
        """When ``expire`` will next have something to give; None when nobody waits."""
        return min((line[next(iter(line))] for line in self._lines.values() if line), default=None)
