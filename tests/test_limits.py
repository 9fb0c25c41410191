from __future__ import annotations

from rpxy_l4.limits import RateLimit


def test_a_burst_passes_and_the_rest_of_the_window_is_suppressed() -> None:
    limit = RateLimit(burst=2, window=10.0)

    assert [limit.allow("a", 0.0) for _ in range(4)] == [0, 0, None, None]


def test_the_first_event_after_the_window_tells_how_many_were_suppressed() -> None:
    limit = RateLimit(burst=2, window=10.0)
    for _ in range(5):
        limit.allow("a", 1.0)

    assert limit.allow("a", 11.0) == 3
    assert limit.allow("a", 11.0) == 0


def test_kinds_do_not_share_a_burst() -> None:
    limit = RateLimit(burst=1, window=10.0)

    assert limit.allow("a", 0.0) == 0
    assert limit.allow("b", 0.0) == 0
    assert limit.allow("a", 0.0) is None


def test_a_quiet_window_leaves_nothing_to_tell() -> None:
    limit = RateLimit(burst=3, window=1.0)
    limit.allow("a", 0.0)

    assert limit.allow("a", 5.0) == 0
