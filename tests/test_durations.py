from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.durations import MAX_SECONDS, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("299ms", 0.299),
        ("0s", 0.0),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("007s", 7.0),
        (0, 0.0),
        (90, 90.0),
        (MAX_SECONDS, float(MAX_SECONDS)),
        (f"{MAX_SECONDS}s", float(MAX_SECONDS)),
        *((f"2{unit}", 2.0) for unit in ("s", "sec", "secs", "second", "seconds", "S", "SECONDS", "Sec")),
        *((f"2{unit}", 120.0) for unit in ("m", "min", "mins", "minute", "minutes", "M", "Min")),
        *((f"2{unit}", 7200.0) for unit in ("h", "hr", "hrs", "hour", "hours", "H", "HRS")),
    ],
)
def test_a_duration_is_read_in_seconds(written: str | int, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "3", "3 s", " 3s", "3s ", "3s\n", "1.5s", "1h30m", "-1s", "+1s", "3d", "٣s", "1_0s"]
)
def test_anything_else_is_refused_with_the_forms_that_are_known(written: str) -> None:
    with pytest.raises(ValueError, match='is not a duration; write "250ms", "30s", "5m", "1h" or whole seconds'):
        parse_duration(written)


@pytest.mark.parametrize("written", [-1, MAX_SECONDS + 1, f"{MAX_SECONDS + 1}s", "99999999h", "9" * 5000 + "s"])
def test_a_duration_out_of_range_is_refused(written: str | int) -> None:
    with pytest.raises(ValueError, match="from 0 to 4294967295 seconds"):
        parse_duration(written)


@given(st.one_of(st.text(), st.integers(), st.from_regex(r"[0-9]{1,20}[a-z]{0,4}")))
def test_any_text_or_number_is_a_duration_in_range_or_a_value_error(written: str | int) -> None:
    try:
        seconds = parse_duration(written)
    except ValueError:
        return
    assert 0 <= seconds <= MAX_SECONDS
