"""Rates: of log lines about the same thing, and of new sessions. Pure: the time is an argument."""

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


class TokenBucket:
    """Lets ``rate`` events a second pass, and after a quiet time one second's worth at once; never less than one.

    Several processes can go by one limit without a lock: each has a bucket of its own, and tells it how many events all
    of them together have let pass. Two that take the last token at the same moment leave a debt, which is paid before
    the next event passes; so the rate holds whatever the moment.
    """

    def __init__(self, rate: float, now: float, passed: int) -> None:
        """Begin full at ``now``, in seconds; ``passed`` is how many events have passed in all until then."""
        self._rate = rate
        self._burst = max(1.0, rate)
        self._level = self._burst
        self._at = now
        self._passed = passed

    def delay(self, now: float, passed: int) -> float:
        """Return in how many seconds another event may pass, 0.0 for at once.

        ``passed`` is a counter: what has passed anywhere, those included that this bucket was asked about.
        """
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - (passed - self._passed)
        self._at = now
        self._passed = passed
        return max(0.0, (1.0 - self._level) / self._rate)
