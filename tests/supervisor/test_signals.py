from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from rpxy_l4.supervisor.signals import SIGNALS, Order, SignalInbox


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


def test_signals_without_a_meaning_do_nothing(inbox: SignalInbox) -> None:
    for number, meaning in SIGNALS.items():
        if meaning.order is Order.NOTHING:
            os.kill(os.getpid(), number)

    assert inbox.receive() == []


def test_every_signal_that_would_end_or_stop_the_process_by_accident_has_a_line() -> None:
    assert {signal.SIGUSR2, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU} <= SIGNALS.keys()


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
