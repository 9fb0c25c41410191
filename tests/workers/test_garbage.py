"""Sessions that ended are freed at once: nothing is left for the collector, whose pauses hold up everybody."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import uvloop

from rpxy_l4.logs import Sink
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.listen import open_group
from rpxy_l4.snapshot import Bind, Route, Side, Snapshot, Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers.access_log import AccessLog
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.relay import Direction
from rpxy_l4.workers.tcp import TcpListener, TcpSession
from rpxy_l4.workers.udp import UdpFlow, UdpListener
from tests.support.hellos import openssl_hello
from tests.support.ports import free_port
from tests.support.targets import TcpTarget, UdpTarget, echo
from tests.support.waiting import PATIENCE

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _living() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, TcpSession | Direction | UdpFlow)]


def _side(transport: Transport, target: Target, wanted: Protocol | None) -> Side:
    default = Route(name="default", transport=transport, protocol=None, targets=(target,), idle_lifetime=0.1)
    routes = () if wanted is None else (Route(name="x", transport=transport, protocol=wanted, targets=(target,)),)
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


async def _tcp_client(port: int, data: bytes, how: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if how == "ends first":
        writer.write_eof()
        assert await reader.read() == data
    else:
        assert await reader.readexactly(len(data)) == data
        if how == "resets":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("how", ["ends first", "closes", "resets"])
@pytest.mark.parametrize("wanted", [None, Protocol.TLS])
def test_an_ended_tcp_session_is_gone(tmp_path: Path, how: str, wanted: Protocol | None) -> None:
    with TcpTarget(echo) as target:
        destination = Target(target.text, "127.0.0.1", target.port, is_name=False)
        proxy = InProcess(tmp_path, _side(Transport.TCP, destination, wanted), None)
        for data in (openssl_hello("a.example"), b"x" * 3_000_000):
            proxy.loop.run_until_complete(_tcp_client(proxy.port, data, how))
        proxy.run_until_nothing_is_open()
        assert _living() == []
        proxy.tcp.close()
        proxy.loop.close()


@pytest.mark.usefixtures("uncollected")
def test_a_session_that_was_refused_is_gone(tmp_path: Path) -> None:
    destination = Target("nobody", "127.0.0.1", free_port(), is_name=False)
    proxy = InProcess(tmp_path, _side(Transport.TCP, destination, None), None)

    async def connect() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    proxy.loop.run_until_complete(connect())
    proxy.run_until_nothing_is_open()
    assert _living() == []
    proxy.tcp.close()
    proxy.loop.close()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("wanted", [None, Protocol.QUIC])
def test_an_idle_flow_is_gone(tmp_path: Path, wanted: Protocol | None) -> None:
    with UdpTarget() as target, closing(socket.socket(type=socket.SOCK_DGRAM)) as client:
        destination = Target(target.text, "127.0.0.1", target.port, is_name=False)
        proxy = InProcess(tmp_path, None, _side(Transport.UDP, destination, wanted))
        client.connect(("127.0.0.1", proxy.port))
        client.setblocking(False)
        client.send(b"ask")
        assert proxy.loop.run_until_complete(proxy.loop.sock_recv(client, 100)) == b"ask"
        proxy.run_until_nothing_is_open()
        assert _living() == []
        proxy.udp.close()
        proxy.loop.close()
