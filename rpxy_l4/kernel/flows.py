"""Flows in the kernel path: the workers' part.

A flow that is put in has an entry for each direction in the map of flows, and a pair of counters. The pairs of a slot
are its worker's to give out. Whatever becomes of a packet that is not forwarded there, it arrives at the sockets of the
flow; so an entry may be taken out at any time.

What a counter has counted, how much of that the program's own counters have, and for which target, stands in shared
memory beside it: nothing is lost with the worker that counted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Final, NamedTuple, Protocol

from rpxy_l4.kernel.bpf import Map
from rpxy_l4.kernel.layout import (
    COUNTER_BYTES,
    COUNTER_WORDS,
    LAST,
    MAPS,
    PASSED,
    SERIES,
    TOLD,
    Address,
    amount_of,
    counter_of,
    flow_key,
    flow_value,
)
from rpxy_l4.kernel.netlink import Policies
from rpxy_l4.kernel.routes import Passage, Routes

_UDP: Final = 17
_NANOSECONDS: Final = 1_000_000_000
_BUSY_SECONDS: Final = 1.0
_MAKE_ROOM_FOR: Final = 8
"""Which part of a full slot is made free at a time."""


class Ends(NamedTuple):
    """The four addresses of a flow."""

    client: Address
    local: Address
    """The one of ours that the client uses."""
    source: Address
    """The one of ours that the target sees."""
    target: Address


class Amount(NamedTuple):
    """What has passed."""

    packets: int
    bytes: int


Passages = tuple[Passage, Passage]
Tell = Callable[[int, "Amount", "Amount"], None]
"""Called with a target's series, and what came from clients and from targets."""


class Owner(Protocol):
    """Whose flow it is."""

    def leave_kernel(self) -> None:
        """Take it out."""

    def reconsider(self) -> None:
        """Put it in again, if that is still wanted."""

    def count_kernel(self, from_client: Amount, from_target: Amount) -> None:
        """Count what has passed."""


class Entry:
    """A flow in the kernel path."""

    __slots__ = ("counter", "ends", "keys", "owner", "passages", "slot")

    def __init__(self, owner: Owner, slot: int, counter: int, ends: Ends, passages: Passages) -> None:
        """Of a slot, with the pair of counters that begins with ``counter``."""
        self.owner = owner
        self.slot = slot
        self.counter = counter
        self.ends = ends
        self.passages = passages
        """To the target and to the client."""
        self.keys = (flow_key(ends.client, ends.local, _UDP), flow_key(ends.target, ends.source, _UDP))
        """Of what clients and of what targets send."""


class KernelFlows:
    """The flows of a worker in the kernel path. Owns the descriptor of a map, and sockets."""

    def __init__(self, token: bytes, slots: int, capacity: int, flows: int, counters: int) -> None:
        """Use the maps of the kernel path ``token``, with room for ``capacity`` flows of ``slots`` slots.

        Owns the descriptors ``flows`` and ``counters``, unless it raises OSError.
        """
        self.token = token
        memory = mmap.mmap(counters, 2 * capacity * COUNTER_BYTES)
        with contextlib.ExitStack() as stack:
            self._routes = stack.enter_context(closing(Routes()))
            self._policies = stack.enter_context(closing(Policies()))
            # Before the first flow comes in, not a second later.
            barred = self._policies.exist()
            stack.pop_all()
        os.close(counters)  # the mapping stays
        self._flows = Map(flows, MAPS["flows"])
        self._of_slot = capacity // slots
        self._memory: memoryview = memoryview(memory).cast("Q")
        self._free: dict[int, list[int]] = {}
        """By slot: pairs that no flow has."""
        self._entries: dict[int, Entry] = {}
        """By counter, in the order in which they came."""
        self._resting: list[int] = []
        """Pairs whose flows have been taken out. A packet that was under way may still be counted there."""
        self._crowded: set[int] = set()
        """Slots that have been found full since a while."""
        self.is_barred = barred
        """Whether nothing may be in: this host has policies of IPsec, which packets would miss."""
        self._suspects: deque[Entry] = deque()
        """Flows whose way may have changed."""

    def __len__(self) -> int:
        return len(self._entries)

    # What is put in and taken out

    def install(self, owner: Owner, slot: int, ends: Ends, series: int) -> Entry | None:
        """Put a flow in whose target has this series of the counters; None when there is no way or no room for it."""
        # Packets stay of one family, and where a link-local address is, an interface would have to be beside it.
        if ends.client.family != ends.target.family or any(end.is_link_local for end in ends):
            return None
        passages, free = self._passages(ends), self._free.get(slot)
        if passages is None or free is None or self.is_barred:
            return None
        if not free:
            self._make_room(slot)  # for the next one: pairs rest a while
            return None
        to_target, to_client = passages
        entry = Entry(owner, slot, free[-1], ends, passages)
        self._begin(entry.counter, series)
        forward = flow_value(
            entry.keys[0], ends.source, ends.target, counter=entry.counter, is_from_client=True, **to_target._asdict()
        )
        backward = flow_value(
            entry.keys[1],
            ends.local,
            ends.client,
            counter=entry.counter + 1,
            is_from_client=False,
            **to_client._asdict(),
        )
        try:
            self._flows.insert(entry.keys[1], backward)
        except OSError:  # full; or a port that was a dead worker's, whose entries are still there
            return None
        try:
            self._flows.insert(entry.keys[0], forward)
        except OSError:
            self._flows.remove(entry.keys[1])
            return None
        free.pop()
        self._entries[entry.counter] = entry
        return entry

    def passage(self, destination: bytes, source: bytes) -> Passage | None:
        """Return how packets from an address of ours go on to a destination; None when there is no way."""
        return self._routes.find(destination, source)

    def _passages(self, ends: Ends) -> Passages | None:
        to_target = self._routes.find(ends.target.packed, ends.source.packed)
        to_client = self._routes.find(ends.client.packed, ends.local.packed)
        return None if to_target is None or to_client is None else (to_target, to_client)

    def _make_room(self, slot: int) -> None:
        """Take out those of a slot's flows that have been without a packet for the longest time, unless all are busy.

        Not often, as that takes a while: no more than once between two calls of :meth:`rest`.
        """
        if slot in self._crowded:
            return
        self._crowded.add(slot)
        before = time.monotonic() - _BUSY_SECONDS
        idle = [entry for entry in self._entries.values() if entry.slot == slot and self.last(entry) < before]
        for entry in sorted(idle, key=self.last)[: self._of_slot // _MAKE_ROOM_FOR]:
            entry.owner.leave_kernel()
            entry.owner.reconsider()

    def adopt(self, owner: Owner, slot: int, counter: int, ends: Ends, passages: Passages) -> Entry:
        """Go on with a flow that another worker has put in."""
        entry = self._entries[counter] = Entry(owner, slot, counter, ends, passages)
        return entry

    def disown(self, entry: Entry) -> None:
        """Leave a flow in that another worker goes on with."""
        del self._entries[entry.counter]

    def remove(self, entry: Entry) -> None:
        """Take a flow out: from now on its packets come to the sockets."""
        if self._entries.get(entry.counter) is not entry:
            return
        del self._entries[entry.counter]
        for key in entry.keys:
            self._flows.remove(key)
        if entry.slot in self._free:  # otherwise the pair is given out by who claims the slot
            self._resting.append(entry.counter)

    def claim(self, slots: Iterable[int], tell: Tell) -> None:
        """Have the pairs of these slots to give out, and take out what nobody has adopted of the flows in there.

        ``tell`` is called with series, and what came from clients and from targets that nobody has counted.
        """
        wanted = frozenset(slots) - self._free.keys()
        if not wanted:
            return
        left = set()
        for key, value in self._flows.items():
            counter = counter_of(value) & ~1
            if self._slot_of(counter) in wanted and counter not in self._entries:
                self._flows.remove(key)
                left.add(counter)
        for counter in left:
            self._settle(counter, tell)
        for slot in wanted:
            first = 2 * slot * self._of_slot
            pairs = range(first, first + 2 * self._of_slot, 2)
            self._free[slot] = [counter for counter in reversed(pairs) if counter not in self._entries]

    def give_up(self, slot: int, tell: Tell) -> None:
        """Give out no more pairs of a slot that is another worker's from now on; ``tell`` as for :meth:`claim`."""
        for counter in [counter for counter in self._resting if self._slot_of(counter) == slot]:
            self._settle(counter, tell)
            self._resting.remove(counter)
        self._free.pop(slot, None)

    def _slot_of(self, counter: int) -> int:
        return counter // 2 // self._of_slot

    # What has passed

    def _begin(self, counter: int, series: int) -> None:
        self._clear(counter)
        now = time.monotonic_ns()
        for each in (counter, counter + 1):
            start = each * COUNTER_WORDS
            self._memory[start + LAST] = now
            self._memory[start + SERIES] = series + 1

    def _clear(self, counter: int) -> None:
        for word in range(counter * COUNTER_WORDS, (counter + 2) * COUNTER_WORDS):
            self._memory[word] = 0

    def touch(self, entry: Entry) -> None:
        """Note that a packet of its client has been looked at here."""
        self._memory[entry.counter * COUNTER_WORDS + LAST] = time.monotonic_ns()

    def news(self) -> Iterator[tuple[Entry, Amount, Amount]]:
        """Yield the flows of which more has passed since this was last told, and how much: from clients, from targets.

        What is yielded is told thereby.
        """
        memory = self._memory
        for counter, entry in [*self._entries.items()]:
            start = counter * COUNTER_WORDS
            other = start + COUNTER_WORDS
            if memory[start + PASSED] != memory[start + TOLD] or memory[other + PASSED] != memory[other + TOLD]:
                yield entry, self._untold(counter), self._untold(counter + 1)

    def take(self, entry: Entry) -> tuple[Amount, Amount]:
        """Return what has passed of a flow since this was last told: from its client, from its target."""
        return self._untold(entry.counter), self._untold(entry.counter + 1)

    def last(self, entry: Entry) -> float:
        """Return at which tick its last packet passed, CLOCK_MONOTONIC in seconds."""
        start = entry.counter * COUNTER_WORDS + LAST
        return max(self._memory[start], self._memory[start + COUNTER_WORDS]) / _NANOSECONDS

    def rest(self, tell: Tell) -> None:
        """Have pairs to give out again whose flows were taken out a while ago, and look whether any may be in.

        To be called about once a second.
        """
        for counter in self._resting:
            self._settle(counter, tell)
            free = self._free.get(self._slot_of(counter))
            if free is not None:
                free.append(counter)
        self._resting.clear()
        self._crowded.clear()
        with contextlib.suppress(OSError):  # then it is as it was a moment ago
            self.is_barred = self._policies.exist()

    def _settle(self, counter: int, tell: Tell) -> None:
        """Tell what is left, and begin anew."""
        start = counter * COUNTER_WORDS
        series = self._memory[start + SERIES]
        if series:
            from_client, from_target = self._untold(counter), self._untold(counter + 1)
            if from_client.packets or from_target.packets:
                tell(series - 1, from_client, from_target)
            self._clear(counter)

    def _untold(self, counter: int) -> Amount:
        memory, start = self._memory, counter * COUNTER_WORDS
        passed = memory[start + PASSED]
        found = Amount(*amount_of(passed, memory[start + TOLD]))
        memory[start + TOLD] = passed
        return found

    # Routes

    def ask_anew(self) -> None:
        """Know nothing of routes any more: the way to somewhere has become narrower, which nobody tells."""
        self._routes.forget()

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`take_news` is to be called."""
        return self._routes.fileno()

    def take_news(self) -> None:
        """Suspect all flows: something about routes has changed. Those that were not looked at yet come first."""
        self._routes.drain()
        waiting = set(self._suspects)
        self._suspects.extend(entry for entry in self._entries.values() if entry not in waiting)

    def misrouted(self, most: int) -> list[Entry]:
        """Look at up to ``most`` of the flows that are suspected; return those whose packets take another way by now.

        These are the caller's to take out.
        """
        found = [self._suspects.popleft() for _ in range(min(most, len(self._suspects)))]
        return [
            entry
            for entry in found
            if self._entries.get(entry.counter) is entry and self._passages(entry.ends) != entry.passages
        ]

    @property
    def has_suspects(self) -> bool:
        """Whether there is more to look at."""
        return bool(self._suspects)

    def close(self) -> None:
        """Close everything; what was put in stays."""
        self._memory.release()
        self._flows.close()
        self._routes.close()
        self._policies.close()
