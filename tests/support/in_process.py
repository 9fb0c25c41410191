"""A worker's listeners in the test's own process and thread, to be driven step by step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from rpxy_l4.logs import Sink
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.listen import open_group
from rpxy_l4.snapshot import Bind, Route, Side, Snapshot, Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers.access_log import AccessLog
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.tcp import TcpListener, TcpSession
from rpxy_l4.workers.udp import UdpFlow, UdpListener
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE


def side(transport: Transport, wanted: Protocol | None, *targets: Target) -> Side:
    """A default route to the targets, and one for ``wanted`` if given; flows live for a tenth of a second."""
    default = Route(name="default", transport=transport, protocol=None, targets=targets, idle_lifetime=0.1)
    routes = () if wanted is None else (Route(name="x", transport=transport, protocol=wanted, targets=targets),)
    return Side(transport=transport, routes=routes, default=default, series=0, max_sessions=100)


class InProcess:
    """A worker's listeners, in this process and this thread."""

    def __init__(self, folder: Path, tcp: Side | None, udp: Side | None) -> None:
        self.loop = uvloop.new_event_loop()
        log = AccessLog(Sink(1, folder / "access.log"), 1, lambda: None)
        self.context = Context(self.loop, 0, 1, Slab(1), log)
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
                self.udp = UdpListener(self.context, bind, sock, self.undecided)
                self.udp.generation = generation
        self.loop.add_reader(self.context.poller.fileno(), self.context.poller.dispatch)

    def run_until_nothing_is_open(self) -> None:
        """Serve until every session and flow has ended; there must be one by then."""

        async def wait() -> None:
            while self.sessions or self.udp_flows():  # noqa: ASYNC110  a worker has nobody to tell
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE))

    def udp_flows(self) -> list[UdpFlow]:
        return list(self.udp.flows.values()) if hasattr(self, "udp") else []
