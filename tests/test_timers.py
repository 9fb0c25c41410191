from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpxy_l4.timers import TimerTable, WaitingLines

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


def test_who_waits_is_called_after_the_time_and_once() -> None:
    lines: WaitingLines[str] = WaitingLines()
    lines.add(10.0, 3.0, "a")
    lines.add(10.5, 3.0, "b")
    lines.add(11.0, 0.5, "c")

    assert lines.next_deadline() == 11.5
    assert lines.expire(11.4) == []
    assert lines.expire(13.2) == ["a", "c"]
    assert lines.next_deadline() == 13.5
    assert lines.expire(20.0) == ["b"]
    assert lines.next_deadline() is None


def test_who_left_is_not_called_and_not_kept() -> None:
    lines: WaitingLines[str] = WaitingLines()
    for number in range(1000):
        lines.add(number * 0.001, 5.0, f"item {number}")
        lines.discard(5.0, f"item {number - 1}")
    lines.discard(5.0, "item 999")
    lines.discard(5.0, "item 999")
    lines.discard(7.0, "nobody")

    assert lines.next_deadline() is None
    assert lines.expire(1e9) == []


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from([0.5, 3.0, 60.0]), st.booleans()), max_size=60))
def test_lines_give_each_item_when_its_time_is_over_and_not_before(events: list[tuple[float, float, bool]]) -> None:
    lines: WaitingLines[int] = WaitingLines()
    now, waiting = 0.0, dict[int, tuple[float, float]]()
    for number, (step, duration, leaves) in enumerate(events):
        now += step
        due = {item for item, (deadline, _) in waiting.items() if deadline <= now}
        assert set(lines.expire(now)) == due
        for item in due:
            del waiting[item]
        lines.add(now, duration, number)
        waiting[number] = (now + duration, duration)
        if leaves:
            item = min(waiting)
            lines.discard(waiting.pop(item)[1], item)
        assert lines.next_deadline() == min((deadline for deadline, _ in waiting.values()), default=None)
