from __future__ import annotations

import os

import pytest

from rpxy_l4.metrics.slab import Slab


def test_rows_begin_as_zeros_and_do_not_touch_each_other() -> None:
    slab = Slab(3, cells=4)
    slab.row(1)[0] = 1
    slab.row(1)[3] = 2**64 - 1

    assert [slab.row(i).tolist() for i in range(3)] == [[0] * 4, [1, 0, 0, 2**64 - 1], [0] * 4]


def test_what_a_forked_child_counts_is_seen_here() -> None:
    slab = Slab(2, cells=4)
    row = slab.row(1)
    pid = os.fork()
    if pid == 0:
        row[2] += 5
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    assert slab.row(1).tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize("slot", [-1, 2])
def test_there_is_no_row_outside_the_slab(slot: int) -> None:
    with pytest.raises(IndexError, match="in a slab of 2"):
        Slab(2, cells=4).row(slot)
