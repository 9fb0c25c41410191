"""Whether this proxy should be sent traffic. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rpxy_l4.control import Status


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of readiness."""

    passed: bool
    text: str
    """What was found, on one line."""


def readiness(status: Status | None) -> list[Check]:
    """Return every condition; ready is when all have passed. None: the supervisor has said nothing yet.

    A failed reload is not a condition: the configuration before it stays in force and serves as well as ever, and
    a bad file that reaches every machine at once must not take all of them out of service.
    """
    if status is None:
        return [Check(False, "no configuration is in force yet")]
    states = Counter(worker.state for worker in status.workers)
    return [
        Check(True, f"configuration of generation {status.snapshot.generation} is in force"),
        Check(states["ready"] > 0, f"{states['ready']} of {len(status.workers)} workers are ready"),
        Check(not status.draining, "draining" if status.draining else "not draining"),
    ]
