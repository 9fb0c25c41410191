from __future__ import annotations

from rpxy_l4.limits import RateLimit, TokenBucket


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


def test_a_second_s_worth_passes_at_once_and_then_the_rate_holds() -> None:
    bucket = TokenBucket(rate=4.0, now=10.0, passed=0)
    passed = 0
    while bucket.delay(10.0, passed) == 0.0:
        passed += 1
    assert passed == 4

    assert bucket.delay(10.0, passed) == 0.25
    assert bucket.delay(10.125, passed) == 0.125
    assert bucket.delay(10.25, passed) == 0.0
    assert bucket.delay(10.25, passed + 1) == 0.25


def test_a_long_quiet_time_saves_up_no_more_than_a_second_s_worth() -> None:
    bucket = TokenBucket(rate=2.0, now=0.0, passed=7)

    assert bucket.delay(1000.0, 9) == 0.5


def test_what_others_let_pass_counts_and_too_much_of_it_is_a_debt() -> None:
    bucket = TokenBucket(rate=2.0, now=0.0, passed=0)

    assert bucket.delay(0.0, 4) == 1.5


def test_a_rate_below_one_lets_one_pass_at_a_time() -> None:
    bucket = TokenBucket(rate=0.5, now=0.0, passed=0)

    assert bucket.delay(0.0, 0) == 0.0
    assert bucket.delay(0.0, 1) == 2.0
