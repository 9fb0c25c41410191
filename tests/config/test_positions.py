"""Invariant: any text is read, or refused with a TomlError; every place points at what it says."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tomlkit.parser import Parser

from rpxy_l4.config.positions import Document, Path, Span, TomlError, read_toml

TEXT = """\
listen_port = 8448 # one
targets = ["a:1",
  "b:2", true, 1979-05-27 ]

[protocols.tls1]
  protocol = 'tls'
"quoted key" = { inner.key = 1, list = [ [2] ] }
[admin]
listen = ""
[ protocols . "two words" ]
protocol = \"\"\"
ssh\"\"\"
[[protocols.several]]
n = 1
[[protocols.several]]
n = 0x2
"""


def key_text(document: Document, *path: str | int) -> str:
    span = document.locate_key(path)
    return document.text[span.start : span.end]


def value_text(document: Document, *path: str | int) -> str:
    span = document.locate_value(path)
    return document.text[span.start : span.end]


def test_the_data_is_plain() -> None:
    data = read_toml(TEXT).data

    assert data == {
        "listen_port": 8448,
        "targets": ["a:1", "b:2", True, dt.date(1979, 5, 27)],
        "protocols": {
            "tls1": {"protocol": "tls", "quoted key": {"inner": {"key": 1}, "list": [[2]]}},
            "two words": {"protocol": "ssh"},
            "several": [{"n": 1}, {"n": 2}],
        },
        "admin": {"listen": ""},
    }
    assert type(data["listen_port"]) is int
    assert type(data["targets"]) is list
    assert [type(one) for one in data["targets"]] == [str, str, bool, dt.date]
    assert type(data["protocols"]["tls1"]) is dict
    assert list(data["protocols"]) == ["tls1", "two words", "several"]


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("listen_port",), "listen_port", "8448"),
        (("targets", 0), '"a:1"', '"a:1"'),
        (("targets", 1), '"b:2"', '"b:2"'),
        (("targets", 2), "true", "true"),
        (("targets", 3), "1979-05-27", "1979-05-27"),
        (("protocols",), "protocols", "protocols"),
        (("protocols", "tls1"), "tls1", "tls1"),
        (("protocols", "tls1", "protocol"), "protocol", "'tls'"),
        (("protocols", "tls1", "quoted key"), '"quoted key"', "{ inner.key = 1, list = [ [2] ] }"),
        (("protocols", "tls1", "quoted key", "inner", "key"), "key", "1"),
        (("protocols", "tls1", "quoted key", "list", 0, 0), "2", "2"),
        (("protocols", "two words"), '"two words"', '"two words"'),
        (("protocols", "two words", "protocol"), "protocol", '"""\nssh"""'),
        (("protocols", "several", 1, "n"), "n", "0x2"),
        (("admin", "listen"), "listen", '""'),
    ],
)
def test_every_key_and_value_has_its_place(path: Path, key: str, value: str) -> None:
    document = read_toml(TEXT)

    assert key_text(document, *path) == key
    assert value_text(document, *path) == value


def test_what_is_missing_is_where_its_table_is() -> None:
    document = read_toml(TEXT)

    assert key_text(document, "protocols", "tls1", "target") == "tls1"
    assert value_text(document, "targets", 9) == TEXT[TEXT.index("[") : TEXT.index("]") + 1]
    assert document.locate_key(("tcp_target",)) == Span(0, 0)


def test_parts_of_a_table_that_lie_apart_are_one_table() -> None:
    data = read_toml("[p.a]\nx = 1\n[q]\n[p.b]\nx = 2\n[r]\n[p.a.c]\nx = 3\n").data

    assert data == {"p": {"a": {"x": 1, "c": {"x": 3}}, "b": {"x": 2}}, "q": {}, "r": {}}


def test_line_ends_of_other_systems_do_not_move_places() -> None:
    document = read_toml("a = 1\r\n\r\n[b]\r\n  c = 'x'\r\n")

    assert value_text(document, "b", "c") == "'x'"


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a = 1\nb = 2\na = 3\n", "a is defined twice", "a"),
        ("[p.a]\nx = 1\n[q]\n[p.a]\nx = 2\n", "a is defined twice", "a"),
        ("[p]\nx = 1\nx = 2", "x is defined twice", "x"),
        ("a = {b = 1, b = 2}", "b is defined twice", "b"),
        ("a = tls", "tls is not a value; text needs quotes", "tls"),
        ("a = 127.0.0.1:80", "invalid number", "127.0.0.1:80"),
        ("a = 1979-99-99", "invalid date", "1979-99-99"),
        ("a = 00\n", "invalid number", "00"),
        ("a = [1, x]", "x is not a value; text needs quotes", "x"),
        ("a = 1 b = 2", "unexpected character: 'b'", "b"),
        ("a = 'x\nb = 1", "a string must end on the line it begins on", "\n"),
        ("[a\nb = 1", "unexpected end of line", "\n"),
        ("a = \n", "unexpected end of line", "\n"),
        ("= 1", "empty key", "="),
        ("[]", "empty table name", "]"),
        ('a = "\\q"', "invalid character 'q' in string", "q"),
        ("listen_port", "the file ends in the middle of a statement", ""),
        ("a = 'x", "the file ends in the middle of a statement", ""),
        ("a = [1,\r\n\r\n", "the file ends in the middle of a statement", ""),
        ("a = 1\x00", "invalid number", "1\x00"),
        ("# \x0b\x0c\na = x", "control characters", "\x0b"),
        ("# \u2028\na = x y", "x is not a value", "x"),
        ("# \u2028\n\u2028", "empty key", "\u2028"),
        ("a = " + "[" * 200, "TOML value nested more than 100 levels deep", "["),
        (".".join("a" * 200) + " = 1", "TOML key nested more than 100 levels deep", "."),
    ],
)
def test_text_that_is_not_toml_is_refused_at_its_place(text: str, message: str, place: str) -> None:
    with pytest.raises(TomlError) as caught:
        read_toml(text)

    assert message in caught.value.message
    assert text[caught.value.span.start : caught.value.span.end] == place


def test_text_nested_too_deeply_for_the_machine_is_refused() -> None:
    dotted = ".".join("b" * 90)

    with pytest.raises(TomlError, match="nested too deeply"):
        read_toml("a = " + f"{{{dotted} = " * 90 + "1" + "}" * 90)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[a.b]]\n[b.a]\n[a.b.a]", "b is defined twice"),
        ("[x]\na.b = 1\n[x.a]\nc = 1", "redefinition of an existing table"),
        ('a.b = [{a=1}]\n["a"]\nb.a = {a = 1}\n["a"]\n[[b]]', "redefinition of an existing table"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(text: str, message: str) -> None:
    with pytest.raises(TomlError, match=message):
        read_toml(text)


def test_a_fault_of_the_library_is_an_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_: Parser) -> None:
        raise LookupError

    monkeypatch.setattr(Parser, "parse", parse)

    with pytest.raises(TomlError, match="LookupError"):
        read_toml("a = 1")


def test_the_later_one_of_two_definitions_is_at_fault() -> None:
    with pytest.raises(TomlError) as caught:
        read_toml("a = 1\nb = 2\na = 3\n")

    assert caught.value.span == Span(12, 13)


def test_tomlkit_still_calls_the_private_methods_that_places_come_from() -> None:
    """When this fails, tomlkit has changed: places are guesses until positions.py follows."""
    assert callable(getattr(Parser, "_parse_value", None))
    assert callable(getattr(Parser, "_parse_simple_key", None))
    assert isinstance(getattr(Parser, "_idx", None), property)
    assert read_toml("a = 1").values == {("a",): Span(4, 5)}
    assert read_toml("a = 1").keys == {("a",): Span(0, 1)}


def test_without_those_methods_places_are_found_by_searching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Parser, "_idx")

    assert read_toml("a.b = 1") == Document("a.b = 1", {"a": {"b": 1}})

    with pytest.raises(TomlError) as caught:
        read_toml("a = 1\na = 2")
    assert caught.value.span == Span(0, 0)

    document = Document(TEXT)
    assert key_text(document, "protocols", "tls1", "protocol") == "protocol"
    assert document.locate_key(("protocols", "tls1", "protocol")).start == TEXT.index("protocol = 'tls'")
    assert document.locate_value(("nowhere",)) == Span(0, 0)


def outcome(text: str) -> Document | TomlError:
    try:
        return read_toml(text)
    except TomlError as error:
        return error


@given(st.text())
def test_any_text_is_read_or_refused_at_a_place_in_it(text: str) -> None:
    result = outcome(text)

    if isinstance(result, TomlError):
        assert 0 <= result.span.start <= min(result.span.end, len(text))
    else:
        assert all(0 <= span.start < span.end <= len(text) for span in result.keys.values())


PIECES = ["a", "b.c", "[", "]", "{", "}", "=", ",", "'", '"', '"""', "#", "1", "0x", "1979-05-27", "T", "inf", "\\"]


@given(st.lists(st.sampled_from([*PIECES, "\n", "\r\n", " ", "\0", "\ufeff"]), max_size=40))
def test_any_mixture_of_the_pieces_of_toml_is_read_or_refused(pieces: list[str]) -> None:
    result = outcome("".join(pieces))

    assert isinstance(result, Document) or result.message.startswith("invalid TOML: ")
