"""Which worker serves which slot, and what is on its way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

MOST_AT_A_TIME: Final = 32
"""Slots that move at once: a worker's channel holds no more than so many orders with descriptors for sure."""
PATIENCE: Final = 30.0
"""Seconds after which a worker has failed to hand a slot over, or to take it. Ten thousand flows take less than one."""


class Move(NamedTuple):
    """A slot that is to go from one worker to another."""

    slot: int
    giver: int
    taker: int


def deal(slots: int, workers: Iterable[int]) -> dict[int, int]:
    """Return the owner of each slot, as evenly as can be."""
    numbers = sorted(workers)
    return {slot: numbers[slot % len(numbers)] for slot in range(slots)}


def plan_moves(owners: Mapping[int, int], staying: Iterable[int], able: Iterable[int]) -> list[Move]:
    """Return the fewest moves by which every slot is with a worker that stays, as evenly as can be.

    ``owners``: the worker of each slot. ``staying``: workers that are to have slots. ``able``: those of them that can
    be given slots now; while there is none, nothing moves. Slots of one that stays and is not able are left to it.
    """
    kept = frozenset(staying)
    takers = sorted(kept & frozenset(able))
    if not takers:
        return []
    held = {number: sorted(slot for slot, owner in owners.items() if owner == number) for number in takers}
    homeless = sorted((slot, owner) for slot, owner in owners.items() if owner not in kept)
    moves = []
    for slot, giver in homeless:
        taker = min(takers, key=lambda number: (len(held[number]), number))
        held[taker].append(slot)
        moves.append(Move(slot, giver, taker))
    arrived = {move.slot for move in moves}
    while True:
        poorest = min(takers, key=lambda number: (len(held[number]), number))
        richest = max(takers, key=lambda number: (len(held[number]), -number))
        if len(held[richest]) - len(held[poorest]) <= 1:
            return moves
        slot = max(slot for slot in held[richest] if slot not in arrived)
        held[richest].remove(slot)
        held[poorest].append(slot)
        arrived.add(slot)
        moves.append(Move(slot, richest, poorest))


@dataclass(slots=True)
class _OnTheWay:
    taker: int
    begun: float
    busy: set[int]


class Moves:
    """Slots on their way, and the workers that still have something to do for that."""

    def __init__(self) -> None:
        """Nothing moves."""
        self._slots: dict[int, _OnTheWay] = {}

    def __len__(self) -> int:
        """Return how many slots are on their way."""
        return len(self._slots)

    @property
    def busy(self) -> set[int]:
        """The workers that have something to do."""
        return set().union(*(way.busy for way in self._slots.values()))

    def begin(self, move: Move, now: float) -> None:
        """Note that both have been told."""
        self._slots[move.slot] = _OnTheWay(move.taker, now, {move.giver, move.taker})

    def done(self, slot: int, number: int) -> bool:
        """Note that a worker has done its part, or never will; return whether that ended the last move."""
        way = self._slots.get(slot)
        if way is None:
            return False
        way.busy.discard(number)
        if not way.busy:
            del self._slots[slot]
        return not self._slots

    def abandon(self, number: int) -> bool:
        """Note that a worker is dead; return whether that ended the last move."""
        before = len(self)
        for slot in [*self._slots]:
            self.done(slot, number)
        return bool(before) and not self._slots

    def due_by(self, number: int) -> float | None:
        """Return when a worker is to have done its part at the latest, None if it has nothing to do.

        Who gives waits for who takes. So the taker has :data:`PATIENCE`, and the giver as much again.
        """
        times = [
            way.begun + (PATIENCE if way.taker == number else 2 * PATIENCE)
            for way in self._slots.values()
            if number in way.busy
        ]
        return min(times, default=None)
