"""The little statistics that the report needs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one thing."""

    median: float
    spread: float
    """Half of the distance between the smallest and the largest, as a part of the median."""


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
