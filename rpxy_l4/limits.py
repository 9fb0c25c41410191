"""A rate limit for log lines about the same thing. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Hashable


class RateLimit:
    """Lets ``burst`` events of a kind pass in each window of ``window`` seconds, and counts the rest.

    The kinds are a closed set chosen by the caller: one entry is kept for each.
    """

    def __init__(self, burst: int, window: float) -> None:
        """Nothing has happened yet."""
        self._burst = burst
        self._window = window
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def allow(self, kind: Hashable, now: float) -> int | None:
        """Return how many of this kind were suppressed since the last that passed; None suppresses this one."""
        start, seen = self._kinds.get(kind, (-self._window, 0))
        if now - start >= self._window:
            self._kinds[kind] = (now, 1)
            return max(0, seen - self._burst)
        self._kinds[kind] = (start, seen + 1)
        return 0 if seen < self._burst else None
