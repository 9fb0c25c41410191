from __future__ import annotations

from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.workers.living import Living
from rpxy_l4.workers.unconfirmed import Unconfirmed


class Flow:
    def __init__(self, table: Unconfirmed) -> None:
        self._table = table
        table.add(self)

    def give_way(self) -> None:
        self._table.discard(self)


def rows(count: int) -> list[memoryview]:
    slab = Slab(count)
    made = [slab.row(number) for number in range(count)]
    for row in made:
        row[Cell.HEARTBEAT] = 1
    return made


def of(all_rows: list[memoryview]) -> Unconfirmed:
    return Unconfirmed(all_rows[0], Living(all_rows, 0))


def test_the_oldest_gives_way() -> None:
    table = of(rows(1))
    oldest, other = Flow(table), Flow(table)

    assert table.make_way()
    assert oldest not in table
    assert other in table


def test_nobody_is_left_to_give_way() -> None:
    table = of(rows(1))
    flow = Flow(table)
    table.discard(flow)
    table.discard(flow)

    assert not table.make_way()


def test_the_number_stands_in_the_row() -> None:
    (row,) = rows(1)
    table = of([row])
    flow = Flow(table)
    assert row[Cell.UDP_UNCONFIRMED] == 1
    table.discard(flow)
    assert row[Cell.UDP_UNCONFIRMED] == 0


def test_places_are_divided_among_living_workers() -> None:
    own, other, dead = rows(3)
    dead[Cell.HEARTBEAT] = 0
    table = of([own, other, dead])
    for _ in range(4):
        Flow(table)
    other[Cell.UDP_UNCONFIRMED] = 16

    assert table.share(room=0, now=1.0) == 10
    assert table.share(room=-4, now=1.0) == 8, "there are four too many"
    assert table.share(room=-100, now=1.0) == 0


def test_a_worker_that_has_not_beaten_yet_counts_itself() -> None:
    table = of([Slab(1).row(0)])
    Flow(table)

    assert table.share(room=0, now=1.0) == 1
