"""Columns are aligned, whatever is in them."""

from __future__ import annotations

from rpxy_l4.demo.table import Row, State, Style, render

PLAIN = Style(colours=False)
ROWS = [
    Row(sent="HTTP", recognised="http", route="web", target="t:1", ms="1.5", answer="200", state=State.OK),
    Row(sent="a datagram", recognised="unknown", route="default", target="t:20", ms="123.4", answer="", state=State.OK),
]


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    assert render(ROWS, PLAIN, None) == [
        "sent        recognised  route    target     ms  answer",
        "HTTP        http        web      t:1       1.5  200",
        "a datagram  unknown     default  t:20    123.4  ",
    ]


def test_a_failed_row_says_so_without_colours() -> None:
    row = Row(sent="HTTP", answer="no such session", state=State.FAILED)
    assert render([row], PLAIN, None)[1].split() == ["HTTP", "FAILED:", "no", "such", "session"]


def test_a_skipped_row_says_why() -> None:
    row = Row(sent="QUIC", answer="install it", state=State.SKIPPED)
    assert render([row], PLAIN, None)[1].endswith("  skipped: install it")


def test_a_narrow_terminal_gets_answers_on_lines_of_their_own() -> None:
    width = max(len(line) for line in render(ROWS, PLAIN, None))
    assert render(ROWS, PLAIN, width) == render(ROWS, PLAIN, None)
    assert render(ROWS, PLAIN, width - 1) == [
        "sent        recognised  route    target     ms",
        "HTTP        http        web      t:1       1.5",
        "  200",
        "a datagram  unknown     default  t:20    123.4",
        "  ",
    ]


def test_colours_change_nothing_but_the_look() -> None:
    coloured = "\n".join(render(ROWS, Style(colours=True), None))
    for code in ("1", "32"):
        assert f"\x1b[{code}m" in coloured
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured.replace("\x1b[0m", "").splitlines() == render(ROWS, PLAIN, None)


def test_each_state_has_a_colour() -> None:
    style = Style(colours=True)
    assert len({style.state(state, "x") for state in State}) == len(State)
    assert style.dim("x") != "x"
    assert PLAIN.state(State.FAILED, "x") == PLAIN.bold("x") == PLAIN.dim("x") == "x"
