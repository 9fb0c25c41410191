"""What the supervisor and its children say to each other. Pure: how it travels is ``net.channel``.

Both ends are this program, over a socket pair that nobody else can open; that is why pickle is safe here. After an
upgrade, workers of the version before are told addresses, to release slots and to drain, and give their flows to new
ones: the number ``supervisor.upgrade.FORMAT`` stands for what both versions have to understand.

A worker starts empty and is given its first configuration by ``Apply``, exactly as at a reload.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from rpxy_l4.endings import Detected
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import Bind, Route, Snapshot, Target
from rpxy_l4.verdict import Match


class FlowRecord(NamedTuple):
    """A UDP flow on its way to another worker. Times are CLOCK_MONOTONIC seconds."""

    key: bytes
    client: tuple[str, int] | tuple[str, int, int, int]
    reply: tuple[int, int, bytes] | None
    """The control message that answers are sent with."""
    held: tuple[bytes, ...]
    """Undecided: what the client has sent. Such a flow has nothing of what follows."""
    opened: float
    decided: float = 0.0
    last: float = 0.0
    """When its last datagram came."""
    detected: Detected = Detected.SKIPPED
    match: Match | None = None
    route: Route | None = None
    """With nothing but what a session needs that is under way."""
    target: Target | None = None
    address: str = ""
    tries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    datagrams_in: int = 0
    datagrams_out: int = 0
    has_answered: bool = False
    is_confirmed: bool = False
    bulk: int = 0
    """How long messages from the target probably are, where its socket coalesces them; 0: it does not."""
    kernel: tuple[bytes, int, tuple[tuple[int, int, bool], tuple[int, int, bool]]] | None = None
    """Where it is in the kernel path: in which one, the number of its counter there, and how its packets go on."""


Resolved = Mapping[str, tuple[str, ...]]
"""Host name -> IP literals, sorted. A name that never resolved is missing."""


class Place(NamedTuple):
    """One listening socket: that of an address and a slot."""

    slot: int
    bind: Bind


@dataclass(frozen=True, slots=True)
class Attach:
    """Supervisor to worker: listening sockets for the ``Apply`` or ``Inherit`` that follows."""

    places: tuple[Place, ...]
    """Of the descriptors that travel with this message, in their order; the worker owns them then."""


@dataclass(frozen=True, slots=True)
class UseKernelPath:
    """Supervisor to worker: put flows in the kernel path, and not in the one of before.

    With it come the descriptors of its maps of flows and of counters, which the worker owns then; none, and no
    ``token``: there is none any more.
    """

    token: bytes
    slots: int
    capacity: int
    """Of flows, over all slots."""


SETTINGS: Final = 0
"""In place of an interface's number, which is never 0: the map of settings."""


class KernelPiece(NamedTuple):
    """A descriptor of a kernel path."""

    path: bytes
    """Its token."""
    number: int
    """Of the interface that it is linked to, or ``SETTINGS``."""


@dataclass(frozen=True, slots=True)
class HoldKernelPaths:
    """Supervisor to worker: hold these, so that TCP connections in the kernel outlive the supervisor."""

    pieces: frozenset[KernelPiece]
    """All of these; what is held besides is to be let go."""
    new: tuple[KernelPiece, ...]
    """Whose descriptors come with this message, in their order; the worker owns them then. More may follow."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Supervisor to worker: swap to this configuration, then answer ``Applied``.

    Listening sockets whose bind is not in ``snapshot.binds`` are to be emptied and closed by the worker.
    """

    snapshot: Snapshot
    addresses: Resolved
    slots: frozenset[int]
    """The slots that are the worker's: it accepts from the sockets attached for these."""
    order: int = 0
    """To be repeated in the answer."""


@dataclass(frozen=True, slots=True)
class Release:
    """Supervisor to worker: give up a slot, handing its UDP flows over; then answer ``Released``.

    With it comes a descriptor, one end of a channel; the worker that is told to ``Inherit`` has the other. TCP sessions
    stay. What waits in the slot's sockets waits for the one who inherits.
    """

    slot: int


@dataclass(frozen=True, slots=True)
class Inherit:
    """Supervisor to worker: serve a slot, after its UDP flows have come; then answer ``Inherited``.

    With it comes a descriptor, the other end of that channel. Its end of stream means that all that can come has come.
    """

    slot: int


@dataclass(frozen=True, slots=True)
class OwnInbox:
    """Supervisor to worker: serve the connections that others hand over, until the end.

    With it come two descriptors, both ends of the inbox. Who has one already keeps that.
    """


@dataclass(frozen=True, slots=True)
class OtherInboxes:
    """Supervisor to worker: to whom connections may be handed over from now on."""

    numbers: frozenset[int]
    """All of these workers. The inbox of one that is not ``new`` is known."""
    new: tuple[int, ...]
    """Whose inboxes the descriptors of this message lead to, in their order. More may come in messages that follow."""


@dataclass(frozen=True, slots=True)
class Flows:
    """Worker to worker: flows of one address of the slot; to be answered with ``Taken``.

    A descriptor comes with each record that says so, in their order; before these, if ``until`` is not None, the
    listening socket itself, because the address has left the configuration.
    """

    bind: Bind
    series: int
    """The listener's in the counters."""
    until: float | None
    """CLOCK_MONOTONIC: when an address that has left the configuration is to be closed."""
    records: tuple[FlowRecord, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """Worker to worker: ready for the next ``Flows``."""


@dataclass(frozen=True, slots=True)
class Released:
    """Worker to supervisor: the slot's listening sockets are closed here, and its flows on their way."""

    slot: int


@dataclass(frozen=True, slots=True)
class Inherited:
    """Worker to supervisor: the slot is served."""

    slot: int


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
    order: int = 0
    """That of the ``Apply`` this answers."""


@dataclass(frozen=True, slots=True)
class NotApplied:
    """Worker to supervisor: out of descriptors, so a message was lost. Send the configuration again in a while."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Worker to supervisor: nothing new is accepted any more."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, as the supervisor sees it."""

    number: int
    """From 0; also that of its row of counters."""
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
    """User and system CPU seconds of the processes that had a worker's number and have ended."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Unplanned restarts by cause: ``exit``, ``signal``, ``heartbeat``."""
    reloads: Mapping[str, int] = field(default_factory=dict)
    """Attempts by result: ``success``, ``failure``, ``unchanged``."""
    last_reload_ok: bool = True
    last_reload_success: float = 0.0
    """Unix time."""
    draining: bool = False
    uses_kernel_path: bool = False
    kernel_path: str = ""
    """How and where it is used, or why not."""

    @property
    def newest(self) -> Snapshot:
        """The configuration whose names are to be resolved and whose admin address is to be served."""
        return self.incoming or self.snapshot


Message = (
    Attach | UseKernelPath | Apply | Addresses | Release | Inherit  # to a worker
    | HoldKernelPaths | OwnInbox | OtherInboxes | Drain | ReopenLogs  # likewise
    | Applied | NotApplied | Released | Inherited | Draining | Status  # from a worker, to the admin process
    | Flows | Taken  # between two workers
)  # fmt: skip


def encode(message: Message) -> bytes:
    """Return the message as bytes."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def decode(data: bytes) -> Message:
    """Return the message that :func:`encode` was given. For bytes of our own processes only."""
    return cast("Message", pickle.loads(data))  # noqa: S301  see the module's docstring
