"""Where each counter stands in a row of the slab. Pure arithmetic.

A row has one writer: the worker with its number (after that one's death, the supervisor).
A row is: the worker cells, then the listener table, then the target table. A block of a table belongs to one
series; blocks are assigned by the supervisor's :class:`Directory` and never reused while the process lives, so no
counter goes backwards when the configuration changes.

Counters only grow. Open sessions are ``opened - closed``; in a single row, those that moved count, too
(``opened + taken - closed - given``). Durations are summed in microseconds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rpxy_l4.endings import ConnectResult, Detected, Drop, Reason, Rejection
from rpxy_l4.verdict import Transport

MICROSECONDS: Final = 1_000_000


class Cell(enum.IntEnum):
    """Cells of a worker as a whole, at the start of its row."""

    HEARTBEAT = 0
    """CLOCK_MONOTONIC in nanoseconds, written about once a second."""
    GENERATION = 1
    """Generation of the configuration applied."""
    TCP_OPENED = 2
    """TCP connections accepted; with TCP_CLOSED this is what ``tcp_max_connections`` limits."""
    TCP_CLOSED = 3
    UDP_OPENED = 4
    """UDP flows created, or taken from another worker, undecided ones included."""
    UDP_CLOSED = 5
    """UDP flows ended, or given to another worker."""
    ACCESS_LINES_DROPPED = 6
    EVENT_LINES_DROPPED = 7
    LOOP_LAG = 8
    """Longest delay of the once-a-second tick since the worker started, microseconds. Not a counter."""
    DRAINING = 9
    """1 while the worker is stopping."""
    UDP_UNCONFIRMED = 10
    """UDP flows open now that may give way to new ones. Not a counter."""
    TCP_ADMITTED = 11
    """TCP connections let in while ``tcp_max_new_per_second`` limited them."""
    UDP_ADMITTED = 12
    """UDP flows let in while ``udp_max_new_per_second`` limited them."""
    TCP_HANDED = 13
    """TCP connections accepted and handed to another worker, which counts them as opened."""
    UDP_IN_KERNEL = 14
    """UDP flows that are in the kernel path. Not a counter."""
    KERNEL_DATAGRAMS = 15
    """Datagrams that were forwarded there, as far as they are counted for their targets."""


WORKER_CELLS: Final = 16

SESSION_BUCKETS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)
DETECTION_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0)
CONNECT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds in seconds; one more cell counts what is above the last, and one more sums microseconds."""

ACCEPT_ERRNOS: Final = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "other")
SOCKET_ERRNOS: Final = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL")
"""What the machine may be short of for a socket towards a target; the last one means its ports."""

REJECTION_INDEX: Final = {reason: i for i, reason in enumerate(Rejection)}
DROP_INDEX: Final = {reason: i for i, reason in enumerate(Drop)}
DETECTED_INDEX: Final = {result: i for i, result in enumerate(Detected)}
REASON_INDEX: Final = {reason: i for i, reason in enumerate(Reason)}
CONNECT_INDEX: Final = {result: i for i, result in enumerate(ConnectResult)}

# A block of the listener table: offsets from its start.
L_REJECTED: Final = 0
L_DROPPED: Final = L_REJECTED + len(Rejection)
L_DETECTED: Final = L_DROPPED + len(Drop)
L_SESSION_HISTOGRAM: Final = L_DETECTED + len(Detected)
L_DETECTION_HISTOGRAM: Final = L_SESSION_HISTOGRAM + len(SESSION_BUCKETS) + 2
L_ACCEPT_ERRORS: Final = L_DETECTION_HISTOGRAM + len(DETECTION_BUCKETS) + 2
L_PROXY_HEADERS: Final = L_ACCEPT_ERRORS + len(ACCEPT_ERRNOS)
"""Two cells: PROXY headers accepted, and refused."""
L_SOCKET_ERRORS: Final = L_PROXY_HEADERS + 2
LISTENER_CELLS: Final = L_SOCKET_ERRORS + len(SOCKET_ERRNOS)

# A block of the target table.
T_OPENED: Final = 0
T_BYTES_IN: Final = 1
"""Payload from client to target."""
T_BYTES_OUT: Final = 2
T_DATAGRAMS_IN: Final = 3
T_DATAGRAMS_OUT: Final = 4
T_CLOSED: Final = 5
T_CONNECTS: Final = T_CLOSED + len(Reason)
T_CONNECT_HISTOGRAM: Final = T_CONNECTS + len(ConnectResult)
T_TAKEN: Final = T_CONNECT_HISTOGRAM + len(CONNECT_BUCKETS) + 2
"""Flows that came from another worker."""
T_GIVEN: Final = T_TAKEN + 1
"""Flows that went to another worker."""
TARGET_CELLS: Final = T_GIVEN + 1

MAX_LISTENERS: Final = 1024
MAX_TARGETS: Final = 16_384
"""Blocks a row has room for. Untouched pages of the slab cost no memory, so this is address space, not use."""

ROW_CELLS: Final = WORKER_CELLS + MAX_LISTENERS * LISTENER_CELLS + MAX_TARGETS * TARGET_CELLS


def listener_offset(series: int) -> int:
    """First cell of a listener block within a row."""
    return WORKER_CELLS + series * LISTENER_CELLS


def target_offset(series: int) -> int:
    """First cell of a target block within a row."""
    return WORKER_CELLS + MAX_LISTENERS * LISTENER_CELLS + series * TARGET_CELLS


class DirectoryFullError(Exception):
    """More distinct series over the life of the process than a row has room for; only a restart frees them."""


@dataclass(frozen=True, slots=True)
class ListenerSeries:
    """Labels of one block of the listener table."""

    listener: str
    transport: Transport


@dataclass(frozen=True, slots=True)
class TargetSeries:
    """Labels of one block of the target table."""

    listener: str
    transport: Transport
    route: str
    target: str


PlainListener = tuple[str, str, int]
PlainTarget = tuple[str, str, str, str, int]


@dataclass(slots=True)
class Directory:
    """Which labels own which block. The supervisor's copy is the only one that grows; others are replaced whole."""

    listeners: dict[ListenerSeries, int] = field(default_factory=dict)
    targets: dict[TargetSeries, int] = field(default_factory=dict)

    def listener(self, series: ListenerSeries) -> int:
        """Return the block of these labels, a new one when they are new.

        Raises DirectoryFullError when there is no room.
        """
        if series not in self.listeners and len(self.listeners) >= MAX_LISTENERS:
            raise DirectoryFullError
        return self.listeners.setdefault(series, len(self.listeners))

    def target(self, series: TargetSeries) -> int:
        """Return the block of these labels, a new one when they are new.

        Raises DirectoryFullError when there is no room.
        """
        if series not in self.targets and len(self.targets) >= MAX_TARGETS:
            raise DirectoryFullError
        return self.targets.setdefault(series, len(self.targets))

    def as_plain(self) -> tuple[list[PlainListener], list[PlainTarget]]:
        """Return listeners and targets as values that any version can read."""
        return (
            [(key.listener, str(key.transport), index) for key, index in self.listeners.items()],
            [(key.listener, str(key.transport), key.route, key.target, index) for key, index in self.targets.items()],
        )

    @classmethod
    def of_plain(cls, listeners: Iterable[PlainListener], targets: Iterable[PlainTarget]) -> Directory:
        """Return what :meth:`as_plain` came from. Raises ValueError or TypeError for other values."""
        return cls(
            {ListenerSeries(name, Transport(transport)): index for name, transport, index in listeners},
            {
                TargetSeries(name, Transport(transport), route, target): index
                for name, transport, route, target, index in targets
            },
        )
