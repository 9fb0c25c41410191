from __future__ import annotations

import pytest

from rpxy_l4.metrics import layout
from rpxy_l4.metrics.layout import (
    LISTENER_CELLS,
    MAX_LISTENERS,
    MAX_TARGETS,
    ROW_CELLS,
    TARGET_CELLS,
    WORKER_CELLS,
    Cell,
    Directory,
    DirectoryFullError,
    ListenerSeries,
    TargetSeries,
    listener_offset,
    target_offset,
)
from rpxy_l4.verdict import Transport


def test_the_cells_of_a_worker_fit_before_the_tables() -> None:
    assert max(Cell) < WORKER_CELLS == listener_offset(0)


def test_the_tables_follow_each_other_and_end_with_the_row() -> None:
    assert listener_offset(MAX_LISTENERS - 1) + LISTENER_CELLS == target_offset(0)
    assert target_offset(MAX_TARGETS - 1) + TARGET_CELLS == ROW_CELLS


@pytest.mark.parametrize(
    ("prefix", "cells"),
    [
        (
            "L",
            {
                layout.L_REJECTED: len(layout.REJECTION_INDEX),
                layout.L_DROPPED: len(layout.DROP_INDEX),
                layout.L_DETECTED: len(layout.DETECTED_INDEX),
                layout.L_SESSION_HISTOGRAM: len(layout.SESSION_BUCKETS) + 2,
                layout.L_DETECTION_HISTOGRAM: len(layout.DETECTION_BUCKETS) + 2,
                layout.L_ACCEPT_ERRORS: len(layout.ACCEPT_ERRNOS),
                layout.L_PROXY_HEADERS: 2,
                layout.L_SOCKET_ERRORS: len(layout.SOCKET_ERRNOS),
                LISTENER_CELLS: 0,
            },
        ),
        (
            "T",
            {
                layout.T_OPENED: 1,
                layout.T_BYTES_IN: 1,
                layout.T_BYTES_OUT: 1,
                layout.T_DATAGRAMS_IN: 1,
                layout.T_DATAGRAMS_OUT: 1,
                layout.T_CLOSED: len(layout.REASON_INDEX),
                layout.T_CONNECTS: len(layout.CONNECT_INDEX),
                layout.T_CONNECT_HISTOGRAM: len(layout.CONNECT_BUCKETS) + 2,
                layout.T_TAKEN: 1,
                layout.T_GIVEN: 1,
                TARGET_CELLS: 0,
            },
        ),
    ],
)
def test_the_parts_of_a_block_neither_overlap_nor_leave_holes(prefix: str, cells: dict[int, int]) -> None:
    end = 0
    for start, length in cells.items():
        assert start == end, prefix
        end = start + length


def test_the_same_labels_keep_their_block() -> None:
    directory = Directory()
    tcp, udp = ListenerSeries(":1", Transport.TCP), ListenerSeries(":1", Transport.UDP)
    one, other = (TargetSeries(":1", Transport.TCP, "default", target) for target in ("a:1", "b:1"))

    assert [directory.listener(series) for series in (tcp, udp, tcp)] == [0, 1, 0]
    assert [directory.target(series) for series in (one, other, one)] == [0, 1, 0]


def test_a_full_directory_refuses_only_what_is_new() -> None:
    directory = Directory()
    for i in range(MAX_LISTENERS):
        directory.listener(ListenerSeries(f":{i}", Transport.TCP))
    for i in range(MAX_TARGETS):
        directory.target(TargetSeries(":1", Transport.TCP, "default", f"a:{i}"))

    assert directory.listener(ListenerSeries(":7", Transport.TCP)) == 7
    assert directory.target(TargetSeries(":1", Transport.TCP, "default", "a:7")) == 7
    with pytest.raises(DirectoryFullError):
        directory.listener(ListenerSeries(":7", Transport.UDP))
    with pytest.raises(DirectoryFullError):
        directory.target(TargetSeries(":1", Transport.UDP, "default", "a:7"))


def test_a_directory_made_of_plain_values_is_the_same() -> None:
    directory = Directory()
    directory.listener(ListenerSeries(":1", Transport.TCP))
    directory.target(TargetSeries(":1", Transport.UDP, "a", "b:1"))

    assert Directory.of_plain(*directory.as_plain()) == directory
