"""Signals: what each one means, and how they reach the loop.

A handler does nothing; Python's wake-up descriptor turns each signal into a byte that the loop reads in its own time.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Mapping
from typing import Final, NamedTuple


class Order(enum.Enum):
    """What a signal asks of the supervisor."""

    RELOAD = enum.auto()
    STOP = enum.auto()
    STOP_AT_ONCE = enum.auto()
    REOPEN_LOGS = enum.auto()
    UPGRADE = enum.auto()
    MORE_WORKERS = enum.auto()
    FEWER_WORKERS = enum.auto()
    NOTHING = enum.auto()


class Meaning(NamedTuple):
    """What a signal does."""

    order: Order
    text: str
    """For people; the README has the same words."""


SIGNALS: Final[Mapping[signal.Signals, Meaning]] = {
    signal.SIGHUP: Meaning(Order.RELOAD, "reload the configuration file; a bad one is reported and changes nothing"),
    signal.SIGTERM: Meaning(
        Order.STOP, "stop accepting, let sessions end for up to `drain_timeout`; a second one stops at once"
    ),
    signal.SIGINT: Meaning(Order.STOP, "same as TERM"),
    signal.SIGQUIT: Meaning(Order.STOP_AT_ONCE, "stop at once"),
    signal.SIGUSR1: Meaning(Order.REOPEN_LOGS, "open the log files again, after they were rotated"),
    signal.SIGUSR2: Meaning(
        Order.UPGRADE, "run the program's newest version in place; what it cannot take over is said and changes nothing"
    ),
    signal.SIGTTIN: Meaning(Order.MORE_WORKERS, "one worker more, up to `slots`"),
    signal.SIGTTOU: Meaning(
        Order.FEWER_WORKERS, "one worker less; it finishes its TCP sessions, for up to `drain_timeout`"
    ),
    signal.SIGPIPE: Meaning(Order.NOTHING, "ignored"),
}

# Left alone until the inbox is there: to stop a program that does not serve yet, nothing has to be put in order.
_HELD: Final = frozenset(
    number for number, meaning in SIGNALS.items() if meaning.order not in (Order.STOP, Order.STOP_AT_ONCE)
)

# More signals than this between two turns of the loop mean the same again.
_MANY: Final = 512


def hold() -> None:
    """Keep what does not stop the program waiting for :class:`SignalInbox`; without it, HUP would end the process.

    For the very begin of a process that is going to serve. What stops it goes on to do so, an interrupt without the
    traceback that Python shows for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def name_of(number: int) -> str:
    """Return the name of a signal, any number there may be: most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class SignalInbox:
    """Every signal of the table, as readable bytes. One per process."""

    def __init__(self) -> None:
        """Take over the signals of the table, those that wait included."""
        self._receiver, self._sender = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        for number, meaning in SIGNALS.items():
            signal.signal(number, signal.SIG_IGN if meaning.order is Order.NOTHING else lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._receiver

    def receive(self) -> list[Order]:
        """Return what the signals since the last call ask for, oldest first; empty when none has come."""
        return [SIGNALS[number].order for number in self._read()]

    def put_back(self) -> None:
        """Have the signals since the last :meth:`receive` come once more.

        For while they are blocked: they then wait for a program that is executed in this process.
        """
        for number in self._read():
            signal.raise_signal(number)

    def _read(self) -> list[signal.Signals]:
        try:
            numbers = os.read(self._receiver, _MANY)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers if number in SIGNALS]

    def leave_to_parent(self) -> None:
        """In a forked child: ignore the signals of the table and close the inbox.

        A terminal signals the whole group of processes; what that means is the supervisor's to decide. Until this is
        called, and while signals are not blocked, a child would write into its parent's inbox.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.close()

    def close(self) -> None:
        """Close both ends. The handlers stay, and do nothing."""
        signal.set_wakeup_fd(-1)
        os.close(self._receiver)
        os.close(self._sender)
