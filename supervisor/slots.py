"""Which worker serves which slot, and what is on its way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class Moves:
    """Slots on their way, and the workers that still have something to do for that."""

    def __init__(self) -> None:
        """Nothing moves."""
        self._begun: dict[int, float] = {}
        self._busy: dict[int, set[int]] = {}
        self._takers: dict[int, int] = {}

    def __len__(self) -> int:
        """Return how many slots are on their way."""
        return len(self._begun)

    @property
    def busy(self) -> set[int]:
        """The workers that have something to do."""
        return set().union(*self._busy.values())

    def begin(self, move: Move, now: float) -> None:
        """Note that both have been told."""
        self._begun[move.slot] = now
        self._busy[move.slot] = {move.giver, move.taker}
        self._takers[move.slot] = move.taker

    def done(self, slot: int, number: int) -> bool:
        """Note that a worker has done its part, or never will; return whether that ended the last move."""
        if slot not in self._begun:
            return False
        self._busy[slot].discard(number)
        if not self._busy[slot]:
            del self._begun[slot], self._busy[slot], self._takers[slot]
        return not self._begun

    def abandon(self, number: int) -> bool:
        """Note that a worker is dead; return whether that ended the last move."""
        before = len(self)
        for slot in [*self._begun]:
            self.done(slot, number)
        return bool(before) and not self._begun

    def due_by(self, number: int) -> float | None:
        """Return when a worker is to have done its part at the latest, None if it has nothing to do.

        Who gives waits for who takes. So the taker has :data:`PATIENCE`, and the giver as much again.
        """
        times = [
            begun + (PATIENCE if self._takers[slot] == number else 2 * PATIENCE)
            for slot, begun in self._begun.items()
            if number in self._busy[slot]
        ]
        return min(times, default=None)
