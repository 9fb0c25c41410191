"""Child processes: starting one, and what the supervisor holds of it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from rpxy_l4.control import Attach, KernelPiece, Message, Place
from rpxy_l4.net.channel import DESCRIPTORS_AT_A_TIME, Channel
from rpxy_l4.net.connection_inbox import InboxEntry
from rpxy_l4.supervisor.signals import SIGNALS
from rpxy_l4.supervisor.sockets import ListeningSockets
from rpxy_l4.supervisor.status import ExitStatus

_LOG: Final = logging.getLogger(__name__)
STANDARD_STREAMS: Final = (0, 1, 2)


class Death(NamedTuple):
    """What remains of a child."""

    exit_code: int
    """Its exit status, negative for a signal."""
    cpu_user: float
    """Seconds, over its whole life."""
    cpu_system: float


@dataclass(slots=True)
class Child:
    """One living child process, worker or admin."""

    pid: int
    descriptor: int
    """A pidfd: readable when the process has ended."""
    channel: Channel
    connected: bool = True
    """Whether the channel is open on both ends."""
    places: frozenset[Place] = frozenset()
    """The listening sockets that it was given."""
    offered: frozenset[Place] = frozenset()
    """Those that it is to have once it answers the last ``Apply``; more may have come after that."""
    confirmed: frozenset[Place] = frozenset()
    """Those that it has confirmed to have."""
    sent: int = 0
    """The last generation it was sent; 0 before the first."""
    order: int = 0
    """The number of the last ``Apply``. An answer to one before does not tell what has come since."""
    applied: int = 0
    """The last generation it has confirmed; 0 before the first."""
    inbox: InboxEntry | None = None
    """The way into the inbox of connections that it was given."""
    colleagues: Mapping[int, InboxEntry] = field(default_factory=dict)
    """The workers that it was told to hand connections to."""
    kernel_path: bytes = b""
    """The token of the kernel path that it was told to use; empty for none."""
    held: frozenset[KernelPiece] = frozenset()
    """What it was told to hold of kernel paths, for the case that the supervisor dies."""
    addresses_due: bool = False
    """It has not been told the newest addresses of names."""
    drain_due: float | None = None
    """It is to drain, within so many seconds, and could not be told."""
    draining: bool = False
    """It accepts nothing new."""
    is_old: bool = False
    """It runs the program that was there before an upgrade, and is to be replaced."""
    hung: bool = False
    """It was aborted because it gave no sign of life."""

    @classmethod
    def of_another_program(cls, pid: int, descriptor: int, channel: int | None, *, draining: bool) -> Child:
        """Return a child that this process had before it executed this program; the descriptors are its own."""
        if channel is None:
            closed = Channel.pair()[0]
            closed.close()
            return cls(pid, descriptor, closed, connected=False, draining=draining, is_old=True)
        return cls(pid, descriptor, Channel.of(channel), draining=draining, is_old=True)

    def send(self, message: Message, descriptors: Iterable[int] = ()) -> bool:
        """Send a message; False when it cannot be delivered."""
        return self.connected and self.channel.send(message, tuple(descriptors))

    def attach(self, places: Sequence[Place], sockets: ListeningSockets) -> bool:
        """Send the listening sockets of these places, as far as it does not have them; False when that failed."""
        new = [place for place in places if place not in self.places]
        for start in range(0, len(new), DESCRIPTORS_AT_A_TIME):
            piece = tuple(new[start : start + DESCRIPTORS_AT_A_TIME])
            if not self.send(Attach(piece), sockets.descriptors(piece)):
                return False
            self.places |= frozenset(piece)
        return True

    def end(self) -> Death:
        """Collect the process, which must have ended, and close what belongs to it."""
        _, status, usage = os.wait4(self.pid, 0)
        self.disconnect()
        os.close(self.descriptor)
        return Death(os.waitstatus_to_exitcode(status), usage.ru_utime, usage.ru_stime)

    def disconnect(self) -> None:
        """Close the channel, which tells the child to end."""
        if self.connected:
            self.connected = False
            self.channel.close()


def start(run: Callable[[Channel], int]) -> Child:
    """Fork a child that does nothing but ``run``, whose result is its exit status.

    It starts with the signals of the table blocked: until it has let go of the parent's wake-up descriptor, a signal to
    the whole group would be written there twice. Raises OSError when the system has no process or descriptor left.
    """
    ours, theirs = Channel.pair()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_child(run, theirs)
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    try:
        return Child(pid, os.pidfd_open(pid), ours)
    except OSError:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _be_child(run: Callable[[Channel], int], channel: Channel) -> NoReturn:
    status: int = ExitStatus.INTERNAL
    try:
        status = run(channel)
    except BaseException:  # noqa: BLE001  whatever it is, it must not unwind into the supervisor's own frames
        _LOG.critical("ends because of a fault of its own", exc_info=True)
    finally:
        os._exit(status)


def close_inherited(keep: Iterable[int]) -> None:
    """Close every descriptor but the standard streams and these."""
    kept = {*STANDARD_STREAMS, *keep}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are what is wanted
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:  # the one that listed the directory
                continue
