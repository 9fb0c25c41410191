from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpxy_l4.timers import TimerTable

TIMES = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


def test_an_empty_table_has_no_deadline_and_gives_nothing() -> None:
    table: TimerTable[str] = TimerTable(1.0)

    assert table.next_deadline() is None
    assert table.expire(1e9) == []


def test_an_item_comes_out_once_when_its_bucket_is_due() -> None:
    table: TimerTable[str] = TimerTable(1.0)
    table.add(10.2, "a")

    assert table.next_deadline() == 11.0
    assert table.expire(10.9) == []
    assert table.expire(11.0) == ["a"]
    assert table.expire(12.0) == []
    assert table.next_deadline() is None


def test_a_deadline_on_the_edge_of_a_bucket_is_not_late() -> None:
    table: TimerTable[str] = TimerTable(0.5)
    table.add(3.5, "a")

    assert table.next_deadline() == 3.5
    assert table.expire(3.5) == ["a"]


def test_items_come_out_in_the_order_of_their_buckets_then_of_adding() -> None:
    table: TimerTable[str] = TimerTable(1.0)
    for deadline, item in ((3.0, "late"), (1.9, "first"), (1.1, "second"), (2.5, "third"), (9.0, "not yet")):
        table.add(deadline, item)

    assert table.expire(3.0) == ["first", "second", "late", "third"]
    assert table.next_deadline() == 9.0


def test_a_deadline_in_the_past_comes_out_at_the_next_look() -> None:
    table: TimerTable[str] = TimerTable(1.0)
    table.add(100.0, "later")
    assert table.expire(50.0) == []
    table.add(20.0, "overdue")

    assert table.expire(50.0) == ["overdue"]


def test_an_owner_who_moved_a_deadline_adds_the_item_again() -> None:
    table: TimerTable[str] = TimerTable(1.0)
    deadlines = {"busy": 5.0, "idle": 5.0}
    for item, deadline in deadlines.items():
        table.add(deadline, item)
    deadlines["busy"] = 8.0
    ended: list[tuple[float, str]] = []

    for now in (5.0, 6.0, 7.0, 8.0):
        for item in table.expire(now):
            if deadlines[item] <= now:
                ended.append((now, item))
            else:
                table.add(deadlines[item], item)

    assert ended == [(5.0, "idle"), (8.0, "busy")]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.sampled_from([0.1, 0.25, 0.3, 1.0, 7.0]), st.lists(TIMES, max_size=30), st.lists(TIMES, max_size=10))
def test_no_item_is_early_lost_or_more_than_one_granularity_late(
    granularity: float, deadlines: list[float], looks: list[float]
) -> None:
    table: TimerTable[int] = TimerTable(granularity)
    for number, deadline in enumerate(deadlines):
        table.add(deadline, number)
    waiting = set(range(len(deadlines)))

    for now in [*sorted(looks), 2e6]:
        for number in table.expire(now):
            assert deadlines[number] <= now
            waiting.remove(number)
        assert all(deadlines[number] > now - granularity * 1.000001 for number in waiting)
        following = table.next_deadline()
        assert (following is None) == (not waiting)
        assert following is None or following > now

    assert not waiting


@settings(derandomize=True, deadline=None)
@given(TIMES)
@example(0.9000000000000001)  # divided by 0.1 it is 9.0, and 9 * 0.1 is less than it
def test_an_item_is_never_early_by_a_rounding_error(deadline: float) -> None:
    table: TimerTable[str] = TimerTable(0.1)
    table.add(deadline, "a")
    due = table.next_deadline()

    assert due is not None
    assert due >= deadline
    assert table.expire(due) == ["a"]
