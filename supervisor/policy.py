"""What to do about the children: a pure decision over their states and the time.

Nothing here runs a process or reads a clock, so every rule is tested without waiting. The loop carries the actions
out, and asks again when something happened or when ``wake_at`` has come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

ADMIN: Final = -1
"""The seat of the admin process. Workers have numbers from 0."""

# A child beats once a second. Ten missed beats are not load: nothing that one does takes so long.
HEARTBEAT_TIMEOUT: Final = 10.0
# Taking over a configuration of thousands of routes is a matter of milliseconds.
ANSWER_TIMEOUT: Final = 30.0
# Who seems to hang is looked at twice: when the whole group stood still, the others may not have run again yet.
SECOND_LOOK: Final = 1.0
# Time for SIGABRT to write the stacks to the log before SIGKILL.
ABORT_GRACE: Final = 1.0
# A worker ends by itself when the drain timeout has passed; this is what it may be late.
DRAIN_GRACE: Final = 5.0
# How long a child that was told to stop at once may take.
STOP_GRACE: Final = 5.0
# Seconds before an empty seat is filled again, by the number of short lives just before: a worker that fails at once
# must not spin.
BACK_OFF: Final = (0.0, 0.1, 1.0, 5.0)
# A life at least this long was no failure to start.
STEADY: Final = 10.0
# Waking this much too late means that the machine or the whole group of processes stood still, not one child.
LATE: Final = 2.0


@dataclass(slots=True)
class Seat:
    """A place that one child process fills: a worker's, or the admin process's. Times are monotonic seconds."""

    number: int
    """Of the worker and of its row of counters."""
    occupied: bool = False
    born: float = 0.0
    """When the process now in it was started."""
    beat: float = 0.0
    """Its last heartbeat."""
    asked: float | None = None
    """Since when an answer to ``Apply`` is owed; workers only."""
    slots_due_by: float | None = None
    """When it is to have handed over, or taken, the slots that it is to; workers only."""
    suspected: float = -math.inf
    """When :class:`Suspect` was last carried out."""
    kill_at: float | None = None
    """Set once it was told to end: when to stop being patient. Infinite after SIGKILL."""
    fill_at: float = 0.0
    """Empty: not to be filled before this time."""
    short_lives: int = 0
    """Processes in a row that did not live long."""
    leaving: bool = False
    """It gives up its slots, drains, and nobody follows."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this seat."""

    number: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """It seems to hang: note the time in its seat."""

    number: int


@dataclass(frozen=True, slots=True)
class Abort:
    """It hangs: have it write its stacks and die."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """It did not end when told to: SIGKILL."""

    number: int


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Close its channel, which ends it in good order."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Nobody is left: the supervisor may end."""


Action = Spawn | Suspect | Abort | Kill | Dismiss | Finish


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and when time alone may change the answer."""

    actions: tuple[Action, ...] = ()
    wake_at: float = math.inf


@dataclass(slots=True)
class _Draft:
    """A decision in the making."""

    now: float
    actions: list[Action] = field(default_factory=list)
    wake_at: float = math.inf

    def has_come(self, moment: float) -> bool:
        """Whether a moment is over; one that is not will be waited for."""
        if self.now >= moment:
            return True
        self.wake_at = min(self.wake_at, moment)
        return False


def decide(
    seats: Sequence[Seat], *, stopping: bool, now: float, grace: float = -math.inf, drained: bool = True
) -> Decision:
    """Return what to do about the seats, and when to ask again at the latest.

    ``stopping``: empty seats stay empty, the admin process goes last, and not before all is ``drained``. ``grace``:
    silence before this time is not held against anybody; see :func:`grace_after`.
    """
    draft = _Draft(now)
    for seat in seats:
        if seat.occupied:
            _judge(seat, grace, draft)
        elif not (stopping or seat.leaving) and draft.has_come(seat.fill_at):
            draft.actions.append(Spawn(seat.number))
    if stopping and drained:
        occupied = [seat for seat in seats if seat.occupied]
        if not occupied:
            draft.actions.append(Finish())
        draft.actions += [
            Dismiss(seat.number)
            for seat in occupied
            if seat.number == ADMIN and seat.kill_at is None and len(occupied) == 1
        ]
    return Decision(tuple(draft.actions), draft.wake_at)


def _judge(seat: Seat, grace: float, draft: _Draft) -> None:
    if seat.kill_at is not None:
        if draft.has_come(seat.kill_at):
            draft.actions.append(Kill(seat.number))
        return
    silent_since = max(seat.born, seat.beat, grace)
    if draft.has_come(late := silent_since + HEARTBEAT_TIMEOUT):
        _doubt(seat, late, f"no heartbeat for {draft.now - silent_since:.0f} s", draft)
    elif seat.asked is not None and draft.has_come(late := max(seat.asked, grace) + ANSWER_TIMEOUT):
        _doubt(seat, late, "does not take its configuration", draft)
    elif seat.slots_due_by is not None and draft.has_come(late := max(seat.slots_due_by, grace + ANSWER_TIMEOUT)):
        _doubt(seat, late, "does not hand over its slots, or take others", draft)


def _doubt(seat: Seat, late: float, why: str, draft: _Draft) -> None:
    """Suspect it, or abort it when it was suspected a while ago. ``late``: when its time was over.

    A suspicion from before that was about something else, and has come to nothing.
    """
    if seat.suspected < late:
        draft.actions.append(Suspect(seat.number))
    elif draft.has_come(seat.suspected + SECOND_LOOK):
        draft.actions.append(Abort(seat.number, why))


def grace_after(planned: float, now: float) -> float:
    """Return from when on silence counts, having woken at ``now`` instead of ``planned`` at the latest.

    Minus infinity when that was in time. Otherwise nobody was running (a stopped job, a paused virtual machine), and
    the children get their full time again.
    """
    return now if now - planned > LATE else -math.inf


def back_off(short_lives: int, lived: float) -> tuple[float, int]:
    """Return how long a seat stays empty after a life of ``lived`` seconds, and the new number of short lives."""
    if lived >= STEADY:
        return BACK_OFF[0], 0
    return BACK_OFF[min(short_lives, len(BACK_OFF) - 1)], short_lives + 1


def cause_of_death(exit_code: int, *, hung: bool) -> str:
    """Return the metric label of an unplanned end: ``heartbeat``, ``signal`` or ``exit``.

    ``exit_code`` is negative for a signal. ``hung``: it was :class:`Abort` that ended it.
    """
    if hung:
        return "heartbeat"
    return "signal" if exit_code < 0 else "exit"
