"""Real forks. Every child ends when its channel does."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Final

import pytest

from rpxy_l4.control import Draining, ReopenLogs
from rpxy_l4.net.channel import Channel
from rpxy_l4.supervisor.children import Child, close_inherited, start
from rpxy_l4.supervisor.signals import SIGNALS
from rpxy_l4.supervisor.status import ExitStatus
from tests.support.descriptors import open_descriptors

PATIENCE: Final = 10.0


def wait_readable(what: int | Channel) -> None:
    assert select.select([what], [], [], PATIENCE)[0]


def end(child: Child) -> int:
    wait_readable(child.descriptor)
    return child.end().exit_code


def test_a_child_runs_what_it_was_given_and_its_result_is_the_exit_status() -> None:
    assert end(start(lambda _: 7)) == 7


def test_a_fault_in_a_child_ends_only_the_child() -> None:
    def fail(channel: Channel) -> int:
        raise KeyError(channel)

    assert end(start(fail)) == ExitStatus.INTERNAL


def test_a_signal_that_ends_a_child_is_a_negative_exit_status() -> None:
    def die(_: Channel) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert end(start(die)) == -signal.SIGKILL


def test_what_a_child_used_of_the_processor_is_known_when_it_has_ended() -> None:
    def work(_: Channel) -> int:
        while time.process_time() < 0.05:
            pass
        return 0

    child = start(work)
    wait_readable(child.descriptor)
    death = child.end()

    assert 0.04 < death.cpu_user + death.cpu_system < 5


def test_both_ends_can_talk() -> None:
    def echo(channel: Channel) -> int:
        wait_readable(channel)
        received = channel.receive()
        assert received is not None
        channel.send(Draining() if received[0] == ReopenLogs() else ReopenLogs())
        return 0

    child = start(echo)
    assert child.send(ReopenLogs())
    wait_readable(child.channel)
    assert child.channel.receive() == (Draining(), [])
    assert end(child) == 0


def test_disconnecting_is_the_end_of_the_channel_for_the_child() -> None:
    def wait(channel: Channel) -> int:
        wait_readable(channel)
        return 3 if channel.receive() is None else 4

    child = start(wait)
    child.disconnect()
    assert not child.send(ReopenLogs())
    assert end(child) == 3


def test_a_child_begins_with_the_signals_blocked_and_the_parent_goes_on_without() -> None:
    def count_blocked(_: Channel) -> int:
        return len(signal.pthread_sigmask(signal.SIG_BLOCK, []) & SIGNALS.keys())

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert end(start(count_blocked)) == len(SIGNALS)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_child_lets_go_of_all_it_inherited_but_what_it_is_to_keep() -> None:
    def look(channel: Channel) -> int:
        close_inherited([channel.fileno()])
        return len(open_descriptors() - {0, 1, 2, channel.fileno()})

    reader, writer = os.pipe()
    child = start(look)
    assert end(child) == 0
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("rounds", [20])
def test_nothing_is_left_of_children_that_have_ended(rounds: int) -> None:
    before = open_descriptors()
    for _ in range(rounds):
        end(start(lambda _: 0))

    assert open_descriptors() == before
