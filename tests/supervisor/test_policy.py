from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from rpxy_l4.supervisor.policy import (
    ABORT_GRACE,
    ADMIN,
    ANSWER_TIMEOUT,
    BACK_OFF,
    HEARTBEAT_TIMEOUT,
    LATE,
    SECOND_LOOK,
    STEADY,
    Abort,
    Decision,
    Dismiss,
    Finish,
    Kill,
    Seat,
    Spawn,
    Suspect,
    back_off,
    cause_of_death,
    decide,
    grace_after,
)

NOW = 1000.0


def worker(number: int = 0, *, born: float = NOW - 100, beat: float = NOW - 1, **changes: float | None) -> Seat:
    return Seat(number, occupied=True, born=born, beat=beat, **changes)  # type: ignore[arg-type]  # by name


def admin(kill_at: float | None = None, beat: float = NOW) -> Seat:
    return Seat(ADMIN, occupied=True, born=NOW - 100, beat=beat, kill_at=kill_at)


def suspects(*seats: Seat, now: float) -> list[int]:
    """The seats suspected now. This is noted in them, as the loop does it."""
    actions = decide(seats, stopping=False, now=now).actions
    found = [action.number for action in actions if isinstance(action, Suspect)]
    assert len(found) == len(actions), actions
    for seat in seats:
        if seat.number in found:
            seat.suspected = now
    return found


def test_every_empty_seat_is_filled_at_once() -> None:
    seats = [Seat(ADMIN), Seat(0), Seat(1)]

    assert decide(seats, stopping=False, now=NOW) == Decision((Spawn(ADMIN), Spawn(0), Spawn(1)))


def test_a_seat_that_backs_off_is_filled_when_its_time_has_come() -> None:
    seats = [Seat(0, fill_at=NOW + 5)]

    assert decide(seats, stopping=False, now=NOW) == Decision((), wake_at=NOW + 5)
    assert decide(seats, stopping=False, now=NOW + 5).actions == (Spawn(0),)


def test_workers_that_beat_are_left_alone_until_they_could_be_late() -> None:
    seats = [admin(), worker(0, beat=NOW - 1), worker(1, beat=NOW - 3), admin(beat=NOW - 2)]

    assert decide(seats, stopping=False, now=NOW) == Decision((), wake_at=NOW - 3 + HEARTBEAT_TIMEOUT)


@pytest.mark.parametrize("make", [partial(worker, 1), admin])
def test_a_silent_child_is_suspected_first_and_aborted_when_it_stays_silent(make: Callable[..., Seat]) -> None:
    silent = make(beat=NOW - HEARTBEAT_TIMEOUT)

    assert suspects(worker(0), silent, now=NOW) == [silent.number]
    assert decide([silent], stopping=False, now=NOW) == Decision((), wake_at=NOW + SECOND_LOOK)
    assert decide([silent], stopping=False, now=NOW + SECOND_LOOK).actions == (
        Abort(silent.number, "no heartbeat for 11 s"),
    )


def test_a_suspect_that_beats_again_is_free() -> None:
    seat = worker(beat=NOW - HEARTBEAT_TIMEOUT)
    assert suspects(seat, now=NOW) == [0]
    seat.beat = NOW + 0.5

    assert decide([seat], stopping=False, now=NOW + SECOND_LOOK) == Decision((), NOW + 0.5 + HEARTBEAT_TIMEOUT)


def test_an_old_suspicion_does_not_count_when_it_is_silent_again() -> None:
    seat = worker(beat=NOW - HEARTBEAT_TIMEOUT)
    assert suspects(seat, now=NOW) == [0]
    seat.beat = NOW + 0.5

    assert suspects(seat, now=NOW + 60) == [0]


def test_of_a_group_that_stood_still_nobody_is_aborted_before_it_could_run() -> None:
    # The last turn was just before the stop, and the workers had beaten a second before: this is not late enough for
    # a grace, and yet everybody is silent.
    before, after = NOW, NOW + 10.7
    seats = [worker(number, beat=before - 1) for number in (0, 1)]
    planned = decide(seats, stopping=False, now=before).wake_at
    assert grace_after(planned, after) == -math.inf

    assert suspects(*seats, now=after) == [0, 1]
    for seat in seats:
        seat.beat = after + 0.01

    assert decide(seats, stopping=False, now=after + SECOND_LOOK).actions == ()


def test_a_new_worker_has_the_same_time_to_beat_for_the_first_time() -> None:
    born = worker(born=NOW, beat=0.0)

    assert decide([born], stopping=False, now=NOW) == Decision((), wake_at=NOW + HEARTBEAT_TIMEOUT)
    assert suspects(born, now=NOW + HEARTBEAT_TIMEOUT) == [0]


def test_a_worker_that_beats_but_does_not_take_its_configuration_is_aborted() -> None:
    deaf = worker(beat=NOW + ANSWER_TIMEOUT, asked=NOW)

    assert decide([deaf], stopping=False, now=NOW + ANSWER_TIMEOUT - 1).actions == ()
    assert suspects(deaf, now=NOW + ANSWER_TIMEOUT) == [0]
    assert decide([deaf], stopping=False, now=NOW + ANSWER_TIMEOUT) == Decision((), NOW + ANSWER_TIMEOUT + SECOND_LOOK)
    assert decide([deaf], stopping=False, now=NOW + ANSWER_TIMEOUT + SECOND_LOOK).actions == (
        Abort(0, "does not take its configuration"),
    )


def test_a_worker_that_neither_hands_its_slots_over_nor_takes_others_is_aborted() -> None:
    stuck = worker(beat=NOW, slots_due_by=NOW + 5)

    assert decide([stuck], stopping=False, now=NOW + 4) == Decision((), NOW + 5)
    assert decide([stuck], stopping=False, now=NOW + 5, grace=NOW).actions == ()
    assert suspects(stuck, now=NOW + 5) == [0]
    assert decide([stuck], stopping=False, now=NOW + 5 + SECOND_LOOK).actions == (
        Abort(0, "does not hand over its slots, or take others"),
    )


def test_silence_before_the_grace_is_forgiven() -> None:
    silent = worker(beat=NOW - 3600, asked=NOW - 3600)

    assert decide([silent], stopping=False, now=NOW, grace=NOW) == Decision((), wake_at=NOW + HEARTBEAT_TIMEOUT)


def test_an_aborted_worker_is_killed_after_a_moment_and_only_once() -> None:
    aborted = worker(beat=NOW - 60, kill_at=NOW + ABORT_GRACE)

    assert decide([aborted], stopping=False, now=NOW) == Decision((), wake_at=NOW + ABORT_GRACE)
    assert decide([aborted], stopping=False, now=NOW + ABORT_GRACE).actions == (Kill(0),)
    aborted.kill_at = math.inf
    assert decide([aborted], stopping=False, now=NOW + 3600) == Decision()


def test_while_stopping_nothing_is_started_and_a_drain_is_waited_for() -> None:
    seats = [admin(beat=NOW + 30), Seat(0), worker(1, beat=NOW - 60, kill_at=NOW + 32)]

    assert decide(seats, stopping=True, now=NOW) == Decision((), wake_at=NOW + 32)
    assert decide(seats, stopping=True, now=NOW + 32).actions == (Kill(1),)


def test_the_admin_process_is_dismissed_when_the_last_worker_has_gone() -> None:
    assert decide([admin(), Seat(0)], stopping=True, now=NOW).actions == (Dismiss(ADMIN),)
    assert decide([admin(NOW + 1), Seat(0)], stopping=True, now=NOW) == Decision((), wake_at=NOW + 1)
    assert decide([admin(NOW + 1), Seat(0)], stopping=True, now=NOW + 1).actions == (Kill(ADMIN),)


def test_the_supervisor_ends_when_nobody_is_left() -> None:
    assert decide([Seat(ADMIN), Seat(0)], stopping=True, now=NOW).actions == (Finish(),)


def test_a_worker_that_fails_at_once_is_started_ever_more_slowly() -> None:
    delays, short_lives = [], 0
    for _ in range(6):
        delay, short_lives = back_off(short_lives, lived=0.01)
        delays.append(delay)

    assert delays == [*BACK_OFF, BACK_OFF[-1], BACK_OFF[-1]]
    assert BACK_OFF == (0.0, 0.1, 1.0, 5.0)


def test_a_steady_life_wipes_the_slate_clean() -> None:
    assert back_off(5, lived=STEADY) == (0.0, 0)


@pytest.mark.parametrize(
    ("exit_code", "hung", "cause"),
    [(0, False, "exit"), (1, False, "exit"), (-9, False, "signal"), (-6, True, "heartbeat"), (-9, True, "heartbeat")],
)
def test_the_cause_of_a_death(exit_code: int, cause: str, *, hung: bool) -> None:
    assert cause_of_death(exit_code, hung=hung) == cause


def test_waking_in_time_gives_no_grace() -> None:
    assert grace_after(planned=NOW, now=NOW - 5) == -math.inf
    assert grace_after(planned=NOW, now=NOW + LATE) == -math.inf
    assert grace_after(planned=math.inf, now=NOW) == -math.inf


def test_waking_much_too_late_means_that_everybody_stood_still() -> None:
    assert grace_after(planned=NOW, now=NOW + 3600) == NOW + 3600
