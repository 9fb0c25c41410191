"""UDP flows whose clients may not exist, and which therefore give way to new ones where there is no room for all."""

from __future__ import annotations

from typing import Protocol

from rpxy_l4.metrics.layout import Cell
from rpxy_l4.workers.living import Living


class Yielding(Protocol):
    """Who may have to make room for others."""

    def give_way(self) -> None:
        """Close, count that, and leave the table of those who may give way."""


class Unconfirmed:
    """Those of this worker, oldest first. Their number stands in the worker's row, for the others to see."""

    def __init__(self, row: memoryview, living: Living) -> None:
        """Write to ``row``, this worker's."""
        self._row = row
        self._living = living
        self._flows: dict[Yielding, None] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, flow: Yielding) -> bool:
        return flow in self._flows

    def add(self, flow: Yielding) -> None:
        """Enter a flow as the youngest, also one that is there already."""
        self._flows.pop(flow, None)
        self._flows[flow] = None
        self._row[Cell.UDP_UNCONFIRMED] = len(self._flows)

    def discard(self, flow: Yielding) -> None:
        """Forget a flow that is confirmed or closed; harmless when it is not there."""
        if self._flows.pop(flow, self) is None:
            self._row[Cell.UDP_UNCONFIRMED] = len(self._flows)

    def make_way(self) -> bool:
        """Let the oldest flow give way; False when there is none."""
        for oldest in self._flows:
            oldest.give_way()
            return True
        return False

    def share(self, room: int, now: float) -> int:
        """Return how many flows of the workers that live each may have, so that all have the same.

        ``room`` is how many more there could be, negative where there are too many already. ``now`` is the time of a
        batch. A worker that was quiet when a flood took all places gets its share at once, and the others give theirs
        up with the next new flows of their own.
        """
        others = self._living.others(now)
        unconfirmed = len(self._flows) + sum(row[Cell.UDP_UNCONFIRMED] for row in others)
        return max(0, room + unconfirmed) // (1 + len(others))
