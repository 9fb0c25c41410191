"""The workloads, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Job = Literal["tcp", "tls", "udp", "quic"]
"""What the proxy is set up for: TCP or UDP to the default target, or by server name."""

NAME: Final = "bench.example"
"""The server name in the hellos, and in the routes."""
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Load:
    """What a generator is to do; the options of ``load/*_load.c`` and ``load/*_target.c``."""

    transport: Literal["tcp", "udp"]
    sessions: int
    window: int
    request: int = 64
    response: int = 64
    burst: int = 1
    """Datagrams that are sent together."""
    bursts: int = 1
    """How many times for one request."""
    segment: bool = False
    """The target hands the kernel a burst in one call."""
    new: bool = False
    """A session for each request."""
    payload: Literal["letters", "hello", "initials"] = "letters"
    count: int = 0
    """The most requests in a run; 0: only time ends it."""

    @property
    def bytes_each(self) -> int:
        """Bytes of one request with its answer."""
        return self.request + self.response * self.burst * self.bursts


@dataclass(frozen=True)
class Workload:
    """One line of the report."""

    name: str
    text: str
    job: Job
    unit: Literal["connection", "request", "flow", "GB", "session"]
    load: Load
    paced: Load | None = None
    """What is sent at the fixed rate; None: the same."""
    latency: bool = True
    """Whether a run at a fixed rate is part of it."""
    workers: int = 1
    idle: int = 120
    """Seconds after which a UDP flow is forgotten."""
    settle: float = 0.0
    """Seconds that a contestant needs between two runs, to forget the flows of the first."""

    @property
    def is_memory(self) -> bool:
        """Whether memory is what is measured, with sessions that do nothing."""
        return self.unit == "session"

    @property
    def descriptors(self) -> int:
        """How many a proxy needs at most."""
        return 2 * (self.load.count or self.load.sessions) + 200


_NEW: Final = Load("tcp", 64, 64, request=128, response=512, new=True)
_HELLO: Final = replace(_NEW, payload="hello", response=1200)
_KEPT: Final = Load("tcp", 64, 64, request=128, response=512)
_DOWN: Final = Load("tcp", 1, 2, response=4 * MIB)
_UP: Final = Load("tcp", 1, 2, request=4 * MIB)
_BLOCK_DOWN: Final = Load("tcp", 1, 8, response=MIB // 16)
_BLOCK_UP: Final = Load("tcp", 1, 8, request=MIB // 16)
_UDP: Final = Load("udp", 64, 64, request=100, response=100)
# The proxies forget these soon: each holds a port of 127.0.0.1 for each flow, and there are 28 000.
_MANY_FLOWS: Final = replace(_UDP, sessions=5000)
# 20 datagrams of 1200 bytes are what a QUIC server hands to the kernel at a time. No more than 80 are under way in one
# flow: what a socket's buffer of the usual size can hold.
_BURST: Final = Load("udp", 1, 2, response=1200, burst=20, bursts=2, segment=True)
_BURSTS: Final = replace(_BURST, sessions=64, window=64, bursts=4)
_FLOW: Final = Load("udp", 64, 64, request=1200, response=1200, new=True, payload="initials", count=6000)


def _many(load: Load) -> Load:
    """The same over 64 sessions, in messages that reach all of them often."""
    return replace(load, sessions=64, window=128, request=min(load.request, MIB), response=min(load.response, MIB))


def _spread(sessions: int, workers: int = 1) -> Workload:
    # Ten requests under way whatever the number of sessions: nothing else differs.
    name = f"tcp-sessions-{sessions}" + (f"-workers-{workers}" if workers > 1 else "")
    text = f"small requests over {sessions} kept connections" + (", 2 workers" if workers > 1 else "")
    load = replace(_KEPT, sessions=sessions, window=10)
    return Workload(name, text, "tcp", "request", load, latency=False, workers=workers)


ALL: Final = (
    Workload("tcp-new", "new TCP connections, one small request each", "tcp", "connection", _NEW),
    Workload("tls-new", "the same through a TLS route by server name", "tls", "connection", _HELLO),
    Workload("tcp-kept", "small requests on 64 kept connections", "tcp", "request", _KEPT),
    Workload("tcp-down-1", "TCP bulk to the client, 1 connection", "tcp", "GB", _DOWN, _BLOCK_DOWN),
    Workload("tcp-up-1", "TCP bulk to the target, 1 connection", "tcp", "GB", _UP, _BLOCK_UP),
    Workload("tcp-down-64", "TCP bulk to the client, 64 connections", "tcp", "GB", _many(_DOWN), _many(_BLOCK_DOWN)),
    Workload("tcp-up-64", "TCP bulk to the target, 64 connections", "tcp", "GB", _many(_UP), _many(_BLOCK_UP)),
    Workload("udp-64", "UDP request and response, 64 flows", "udp", "request", _UDP),
    Workload("udp-5000", "UDP request and response, 5000 flows", "udp", "request", _MANY_FLOWS, idle=3),
    Workload("udp-segmented-1", "UDP bulk in segmented bursts, 1 flow", "udp", "GB", _BURST),
    Workload(
        "udp-segmented-64",
        "UDP bulk in segmented bursts, 64 flows",
        "udp",
        "GB",
        _BURSTS,
    ),
    Workload(
        "udp-plain",
        "UDP bulk without segmentation, 64 flows",
        "udp",
        "GB",
        replace(_BURSTS, segment=False),
    ),
    Workload("udp-new", "new UDP flows of 1200 bytes, default route", "udp", "flow", _FLOW, idle=1, settle=2.5),
    Workload("quic-new", "new QUIC connections, route by server name", "quic", "flow", _FLOW, idle=1, settle=2.5),
    Workload("tcp-idle", "memory for each idle TCP session", "tcp", "session", replace(_KEPT, sessions=5000)),
    Workload("udp-idle", "memory for each idle UDP flow", "udp", "session", _MANY_FLOWS, idle=5),
    _spread(10),
    _spread(1000),
    _spread(9000),
    _spread(1000, workers=2),
)
