from __future__ import annotations

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import (
    REASON_INDEX,
    T_CLOSED,
    T_GIVEN,
    T_OPENED,
    T_TAKEN,
    Cell,
    Directory,
    TargetSeries,
    target_offset,
)
from rpxy_l4.metrics.settle import balance, settle
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.metrics.totals import read_totals
from rpxy_l4.verdict import Transport


def closed(series: int, reason: Reason) -> int:
    return target_offset(series) + T_CLOSED + REASON_INDEX[reason]


def test_what_a_dead_worker_held_is_closed_as_lost() -> None:
    row = Slab(1).row(0)
    row[target_offset(0) + T_OPENED] = 7
    row[closed(0, Reason.CLIENT_EOF)] = 3
    row[closed(0, Reason.WORKER_LOST)] = 1
    row[target_offset(5) + T_OPENED] = 2

    assert settle(row, [0, 5]) == 5
    assert row[closed(0, Reason.WORKER_LOST)] == 4
    assert row[closed(0, Reason.CLIENT_EOF)] == 3
    assert row[closed(5, Reason.WORKER_LOST)] == 2
    assert row[target_offset(0) + T_OPENED] == 7


def test_settling_again_finds_nothing() -> None:
    row = Slab(1).row(0)
    row[target_offset(0) + T_OPENED] = 7
    settle(row, [0])

    assert settle(row, [0]) == 0
    assert row[closed(0, Reason.WORKER_LOST)] == 7


def test_the_limits_see_an_empty_slot_and_the_living_have_left_it() -> None:
    row = Slab(1).row(0)
    for cell in Cell:
        row[cell] = 10 + cell

    settle(row, [])

    assert row[Cell.TCP_CLOSED] == row[Cell.TCP_OPENED] == 10 + Cell.TCP_OPENED
    assert row[Cell.UDP_CLOSED] == row[Cell.UDP_OPENED] == 10 + Cell.UDP_OPENED
    assert [row[cell] for cell in (Cell.HEARTBEAT, Cell.GENERATION, Cell.LOOP_LAG, Cell.DRAINING)] == [0, 0, 0, 0]
    assert row[Cell.ACCESS_LINES_DROPPED] == 10 + Cell.ACCESS_LINES_DROPPED


def test_flows_that_moved_are_lost_with_the_worker_that_has_them_now() -> None:
    row = Slab(1).row(0)
    row[target_offset(0) + T_OPENED] = 5
    row[target_offset(0) + T_GIVEN] = 4
    row[target_offset(0) + T_TAKEN] = 2

    assert settle(row, [0]) == 3


def books() -> tuple[list[memoryview], memoryview, Directory]:
    slab = Slab(3)
    directory = Directory()
    directory.target(TargetSeries(":1", Transport.UDP, "default", "127.0.0.1:1"))
    return [slab.row(0), slab.row(1)], slab.row(2), directory


def test_what_a_worker_gave_and_none_took_is_lost() -> None:
    rows, own, directory = books()
    rows[0][target_offset(0) + T_OPENED] = 5
    rows[0][target_offset(0) + T_GIVEN] = 5
    rows[1][target_offset(0) + T_TAKEN] = 2

    assert balance(rows, own, [0]) == 3
    assert balance(rows, own, [0]) == 0
    assert read_totals([*rows, own], directory).open_sessions == [2]


def test_what_a_worker_took_from_one_that_was_held_to_have_lost_it_is_open() -> None:
    rows, own, directory = books()
    rows[0][target_offset(0) + T_OPENED] = 5
    assert settle(rows[0], [0]) == 5
    rows[1][target_offset(0) + T_TAKEN] = 2

    assert balance(rows, own, [0]) == 0
    assert read_totals([*rows, own], directory).open_sessions == [2]
    assert settle(rows[1], [0]) == 2
    assert read_totals([*rows, own], directory).open_sessions == [0]
