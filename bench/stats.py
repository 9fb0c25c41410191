"""The little statistics that the report needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_UNCERTAIN: Final = 0.05


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one thing."""

    median: float
    spread: float
    """Half of the distance between the smallest and the largest, as a part of the median."""


@dataclass(frozen=True)
class Comparison:
    """One thing by another, both measured in turn."""

    median: float
    bounds: tuple[float, float] | None
    """Between these is, with 95 % certainty, what the median of ever more runs would be. None: there are too few."""


def compare(ones: Sequence[float | None], others: Sequence[float | None]) -> Comparison | None:
    """Return the ratio of each run to the run of the other in the same round; None where there is none.

    What makes a machine slower for a while hits both, so these swing less than what they are ratios of. The bounds are
    order statistics: nothing is assumed of how the ratios are spread.
    """
    ratios = sorted(found for one, other in zip(ones, others, strict=False) if (found := ratio(one, other)) is not None)
    if not ratios:
        return None
    rank = _rank(len(ratios))
    return Comparison(statistics.median(ratios), None if rank is None else (ratios[rank], ratios[-1 - rank]))


def _rank(count: int) -> int | None:
    """Return the greatest so that the median is between this one from either end; None when not even the extremes do.

    So many of the values, or fewer, are on one side of the median with the probability of as many heads among tosses.
    """
    rank, probability = None, 0.0
    for heads in range(count):
        probability += math.comb(count, heads) / 2**count
        if probability > _UNCERTAIN / 2:
            break
        rank = heads
    return rank


def summarize(values: Sequence[float | None]) -> Summary | None:
    """Return the median and the spread of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    median = statistics.median(known)
    half = (max(known) - min(known)) / 2
    return Summary(median, half / median if median else 0.0)


def ratio(one: float | None, other: float | None) -> float | None:
    """Return ``one / other``; None where either is missing or there is nothing to compare with."""
    return None if one is None or not other else one / other


def least(values: Iterable[float | None]) -> float | None:
    """Return the smallest of the values that are there."""
    return min((value for value in values if value is not None), default=None)
