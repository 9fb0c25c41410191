from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest

from rpxy_l4.config.forms import (
    DURATION,
    FLAG,
    POSITIVE_DURATION,
    Form,
    describe,
    did_you_mean,
    member,
    text,
    whole,
    word,
)
from rpxy_l4.snapshot import LoadBalance

WRONG_KINDS: list[Any] = [True, 1, 1.5, "x", [], {}, dt.date(2000, 1, 1), dt.time(1), dt.datetime(2000, 1, 1)]  # noqa: DTZ001  TOML has local ones


def refusal(form: Form, value: object) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        form.read(value)
    return str(caught.value)


def test_the_kinds_of_toml_have_plain_names() -> None:
    assert [describe(value) for value in WRONG_KINDS] == [
        "the boolean true",
        "a whole number",
        "a decimal number",
        "a string",
        "an array",
        "a table",
        "a date or time",
        "a date or time",
        "a date or time",
    ]
    assert describe(None) == "something else"


def test_a_near_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("tlss", ["http", "tls"]) == '; did you mean "tls"?'
    assert did_you_mean("TLS", ["http", "tls"]) == '; did you mean "tls"?'
    assert did_you_mean("zebra", ["http", "tls"]) == ""


def test_a_whole_number_has_bounds() -> None:
    port = whole(1, 65535)

    assert port.read(1) == 1
    assert port.read(65535) == 65535
    assert refusal(port, 0) == "expected a whole number from 1 to 65535, got 0"
    assert refusal(port, -1) == "expected a whole number from 1 to 65535, got -1"
    assert refusal(port, 65536) == "expected a whole number from 1 to 65535, got 65536"
    assert refusal(port, 1 << 100_000) == "expected a whole number from 1 to 65535, got a number far outside"
    assert port.json == {"type": "integer", "minimum": 1, "maximum": 65535}


def test_a_value_of_another_kind_is_refused_by_the_name_of_its_kind() -> None:
    for value in WRONG_KINDS:
        got = f", got {describe(value)}"
        if type(value) is not int:
            assert refusal(whole(1, 9), value).endswith(got)
        if type(value) is not str:
            assert refusal(text("a word", str), value) == f"expected a word{got}"
        if type(value) is not bool:
            assert refusal(FLAG, value) == f"expected true or false, without quotes{got}"
        if type(value) not in (int, str):
            assert refusal(DURATION, value).endswith(got)


def test_one_word_of_a_few_has_a_meaning() -> None:
    form = word("answer", {"yes": True, "no": False})

    assert form.read("yes") is True
    assert form.read("no") is False
    assert refusal(form, "Yes") == 'unknown answer "Yes"; did you mean "yes"?'
    assert refusal(form, "perhaps") == 'unknown answer "perhaps"; expected one of "yes", "no"'
    assert refusal(form, 1) == 'expected one of "yes", "no", got a whole number'
    assert form.json == {"type": "string", "enum": ["yes", "no"]}


def test_a_word_in_any_case_has_a_pattern_for_it() -> None:
    form = word("version", {"v1": 1, "1": 1}, any_case=True)

    assert form.read("V1") == form.read("v1") == form.read("1") == 1
    assert re.search(form.json["pattern"], "V1")
    assert not re.search(form.json["pattern"], "v11")


def test_an_enumeration_is_read_by_its_values() -> None:
    assert member("load balance", LoadBalance).read("source_ip") is LoadBalance.SOURCE_IP


def test_a_duration_is_a_string_with_a_unit_or_whole_seconds() -> None:
    assert DURATION.read("250ms") == 0.25
    assert DURATION.read(3) == 3.0
    assert DURATION.read(0) == 0.0
    assert POSITIVE_DURATION.read("1ms") == 0.001
    assert refusal(POSITIVE_DURATION, 0) == "expected a duration longer than 0"
    assert refusal(DURATION, "3") == '"3" is not a duration; write "250ms", "30s", "5m", "1h" or whole seconds'
    pattern = DURATION.json["anyOf"][1]["pattern"]
    assert re.search(pattern, "5Min")
    assert not re.search(pattern, "5")
