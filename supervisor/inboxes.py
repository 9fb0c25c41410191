"""The inboxes of connections that workers hand to each other, kept as long as their seats exist.

The supervisor has both ends of each. What waits for a worker that dies waits for the one that follows it in the seat;
what a worker that left did not take goes to another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from rpxy_l4.control import OtherInboxes, OwnInbox
from rpxy_l4.net.channel import DESCRIPTORS_AT_A_TIME
from rpxy_l4.net.connection_inbox import ConnectionInbox, InboxEntry, pair
from rpxy_l4.supervisor.children import Child
from rpxy_l4.supervisor.policy import Seat

_LOG: Final = logging.getLogger(__name__)


class _Held(NamedTuple):
    seat: Seat
    inbox: ConnectionInbox
    entry: InboxEntry

    def close(self) -> None:
        self.inbox.close()
        self.entry.close()


class Inboxes:
    """One for each seat that ever was to receive, while that seat exists."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._held: dict[int, _Held] = {}

    def update(
        self, seats: Mapping[int, Seat], receiving: Collection[int], told: Mapping[int, Child], *, wanted: bool
    ) -> bool:
        """Bring inboxes and workers in line with how things are; False: something is left to do, try again in a while.

        ``receiving`` are the numbers of those that may be given connections, ``told`` the workers that messages can be
        sent to. Not ``wanted``: nobody hands anything over any more, and what is on its way is served.
        """
        for number in [number for number, held in self._held.items() if seats.get(number) is not held.seat]:
            self._pass_on(number)
        done = True
        if wanted:
            try:
                for number in receiving:
                    if number not in self._held:
                        self._held[number] = _Held(seats[number], *pair())
            except OSError as error:
                _LOG.warning("no inbox for connections from other workers: %s", error.strerror)
                done = False
        for number, child in told.items():
            held = self._held.get(number)
            if wanted and held is not None and child.inbox is None:
                ends = (held.inbox.socket.fileno(), held.entry.socket.fileno())
                if child.send(OwnInbox(), ends):
                    child.inbox = held.entry
                else:
                    done = False
        open_to_all = self._open(receiving, told) if wanted else {}
        for number, child in told.items():
            others = {other: entry for other, entry in open_to_all.items() if other != number}
            if child.colleagues != others:
                done = _tell(child, others) and done
        return done

    def relieve(self, living: Collection[int]) -> None:
        """Give to others what waits for workers that are not among the living, and let go of their inboxes."""
        for number in [number for number in self._held if number not in living]:
            self._pass_on(number)

    def _open(self, receiving: Collection[int], told: Mapping[int, Child]) -> dict[int, InboxEntry]:
        """Return the inboxes that are read, or will be when somebody sits in the seat."""
        entries = {number: self._held[number].entry for number in receiving if number in self._held}
        return {number: entry for number, entry in entries.items() if number not in told or told[number].inbox is entry}

    def close_all(self) -> None:
        """Let go of everything."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _pass_on(self, number: int) -> None:
        """Let go of an inbox, and give what is in it to others."""
        left = self._held.pop(number)
        left.inbox.stop()
        passed = lost = 0
        while True:
            try:
                connection, client = left.inbox.receive()
            except BlockingIOError:
                break
            except OSError:
                lost += 1
                continue
            least_full = sorted((held.entry for held in self._held.values()), key=InboxEntry.waiting)
            if any(entry.send(connection, client) for entry in least_full):
                passed += 1
            else:
                lost += 1
            os.close(connection)
        left.close()
        if passed or lost:
            text = "connections handed to a worker that left: %d passed on to another, %d lost"
            _LOG.warning(text, passed, lost)


def _tell(child: Child, others: Mapping[int, InboxEntry]) -> bool:
    """Tell a worker to whom it may hand connections; False when that cannot be delivered."""
    numbers = frozenset(others)
    new = [number for number, entry in others.items() if child.colleagues.get(number) is not entry]
    for start in range(0, max(1, len(new)), DESCRIPTORS_AT_A_TIME):
        piece: Sequence[int] = new[start : start + DESCRIPTORS_AT_A_TIME]
        message = OtherInboxes(numbers, tuple(piece))
        if not child.send(message, [others[number].socket.fileno() for number in piece]):
            return False
    child.colleagues = others
    return True
