from __future__ import annotations

from rpxy_l4.errors import ConfigError, Problem, quote

SOURCE = 'listen_port = 1\n[protocols.tls1]\nprotocol = "tlss"\n'
PROBLEM = Problem(
    message='unknown protocol "tlss"; did you mean "tls"?',
    file="/etc/rpxy-l4/config.toml",
    line=3,
    column=12,
    width=6,
    path="protocols.tls1.protocol",
)


def caret_line(problem: Problem, source: str) -> str:
    return problem.render(source).split("\n")[-1]


def test_a_problem_is_shown_with_its_line_and_a_caret_under_the_value() -> None:
    assert PROBLEM.render(SOURCE) == (
        '/etc/rpxy-l4/config.toml:3:12: error: protocols.tls1.protocol: unknown protocol "tlss"; did you mean "tls"?\n'
        '  3 | protocol = "tlss"\n'
        "    |            ^~~~~~"
    )


def test_a_problem_without_a_place_is_one_line() -> None:
    assert Problem(message="no room").render(SOURCE) == "error: no room"
    assert Problem(message="no room", file="f.toml").render("") == "f.toml: error: no room"


def test_a_line_that_the_source_does_not_have_is_not_shown() -> None:
    problem = Problem(message="odd", file="f.toml", line=9)

    assert problem.render(SOURCE) == "f.toml:9:1: error: odd"


def test_a_tab_stays_a_tab_so_the_caret_stands_right_at_any_tab_stop() -> None:
    problem = Problem(message="odd", file="f", line=1, column=4, width=2)

    assert problem.render("\ta\tbc") == "f:1:4: error: odd\n  1 | \ta\tbc\n    | \t \t^~"


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    problem = Problem(message="odd", file="f", line=1, column=3, width=2)

    assert caret_line(problem, "日e日本") == "    |    ^~~~"
    assert caret_line(problem, "e\u0301bc") == "    |  ^~"


def test_a_caret_never_reaches_beyond_the_line() -> None:
    assert caret_line(Problem(message="odd", file="f", line=1, column=3, width=99), "abcd\r\nx") == "    |   ^~"
    assert caret_line(Problem(message="odd", file="f", line=1, column=99, width=9), "abcd") == "    |     ^"


def test_a_long_line_is_cut_around_the_fault() -> None:
    source = "x" * 500 + "BAD" + "y" * 500
    problem = Problem(message="odd", file="f", line=1, column=501, width=3)

    _, shown, caret = problem.render(source).split("\n")

    assert len(shown) < 120
    assert shown.startswith("  1 | ...x")
    assert shown.endswith("y...")
    assert shown[caret.index("^") : caret.index("^") + 3] == "BAD"
    assert caret.endswith("^~~")


def test_a_fault_at_either_end_of_a_long_line_is_in_view() -> None:
    source = "BAD" + "x" * 500 + "END"
    first = Problem(message="odd", file="f", line=1, column=1, width=3).render(source).split("\n")
    last = Problem(message="odd", file="f", line=1, column=504, width=3).render(source).split("\n")

    assert first[1].startswith("  1 | BADx")
    assert first[2].endswith("| ^~~")
    assert last[1].endswith("xEND")
    assert last[1][last[2].index("^") :] == "END"


def test_control_characters_do_not_reach_the_terminal() -> None:
    problem = Problem(message="odd", file="f", line=1, column=1, width=1)

    assert "\x1b" not in problem.render("\x1b[31m red")


def test_the_error_renders_every_problem() -> None:
    other = Problem(message="out of range", file="f.toml", line=1, column=15, path="listen_port")
    error = ConfigError([other, PROBLEM], SOURCE)

    assert error.problems == (other, PROBLEM)
    assert error.render() == f"{other.render(SOURCE)}\n{PROBLEM.render(SOURCE)}"
    assert str(error) == f"{other}\n{PROBLEM}"


def test_quoting_cuts_long_text_and_escapes_what_cannot_be_printed() -> None:
    assert quote("tls") == '"tls"'
    assert quote("a\x1b\nb\ud800") == '"a\\x1b\\nb\\ud800"'
    assert len(quote("x" * 1000)) < 70
