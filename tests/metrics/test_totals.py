from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import (
    L_PROXY_HEADERS,
    REASON_INDEX,
    T_BYTES_IN,
    T_CLOSED,
    T_OPENED,
    Cell,
    Directory,
    ListenerSeries,
    TargetSeries,
    listener_offset,
    target_offset,
)
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.metrics.totals import Histogram, histogram, read_totals, worker_sessions
from rpxy_l4.verdict import Transport

EOF = T_CLOSED + REASON_INDEX[Reason.CLIENT_EOF]
LOST = T_CLOSED + REASON_INDEX[Reason.WORKER_LOST]


def directory_of(*targets: str) -> Directory:
    directory = Directory()
    for transport in Transport:
        directory.listener(ListenerSeries(":1", transport))
    for target in targets:
        directory.target(TargetSeries(":1", Transport.TCP, "default", target))
    return directory


def test_each_cell_of_each_series_is_summed_over_the_slots() -> None:
    slab = Slab(3)
    rows = [slab.row(slot) for slot in range(3)]
    for slot, row in enumerate(rows):
        row[target_offset(0) + T_BYTES_IN] = 10**slot
        row[target_offset(1) + T_BYTES_IN] = 7
        row[listener_offset(1) + L_PROXY_HEADERS] = slot
        row[Cell.ACCESS_LINES_DROPPED] = 1
        row[Cell.EVENT_LINES_DROPPED] = 2

    totals = read_totals(rows, directory_of("a:1", "b:1"))

    assert totals.targets[T_BYTES_IN] == [111, 21]
    assert totals.listeners[L_PROXY_HEADERS] == [0, 3]
    assert (totals.access_lines_dropped, totals.event_lines_dropped) == (3, 6)


def test_only_the_series_of_the_directory_are_read() -> None:
    row = Slab(1).row(0)
    row[target_offset(1) + T_BYTES_IN] = 1

    assert read_totals([row], directory_of("a:1")).targets[T_BYTES_IN] == [0]


def test_an_empty_directory_has_empty_columns() -> None:
    totals = read_totals([Slab(1).row(0)], Directory())

    assert set(map(tuple, totals.targets + totals.listeners)) == {()}
    assert totals.open_sessions == []


def test_open_sessions_are_those_opened_less_those_closed_for_any_reason() -> None:
    slab = Slab(2)
    for slot, (opened, ended, lost) in enumerate([(5, 2, 1), (4, 4, 0)]):
        row = slab.row(slot)
        row[target_offset(0) + T_OPENED] = opened
        row[target_offset(0) + EOF] = ended
        row[target_offset(0) + LOST] = lost

    assert read_totals([slab.row(0), slab.row(1)], directory_of("a:1")).open_sessions == [2]


class BusyRow:
    """A row in which a session begins and ends between any two reads."""

    def __init__(self, row: memoryview) -> None:
        self.row = row

    def __getitem__(self, key: Any) -> Any:
        value = memoryview(bytes(self.row[key])).cast("Q") if isinstance(key, slice) else self.row[key]
        self.row[target_offset(0) + T_OPENED] += 1
        self.row[target_offset(0) + EOF] += 1
        self.row[Cell.TCP_OPENED] += 1
        self.row[Cell.TCP_CLOSED] += 1
        return value


def test_sessions_that_end_while_being_read_never_make_the_gauge_negative() -> None:
    slab = Slab(4)
    rows = cast("Sequence[memoryview]", [BusyRow(slab.row(slot)) for slot in range(4)])

    assert read_totals(rows, directory_of("a:1")).open_sessions[0] >= 0
    assert worker_sessions(rows[0])[0] >= 0


def test_a_worker_has_sessions_of_both_transports() -> None:
    row = Slab(1).row(0)
    row[Cell.TCP_OPENED], row[Cell.TCP_CLOSED] = 5, 3
    row[Cell.UDP_OPENED], row[Cell.UDP_CLOSED] = 9, 8

    assert worker_sessions(row) == (2, 1)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([0, 0, 0, 0], Histogram((0, 0, 0), 0.0)),
        ([1, 2, 4, 2_500_000], Histogram((1, 3, 7), 2.5)),
    ],
)
def test_buckets_are_cumulated_and_microseconds_become_seconds(cells: list[int], expected: Histogram) -> None:
    assert histogram(cells) == expected
