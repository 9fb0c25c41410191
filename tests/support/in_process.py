"""A worker's listeners in the test's own process and thread, to be driven step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import uvloop

from rpxy_l4.access_log import AccessLog
from rpxy_l4.flow_memory import FlowMemory
from rpxy_l4.logs import Sink
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.listen import open_group
from rpxy_l4.snapshot import AtLimit, Bind, Route, Side, Snapshot, Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.tcp import TcpListener, TcpSession
from rpxy_l4.workers.udp import UdpFlow, UdpListener
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE


def side(
    transport: Transport,
    wanted: Protocol | None,
    *targets: Target,
    idle: float = 0.1,
    max_sessions: int = 100,
    max_new_per_second: int = 0,
    at_limit: AtLimit = AtLimit.RESET,
) -> Side:
    """A default route to the targets, where flows live for ``idle`` seconds, and one for ``wanted`` if given."""
    default = Route(name="default", transport=transport, protocol=None, targets=targets, idle_lifetime=idle)
    routes = () if wanted is None else (Route(name="x", transport=transport, protocol=wanted, targets=targets),)
    return Side(
        transport=transport,
        routes=routes,
        default=default,
        series=0,
        max_sessions=max_sessions,
        max_new_per_second=max_new_per_second,
        at_limit=at_limit,
    )


class InProcess:
    """A worker's listeners, in this process and this thread."""

    def __init__(self, folder: Path, tcp: Side | None, udp: Side | None, workers: int = 1) -> None:
        """``slab`` has a row for each of so many workers, of which this is the first, and the supervisor's."""
        self.slab = Slab(workers + 1)
        self.loop = uvloop.new_event_loop()
        log = AccessLog(Sink(1, folder / "access.log"), "1", lambda: None)
        self.context = Context(self.loop, 0, workers, self.slab, log)
        self.port = free_port()
        binds = [Bind(side.transport, "127.0.0.1", self.port) for side in (tcp, udp) if side is not None]
        snapshot = Snapshot(generation=1, sha256="", listener=":1", binds=tuple(binds), tcp=tcp, udp=udp)
        generation = Generation(snapshot, self.context)
        self.sessions: set[TcpSession] = set()
        self.undecided: dict[UdpFlow, None] = {}
        for bind in binds:
            (sock,) = open_group(bind, 1, 16, exclusive=True)
            if bind.transport is Transport.TCP:
                self.tcp = TcpListener(self.context, bind, sock, self.sessions)
                self.tcp.generation = generation
                self.tcp.resume()
            else:
                memory = FlowMemory(memoryview(bytearray(1 << 16)), b"key", 600.0)
                self.udp = UdpListener(self.context, bind, sock, self.undecided, memory, 0)
                self.udp.generation = generation
                self.udp.resume()
        self.loop.add_reader(self.context.poller.fileno(), self.context.poller.dispatch)

    def run_until_nothing_is_open(self) -> None:
        """Serve until every session and flow has ended; there must be one by then."""
        self.run_until(lambda: not self.sessions and not self.udp_flows())

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Serve until it is true."""

        async def wait() -> None:
            while not condition():  # noqa: ASYNC110  a worker has nobody to tell
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE))

    def udp_flows(self) -> list[UdpFlow]:
        return list(self.udp.flows.values()) if hasattr(self, "udp") else []
