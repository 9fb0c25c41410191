from __future__ import annotations

from tests.chaos.table import BEGIN, END, Row, put_into, table
from tests.support.traffic.source import Loss, Losses

LOSSES = (
    Losses("pieces of a download", "downloads", is_udp=True, done=1234, lost=()),
    Losses("requests", "connections", is_udp=False, done=99, lost=(Loss("reset", None), Loss("reset", None))),
)


def test_a_row_read_again_is_the_same() -> None:
    row = Row.of("a fault", LOSSES)

    assert Row.from_json(row.to_json()) == row


def test_the_table_says_what_was_held_and_what_was_lost() -> None:
    lines = table([Row.of("a fault", LOSSES), Row.of("another", LOSSES[:1])]).splitlines()

    assert lines[2] == "| a fault | 1234 pieces of a download, 99 requests | connections: 2 |"
    assert lines[3] == "| another | 1234 pieces of a download | nothing |"


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"

    assert put_into(page, []) == f"before\n{BEGIN}\n{table([])}{END}\nafter\n"
