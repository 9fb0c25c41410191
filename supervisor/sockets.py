"""The listening sockets of all slots. The supervisor keeps every one as long as its address is in the configuration.

A worker gets copies. When it dies, what waits in its accept queue waits for its replacement, and the set of sockets
that the kernel spreads UDP flows over does not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from rpxy_l4.net.listen import BindError, ListeningSocket, open_group
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  compared, not bound


class ListeningSockets:
    """One socket per bind and slot."""

    def __init__(self, slots: int) -> None:
        """Hold nothing yet."""
        self._slots = slots
        self._groups: dict[Bind, list[ListeningSocket]] = {}
        self._retired: dict[Bind, float] = {}
        """Until when workers may still have UDP sockets for what is no longer held."""

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

    def set_backlog(self, backlog: int) -> None:
        """Change the length of the accept queues of all TCP sockets; what waits in them stays."""
        for bind, group in self._groups.items():
            if bind.transport is Transport.TCP:
                for held in group:
                    held.listen(backlog)

    def of_slot(self, slot: int, binds: Sequence[Bind]) -> list[int]:
        """Return the descriptors of a slot for these binds, in their order. They stay ours."""
        return [self._groups[bind][slot].fileno() for bind in binds]

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
