"""The listening sockets of all slots. The supervisor keeps every one as long as its address is in the configuration.

A worker gets copies. When it dies, what waits in its accept queue waits for its replacement, and the set of sockets
that the kernel spreads UDP flows over does not change.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from rpxy_l4.control import Place
from rpxy_l4.net.listen import BindError, ListeningSocket, adopt_group, open_group
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport

_LOG: Final = logging.getLogger(__name__)

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  compared, not bound


class ListeningSockets:
    """One socket per bind and slot."""

    def __init__(self, slots: int) -> None:
        """Hold nothing yet."""
        self._slots = slots
        self._groups: dict[Bind, list[ListeningSocket]] = {}
        self._retired: dict[Bind, float] = {}

    @property
    def binds(self) -> frozenset[Bind]:
        """What is held."""
        return frozenset(self._groups)

    def open(self, binds: Iterable[Bind], backlog: int, *, now: float = 0.0) -> None:
        """Listen on these as well: on all of them, or on none and raise BindError. ``now`` is as in ``close``."""
        self._retired = {bind: until for bind, until in self._retired.items() if until > now}
        opened: dict[Bind, list[ListeningSocket]] = {}
        try:
            for bind in binds:
                opened[bind] = self._open(bind, backlog)
        except BindError:
            for group in opened.values():
                _close(group)
            raise
        self._groups |= opened

    def adopt(self, offered: Iterable[tuple[Bind, int, int, int]], wanted: Collection[Bind]) -> list[tuple[Bind, int]]:
        """Take over sockets that listen already. All become ours.

        Of each, in any order: the bind, the slot, how many slots there were, and the descriptor.

        A bind is held afterwards when it is wanted and was offered as a whole: for every slot, and for no other, one
        socket of its own that listens there. Any other group is closed and logged; returned are its binds and slots.
        Those must be closed elsewhere, too, before ``open``: as long as anybody has a copy, the address is taken, and
        the kernel goes on to give it a part of the traffic. For the begin, when nothing is held.
        """
        groups: dict[Bind, list[tuple[int, int]]] = defaultdict(list)
        totals: dict[Bind, set[int]] = defaultdict(set)
        for bind, slot, slots, descriptor in offered:
            groups[bind].append((slot, descriptor))
            totals[bind].add(slots)
        refused: list[tuple[Bind, int]] = []
        for bind, group in sorted(groups.items()):
            numbers, descriptors = zip(*sorted(group), strict=True)
            try:
                self._groups[bind] = self._adopt(bind, numbers, descriptors, totals[bind], wanted=bind in wanted)
            except BindError as error:
                _LOG.warning("closing %d sockets that were taken over: %s", len(group), error)
                refused += [(bind, slot) for slot in sorted(set(numbers))]
        return refused

    def _adopt(
        self, bind: Bind, slots: Sequence[int], descriptors: Sequence[int], totals: Collection[int], *, wanted: bool
    ) -> list[ListeningSocket]:
        held = adopt_group(bind, descriptors)
        if wanted and list(slots) == list(range(self._slots)) and totals == {self._slots}:
            return held
        _close(held)
        if not wanted:
            raise BindError(bind, OSError("it is not in the configuration"))
        if totals != {self._slots}:
            raise BindError(bind, OSError(f"of {', '.join(map(str, sorted(totals)))} slots, not of {self._slots}"))
        raise BindError(bind, OSError(f"for slots {', '.join(map(str, slots))}, not one for each of {self._slots}"))

    def _open(self, bind: Bind, backlog: int) -> list[ListeningSocket]:
        try:
            return open_group(bind, self._slots, backlog, exclusive=True)
        except BindError:
            # Perhaps it is ourselves who are in the way: with an address that overlaps this one (127.0.0.1 and 0.0.0.0
            # while a listener moves), or in workers that still serve UDP flows of an address that had left. Only then:
            # otherwise a second instance would get half of the traffic, and nobody would know.
            if not any(_overlap(bind, ours) for ours in (*self._groups, *self._retired)):
                raise
            return open_group(bind, self._slots, backlog, exclusive=False)

    @property
    def retired(self) -> dict[Bind, float]:
        """Until when workers may still have UDP sockets for what is no longer held."""
        return dict(self._retired)

    def take_over(self, groups: Mapping[Bind, Sequence[int]], retired: Mapping[Bind, float]) -> None:
        """Hold what the program before had opened: of each bind the descriptors of all slots, in their order.

        ``retired`` is what that had no longer held.
        """
        self._retired = dict(retired)
        for bind, descriptors in groups.items():
            self._groups[bind] = [ListeningSocket(fileno=descriptor) for descriptor in descriptors]

    def all_descriptors(self) -> dict[Bind, list[int]]:
        """Return the descriptors of everything that is held, by slot. They stay ours."""
        return {bind: [held.fileno() for held in group] for bind, group in self._groups.items()}

    def set_backlog(self, backlog: int) -> None:
        """Change the length of the accept queues of all TCP sockets; what waits in them stays."""
        for bind, group in self._groups.items():
            if bind.transport is Transport.TCP:
                for held in group:
                    held.listen(backlog)

    def descriptors(self, places: Iterable[Place]) -> list[int]:
        """Return the descriptors for these places, in their order. They stay ours."""
        return [self._groups[place.bind][place.slot].fileno() for place in places]

    def copy(self, bind: Bind) -> ListeningSocket:
        """Return a socket object of its own for the first slot's socket; the caller owns it."""
        return self._groups[bind][0].dup()

    def close(self, binds: Iterable[Bind], *, until: float = -math.inf) -> None:
        """Let go of these. ``until``: when workers have closed their copies of UDP sockets at the latest."""
        for bind in binds:
            _close(self._groups.pop(bind))
            if bind.transport is Transport.UDP:
                self._retired[bind] = until

    def close_all(self) -> None:
        """Let go of everything."""
        self.close(self.binds)


def _overlap(one: Bind, other: Bind) -> bool:
    """Tell whether the kernel lets only those share the two addresses who agree to."""
    if (one.transport, one.port, ":" in one.host) != (other.transport, other.port, ":" in other.host):
        return False
    return one.host == other.host or not {one.host, other.host}.isdisjoint(_WILDCARDS)


def _close(group: Iterable[ListeningSocket]) -> None:
    for held in group:
        held.close()
