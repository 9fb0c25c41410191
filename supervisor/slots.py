"""Which worker serves which slot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


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
