from __future__ import annotations

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import REASON_INDEX, T_CLOSED, T_OPENED, Cell, target_offset
from rpxy_l4.metrics.settle import settle
from rpxy_l4.metrics.slab import Slab


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
