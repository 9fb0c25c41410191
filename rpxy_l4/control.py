"""What the supervisor and its children say to each other. Pure: how it travels is ``net.channel``.

Both ends are the same program, one forked from the other over a socket pair that nobody else can open; that is why
pickle is safe here, and why there is no version to negotiate.

A worker starts empty and is given its first configuration by ``Apply``, exactly as at a reload.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import Bind, Snapshot

Resolved = Mapping[str, tuple[str, ...]]
"""Host name -> IP literals, sorted. A name that never resolved is missing."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Supervisor to worker: swap to this configuration, then answer ``Applied``.

    Listening sockets whose bind is not in ``snapshot.binds`` are to be emptied and closed by the worker.
    """

    snapshot: Snapshot
    addresses: Resolved
    attached: tuple[Bind, ...]
    """The binds of the descriptors that travel with this message, in their order; the worker owns them then."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Admin to supervisor, supervisor to worker: the whole current table of names."""

    addresses: Resolved


@dataclass(frozen=True, slots=True)
class Drain:
    """Supervisor to worker: accept what is queued, close the listening sockets, end when the last session has.

    After ``timeout`` seconds the worker ends what is left and exits. 0: at once.
    """

    timeout: float


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Supervisor to child: open the log files again by name."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Worker to supervisor: generation in force for new sessions; removed sockets are closed."""

    generation: int


@dataclass(frozen=True, slots=True)
class NotApplied:
    """Worker to supervisor: out of descriptors, so a message was lost. Send the configuration again in a while."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Worker to supervisor: nothing new is accepted any more."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One slot, as the supervisor sees it."""

    slot: int
    pid: int | None
    state: str
    """``starting``, ``ready`` or ``draining``; ``dead`` while it waits to be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Supervisor to admin: all that the admin process publishes beyond the counters. Sent whole on every change."""

    snapshot: Snapshot
    """The configuration in force; at the start, the one that will be."""
    incoming: Snapshot | None = None
    """The next one, whose names and admin address are wanted already."""
    directory: Directory
    workers: tuple[WorkerStatus, ...]
    worker_cpu: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """User and system CPU seconds of the processes that filled a slot and have ended."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Unplanned restarts by cause: ``exit``, ``signal``, ``heartbeat``."""
    reloads: Mapping[str, int] = field(default_factory=dict)
    """Attempts by result: ``success``, ``failure``, ``unchanged``."""
    last_reload_ok: bool = True
    last_reload_success: float = 0.0
    """Unix time."""
    draining: bool = False

    @property
    def newest(self) -> Snapshot:
        """The configuration whose names are to be resolved and whose admin address is to be served."""
        return self.incoming or self.snapshot


Message = Apply | Addresses | Drain | ReopenLogs | Applied | NotApplied | Draining | Status


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def decode(data: bytes) -> Message:
    """Return the message that :func:`encode` was given. For bytes of our own processes only."""
    return cast("Message", pickle.loads(data))  # noqa: S301  see the module's docstring
