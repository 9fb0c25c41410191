from __future__ import annotations

import math

from rpxy_l4.metrics.layout import T_OPENED, target_offset
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.workers.removed import Removed


def with_sessions_of(*series: int) -> Removed:
    row = Slab(1).row(0)
    for each in series:
        row[target_offset(each) + T_OPENED] = 1
    return Removed(row)


def test_what_has_left_is_due_when_its_time_is_over() -> None:
    removed = with_sessions_of(1, 2)
    removed.apply(frozenset({1, 2}), 10.0)
    removed.apply(frozenset({2}), 20.0)

    assert removed.due(19.9) == frozenset()
    assert removed.due(20.0) == {1}


def test_what_nobody_uses_is_not_due() -> None:
    removed = with_sessions_of(2)
    removed.apply(frozenset({1, 2}), 10.0)
    removed.apply(frozenset(), 20.0)

    assert removed.due(30.0) == {2}


def test_what_has_come_back_has_no_end_and_a_new_one_when_it_leaves_again() -> None:
    removed = with_sessions_of(1)
    for served, until in ((frozenset({1}), 1.0), (frozenset(), 2.0), (frozenset({1}), 3.0)):
        removed.apply(served, until)
    assert removed.due(100.0) == frozenset()
    removed.apply(frozenset(), 200.0)
    assert removed.due(100.0) == frozenset()
    assert removed.due(200.0) == {1}


def test_a_later_configuration_gives_no_more_time_but_may_give_all_of_it() -> None:
    removed = with_sessions_of(1)
    removed.apply(frozenset({1}), 1.0)
    removed.apply(frozenset(), 10.0)
    removed.apply(frozenset(), 20.0)
    assert removed.due(10.0) == {1}
    removed.apply(frozenset(), math.inf)
    assert removed.due(1e9) == frozenset()
    removed.apply(frozenset(), 30.0)
    assert removed.due(30.0) == {1}


def test_a_session_from_another_worker_ends_too_when_its_target_has_left() -> None:
    removed = with_sessions_of(1, 2)
    removed.apply(frozenset({1}), 10.0)
    removed.take_in(1, 20.0)
    removed.take_in(2, 20.0)

    assert removed.due(20.0) == {2}
