from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.supervisor.slots import PATIENCE, Move, Moves, deal, plan_moves


def after(owners: dict[int, int], moves: list[Move]) -> dict[int, int]:
    return owners | {move.slot: move.taker for move in moves}


def spread(owners: dict[int, int], workers: set[int]) -> int:
    held = Counter(dict.fromkeys(workers, 0))
    held.update(owners.values())
    return max(held.values()) - min(held.values())


def test_slots_are_dealt_evenly() -> None:
    assert deal(5, [0, 1]) == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}


def test_a_new_worker_gets_its_share_and_nothing_else_moves() -> None:
    moves = plan_moves(deal(8, [0, 1]), [0, 1, 2], [0, 1, 2])

    assert len(moves) == 2
    assert {move.taker for move in moves} == {2}


def test_nothing_moves_while_nobody_is_able_to_take() -> None:
    assert plan_moves(deal(4, [0]), [1], []) == []


def test_slots_of_one_that_stays_but_is_not_able_are_left_to_it() -> None:
    assert plan_moves({0: 0, 1: 1}, [0, 1], [0]) == []


@given(
    owners=st.dictionaries(st.integers(0, 40), st.integers(0, 9), min_size=1),
    staying=st.sets(st.integers(0, 12), min_size=1),
)
def test_in_the_end_every_slot_is_with_one_that_stays_evenly_and_each_moved_once(
    owners: dict[int, int], staying: set[int]
) -> None:
    moves = plan_moves(owners, staying, staying)
    result = after(owners, moves)

    assert len({move.slot for move in moves}) == len(moves)
    assert all(owners[move.slot] == move.giver != move.taker for move in moves)
    assert set(result.values()) <= staying
    assert spread(result, staying) <= 1
    assert plan_moves(result, staying, staying) == []


@given(
    owners=st.dictionaries(st.integers(0, 40), st.integers(0, 9), min_size=1),
    staying=st.sets(st.integers(0, 12), min_size=1),
    able=st.sets(st.integers(0, 12)),
)
def test_who_is_not_able_is_given_nothing(owners: dict[int, int], staying: set[int], able: set[int]) -> None:
    assert {move.taker for move in plan_moves(owners, staying, able)} <= staying & able


def test_a_move_ends_when_both_have_done_their_part() -> None:
    moves = Moves()
    moves.begin(Move(3, giver=0, taker=1), 100.0)
    moves.begin(Move(4, giver=0, taker=2), 100.0)

    assert moves.busy == {0, 1, 2}
    assert [moves.done(3, 0), moves.done(3, 1), moves.done(4, 2)] == [False, False, False]
    assert len(moves) == 1
    assert moves.done(4, 0)
    assert not moves.done(4, 0)
    assert (len(moves), moves.busy) == (0, set())


def test_of_the_dead_nothing_is_waited_for() -> None:
    moves = Moves()
    moves.begin(Move(3, giver=0, taker=1), 100.0)

    assert not moves.abandon(7)
    assert not moves.abandon(1)
    assert moves.busy == {0}
    assert moves.abandon(0)
    assert not moves.abandon(0)


def test_the_taker_is_to_have_done_its_part_before_the_giver_who_waits_for_it() -> None:
    moves = Moves()
    moves.begin(Move(3, giver=0, taker=1), 100.0)
    moves.begin(Move(4, giver=1, taker=2), 90.0)

    assert moves.due_by(0) == 100.0 + 2 * PATIENCE
    assert moves.due_by(1) == 100.0 + PATIENCE
    assert moves.due_by(2) == 90.0 + PATIENCE
    assert moves.due_by(3) is None
    moves.done(3, 1)
    assert moves.due_by(1) == 90.0 + 2 * PATIENCE
