from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from rpxy_l4.supervisor.signals import SIGNALS, Order, SignalInbox, hold, name_of


@pytest.fixture
def inbox() -> Iterator[SignalInbox]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    opened = SignalInbox()
    yield opened
    opened.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_become_orders_in_the_order_they_came(inbox: SignalInbox) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(os.getpid(), number)

    assert select.select([inbox], [], [], 5)[0]
    assert inbox.receive() == [Order.RELOAD, Order.STOP, Order.STOP, Order.STOP_AT_ONCE, Order.REOPEN_LOGS]
    assert inbox.receive() == []


def test_signals_that_were_not_heard_can_wait_for_another_program(inbox: SignalInbox) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    assert select.select([inbox], [], [], 5)[0]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        inbox.put_back()
        assert signal.sigpending() == {signal.SIGHUP}
        assert inbox.receive() == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert inbox.receive() == [Order.RELOAD]


def test_signals_without_a_meaning_do_nothing(inbox: SignalInbox) -> None:
    for number, meaning in SIGNALS.items():
        if meaning.order is Order.NOTHING:
            os.kill(os.getpid(), number)

    assert inbox.receive() == []


def test_every_signal_that_would_end_or_stop_the_process_by_accident_has_a_line() -> None:
    assert {signal.SIGUSR2, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU} <= SIGNALS.keys()


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (34, "SIGRTMIN"), (35, "signal 35"), (64, "SIGRTMAX"), (99, "signal 99")]
)
def test_every_signal_has_something_to_be_called(number: int, name: str) -> None:
    assert name_of(number) == name


def test_what_comes_before_the_inbox_waits_for_it_unless_it_stops_the_program() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        hold()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        held = SignalInbox()
        select.select([held], [], [], 5)
        os.write(
            writer, b"alive" if {*held.receive()} == {Order.RELOAD, Order.REOPEN_LOGS, Order.UPGRADE} else b"wrong"
        )
        held.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        hold()
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 5) == b"alive"
    os.close(reader)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_a_child_leaves_its_signals_to_the_parent(inbox: SignalInbox) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        inbox.leave_to_parent()
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(writer, b"alive")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 5) == b"alive"
    os.close(reader)
    os.waitpid(child, 0)

    assert inbox.receive() == []
