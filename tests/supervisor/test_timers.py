from __future__ import annotations

import math

from rpxy_l4.supervisor.timers import Timers


def a() -> None: ...


def b() -> None: ...


def test_without_an_appointment_nothing_is_due() -> None:
    timers = Timers()

    assert timers.next == math.inf
    assert list(timers.due(1e9)) == []


def test_what_is_due_comes_once_and_the_earliest_first() -> None:
    timers = Timers()
    timers.set(a, 3.0)
    timers.set(b, 2.0)

    assert timers.next == 2.0
    assert list(timers.due(1.9)) == []
    assert list(timers.due(3.0)) == [b, a]
    assert list(timers.due(3.0)) == []
    assert timers.next == math.inf


def test_a_later_wish_replaces_the_earlier_one() -> None:
    timers = Timers()
    timers.set(a, 1.0)
    timers.set(a, 5.0)

    assert list(timers.due(4.0)) == []
    assert list(timers.due(5.0)) == [a]


def test_a_cancelled_call_is_not_made_and_cancelling_nothing_is_no_fault() -> None:
    timers = Timers()
    timers.set(a, 1.0)
    timers.cancel(a)
    timers.cancel(b)

    assert list(timers.due(1.0)) == []


def test_a_call_may_cancel_another_that_is_due_with_it() -> None:
    timers = Timers()
    timers.set(a, 1.0)
    timers.set(b, 2.0)

    for call in timers.due(9.0):
        assert call is a
        timers.cancel(b)


def test_a_call_may_put_off_another_that_is_due_with_it() -> None:
    timers = Timers()
    timers.set(a, 1.0)
    timers.set(b, 2.0)

    made = []
    for call in timers.due(9.0):
        made.append(call)
        timers.set(b, 10.0)

    assert made == [a]
    assert timers.next == 10.0


def test_a_call_that_makes_its_next_appointment_is_not_made_twice_at_once() -> None:
    timers = Timers()
    timers.set(a, 1.0)

    made = []
    for call in timers.due(9.0):
        made.append(call)
        timers.set(a, 2.0)

    assert made == [a]
    assert list(timers.due(9.0)) == [a]


def test_methods_of_one_object_are_told_apart_and_found_again() -> None:
    class Owner:
        def one(self) -> None: ...

        def other(self) -> None: ...

    owner = Owner()
    timers = Timers()
    timers.set(owner.one, 1.0)
    timers.set(owner.other, 1.0)
    timers.cancel(owner.one)

    assert list(timers.due(1.0)) == [owner.other]
