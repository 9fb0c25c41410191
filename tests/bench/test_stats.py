from __future__ import annotations

import pytest

from bench.stats import compare, least, ratio, summarize


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


def test_runs_are_compared_round_by_round() -> None:
    found = compare([10.0, 20.0, 40.0, 1.0], [5.0, 10.0, 20.0, None])

    assert found is not None
    assert (found.median, found.bounds) == (2.0, None)


# The ranks are those of tables of the sign test.
@pytest.mark.parametrize(
    ("count", "bounds"), [(1, None), (5, None), (6, (1.0, 6.0)), (20, (6.0, 15.0)), (100, (40.0, 61.0))]
)
def test_a_median_is_known_the_better_the_more_often_it_was_measured(
    count: int, bounds: tuple[float, float] | None
) -> None:
    found = compare([float(number) for number in range(1, count + 1)], [1.0] * count)

    assert found is not None
    assert found.bounds == bounds


def test_what_was_not_measured_is_not_compared() -> None:
    assert compare([], [1.0]) is None
    assert compare([1.0], [None]) is None


def test_the_least_of_what_is_there() -> None:
    assert least([None, 3.0, 2.0]) == 2.0
    assert least([None]) is None
