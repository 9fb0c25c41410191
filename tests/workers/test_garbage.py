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

from rpxy_l4.snapshot import Target
from rpxy_l4.verdict import Protocol, Transport
from rpxy_l4.workers.relay import Direction
from rpxy_l4.workers.tcp import TcpSession
from rpxy_l4.workers.udp import UdpFlow
from tests.support.hellos import openssl_hello
from tests.support.in_process import InProcess, side
from tests.support.ports import free_port
from tests.support.targets import TcpTarget, UdpTarget, echo

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _living() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, TcpSession | Direction | UdpFlow)]


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
        proxy = InProcess(tmp_path, side(Transport.TCP, wanted, destination), None)
        for data in (openssl_hello("a.example"), b"x" * 3_000_000):
            proxy.loop.run_until_complete(_tcp_client(proxy.port, data, how))
        proxy.run_until_nothing_is_open()
        assert _living() == []
        proxy.tcp.close()
        proxy.loop.close()


@pytest.mark.usefixtures("uncollected")
def test_a_session_that_was_refused_is_gone(tmp_path: Path) -> None:
    destination = Target("nobody", "127.0.0.1", free_port(), is_name=False)
    proxy = InProcess(tmp_path, side(Transport.TCP, None, destination), None)

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
        proxy = InProcess(tmp_path, None, side(Transport.UDP, wanted, destination))
        client.connect(("127.0.0.1", proxy.port))
        client.setblocking(False)
        client.send(b"ask")
        assert proxy.loop.run_until_complete(proxy.loop.sock_recv(client, 100)) == b"ask"
        proxy.run_until_nothing_is_open()
        assert _living() == []
        proxy.udp.close()
        proxy.loop.close()
