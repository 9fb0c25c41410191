"""Connections that one worker accepts and another serves, so that long sessions are spread evenly.

The kernel picks the listening socket by a hash of addresses and ports, not by what a worker has to do. Who has
clearly more sessions than another hands a connection on before anything is read from it; see ``net.connection_inbox``
for the way it takes. What is handed over is served as if it had been accepted there.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from rpxy_l4.addresses import SocketAddress
from rpxy_l4.metrics.layout import Cell
from rpxy_l4.net.connection_inbox import InboxEntry

_MARGIN: Final = 2
"""Sessions that another one must have less: with one, short connections of an idle machine would go back and forth."""

# Looking at a colleague takes a microsecond. So all looks together take a hundredth of the time at most, or, where more
# connections come, a microsecond for each of these: in a batch of many, others hand over and accept as well.
_FRESH_SECONDS_EACH: Final = 100e-6
# A worker beats once a second. One that does not is stopped or hangs, and what it is given waits.
_SILENT_NANOSECONDS: Final = 3_000_000_000
_NANOSECONDS: Final = 1_000_000_000


class Loads:
    """How busy the others are: what was seen, and what they were given since. Pure.

    Among equals the first one is preferred, so that workers which begin with different ones do not all choose the same.
    """

    def __init__(self, loads: Iterable[tuple[int, int]]) -> None:
        """Know the sessions and the number of each."""
        self._heap = [(sessions, order, number) for order, (sessions, number) in enumerate(loads)]
        heapq.heapify(self._heap)

    def pick(self, own: int) -> int | None:
        """Return who is to serve a connection of one that has ``own`` sessions; None: that one itself."""
        if self._heap and own - self._heap[0][0] >= _MARGIN:
            return self._heap[0][2]
        return None

    def give(self) -> None:
        """Count a connection for whom ``pick`` returned."""
        sessions, order, number = self._heap[0]
        heapq.heapreplace(self._heap, (sessions + 1, order, number))

    def drop(self) -> None:
        """Pick no more whom ``pick`` returned."""
        heapq.heappop(self._heap)


class _Colleague(NamedTuple):
    row: memoryview
    entry: InboxEntry


class Colleagues:
    """The workers that connections may be handed to. Owns the ways into their inboxes."""

    def __init__(self, rows: Sequence[memoryview], own: int) -> None:
        """Know nobody. This worker's row is number ``own``."""
        self._rows = rows
        self._own = own
        self._row = rows[own]
        self.own_inbox: InboxEntry | None = None
        """The way into this worker's own inbox, to know what waits there; stays its owner's."""
        self._known: dict[int, _Colleague] = {}
        self._at = -1.0
        self._decisions = 0
        """Since the last look."""
        self._own_waiting = 0
        self._loads = Loads(())
        self._under_way = 0

    def __len__(self) -> int:
        return len(self._known)

    def change(self, numbers: frozenset[int], new: Mapping[int, InboxEntry]) -> None:
        """Know these workers from now on; ``new`` are ways that were not known, and are owned from now on."""
        for number in [number for number in self._known if number in new or number not in numbers]:
            self._known.pop(number).entry.close()
        for number, entry in new.items():
            self._known[number] = _Colleague(self._rows[number], entry)
        # The one behind this worker first, so that each has another order.
        behind = sorted(self._known, key=lambda number: (number < self._own, number))
        self._known = {number: self._known[number] for number in behind}
        self._at = -1.0

    def hand(self, connection: int, client: SocketAddress, now: float) -> bool:
        """Hand a connection that was just accepted to somebody with clearly fewer sessions.

        Returns True when that was done; the descriptor is closed then. ``now`` is the time of a batch.
        """
        row = self._row
        open_here = row[Cell.TCP_OPENED] - row[Cell.TCP_CLOSED]
        if open_here + self._own_waiting < _MARGIN:
            return False
        self._decisions += 1
        self._look(now)
        own = open_here + self._own_waiting
        while (number := self._loads.pick(own)) is not None:
            if self._known[number].entry.send(connection, client):
                self._loads.give()
                self._under_way += 1
                row[Cell.TCP_HANDED] += 1
                os.close(connection)
                return True
            self._loads.drop()
        return False

    def under_way(self, now: float) -> int:
        """Return how many connections wait in inboxes, rather too many than too few. ``now`` is the time of a batch."""
        self._look(now)
        return self._under_way

    def _look(self, now: float) -> None:
        """See how busy they are, unless that was seen a moment ago."""
        count = len(self._known)
        if now - self._at <= _FRESH_SECONDS_EACH * count and self._decisions <= count:
            return
        self._at = now
        self._decisions = 0
        alive_since = int(now * _NANOSECONDS) - _SILENT_NANOSECONDS
        self._own_waiting = 0 if self.own_inbox is None else self.own_inbox.waiting()
        self._under_way, loads = self._own_waiting, []
        for number, (row, entry) in self._known.items():
            waiting = entry.waiting()
            self._under_way += waiting
            if row[Cell.HEARTBEAT] > alive_since and not row[Cell.DRAINING]:
                loads.append((row[Cell.TCP_OPENED] - row[Cell.TCP_CLOSED] + waiting, number))
        self._loads = Loads(loads)
