from __future__ import annotations

from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.workers.living import Living


def test_a_worker_always_counts_itself() -> None:
    assert Living([Slab(1).row(0)], 0).count(now=1.0) == 1


def test_those_that_beat_are_counted_as_of_the_beginning_of_a_batch() -> None:
    slab = Slab(3)
    rows = [slab.row(number) for number in range(3)]
    living = Living(rows, 1)
    rows[2][Cell.HEARTBEAT] = 7
    assert living.others(now=1.0) == [rows[2]]
    rows[0][Cell.HEARTBEAT] = 7
    assert living.count(now=1.0) == 2
    assert living.count(now=2.0) == 3
    rows[2][Cell.HEARTBEAT] = 0
    assert living.count(now=3.0) == 2
