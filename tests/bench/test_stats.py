from __future__ import annotations

import pytest

from bench.stats import least, ratio, summarize


def test_the_median_of_a_few_runs_does_not_follow_the_one_that_was_disturbed() -> None:
    summary = summarize([10.0, 11.0, 30.0])

    assert summary is not None
    assert summary.median == 11.0


def test_the_spread_is_half_of_the_distance_between_the_extremes() -> None:
    summary = summarize([9.0, 10.0, 11.0])

    assert summary is not None
    assert summary.spread == pytest.approx(0.1)


def test_runs_without_a_figure_do_not_count() -> None:
    summary = summarize([None, 4.0])

    assert summary is not None
    assert (summary.median, summary.spread) == (4.0, 0.0)


def test_nothing_measured_has_no_summary() -> None:
    assert summarize([]) is None
    assert summarize([None]) is None


def test_a_median_of_zero_has_no_spread() -> None:
    summary = summarize([0.0, 0.0])

    assert summary is not None
    assert summary.spread == 0.0


def test_a_ratio_needs_both_sides() -> None:
    assert ratio(1.0, 2.0) == 0.5
    assert ratio(None, 2.0) is None
    assert ratio(1.0, None) is None
    assert ratio(1.0, 0.0) is None


def test_the_least_of_what_is_there() -> None:
    assert least([None, 3.0, 2.0]) == 2.0
    assert least([None]) is None
