"""Anything at all from the network, ended in any way at any moment: the same two workers go on, and hold nothing back.

``RPXY_L4_FUZZ_STEPS`` makes it longer, ``RPXY_L4_FUZZ_SEED`` another one.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.growth import growth, snapshot
from tests.support.hellos import openssl_hello
from tests.support.proxy import Proxy
from tests.support.quic_packets import aioquic_client, first_flight
from tests.support.targets import TcpTarget, UdpTarget, echo
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS: Final = int(os.environ.get("RPXY_L4_FUZZ_STEPS", "4000"))
SEED: Final = int(os.environ.get("RPXY_L4_FUZZ_SEED", "1"))
MOST_OPEN: Final = 100
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a RST."""

PROXY_HEADERS: Final = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(range(12)),
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
)
STREAMS: Final = (
    openssl_hello("web.test", ["h2", "http/1.1"]),
    openssl_hello("other.test"),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x05\x02\0\x02",
    b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    *PROXY_HEADERS,
)
DATAGRAMS: Final = (
    *first_flight(aioquic_client("web.test", "h3")),
    *first_flight(aioquic_client("other.test", "h3")),
    b"\x01\0\0\0" + bytes(range(144)),
    b"\x04\0\0\0" + bytes(range(60)),
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04name\x04test\0\0\x01\0\x01",
)


def mutated(chance: random.Random, samples: tuple[bytes, ...]) -> bytes:
    """One of these, or what is left of it; now and then nothing but noise."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.choice((1, 5, 100, 1200)))
    data = bytearray(chance.choice(samples))
    for _ in range(chance.choice((0, 0, 1, 1, 2, 8))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + chance.randrange(1, 9)]
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                data[at:] = chance.choice(samples)
            case 4 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 5 if data:
                data[at % len(data)] = chance.choice((0, 0x7F, 0xFF))
            case _:
                pass
    return bytes(data)


def moody(connection: socket.socket) -> None:
    """A target that does one of several things, by the last byte it is sent first."""
    data = connection.recv(65_536)
    match data[-1] % 4 if data else 3:
        case 0:
            return
        case 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        case 2:
            connection.sendall(data * 50)
            with contextlib.suppress(OSError):  # the proxy may have reset it
                connection.shutdown(socket.SHUT_WR)
            echo(connection)
        case _:
            connection.sendall(data)
            echo(connection)


class Stranger:
    """Many TCP connections and UDP sockets to one proxy, and steps that each do something to one of them."""

    def __init__(self, proxy: Proxy, chance: random.Random, headers: tuple[bytes, ...]) -> None:
        """``headers``: what most connections begin with, if anything."""
        self._proxy = proxy
        self._chance = chance
        self._headers = headers
        self._connections: list[socket.socket] = []
        self._udp: list[socket.socket] = []

    def step(self) -> None:
        act: Callable[[], None] = self._chance.choice(
            (self._connect, self._send, self._send, self._read, self._end, self._datagram, self._datagram)
        )
        # A connection that the other side has ended is one of the states.
        with contextlib.suppress(OSError):
            act()

    def _connect(self) -> None:
        if len(self._connections) >= MOST_OPEN:
            self._end()
        connection = self._proxy.connect()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.append(connection)
        if self._headers and self._chance.random() < 0.8:
            connection.send(self._chance.choice(self._headers))

    def _any(self) -> socket.socket:
        if not self._connections:
            self._connect()
        return self._chance.choice(self._connections)

    def _send(self) -> None:
        connection, data = self._any(), mutated(self._chance, STREAMS)
        cut = self._chance.randrange(len(data) + 1)
        connection.send(data[:cut])
        if self._chance.random() < 0.7:
            connection.send(data[cut:])

    def _read(self) -> None:
        self._any().recv(self._chance.choice((1, 1000, 1 << 20)))

    def _end(self) -> None:
        connection = self._any()
        match self._chance.randrange(4):
            case 0:
                connection.shutdown(socket.SHUT_WR)
                return
            case 1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case 2:
                connection.send(mutated(self._chance, STREAMS))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case _:
                pass
        self._connections.remove(connection)
        connection.close()

    def _datagram(self) -> None:
        if len(self._udp) < MOST_OPEN and self._chance.random() < 0.3:
            self._udp.append(self._proxy.udp())
            self._udp[-1].setblocking(False)
        if self._udp:
            client = self._chance.choice(self._udp)
            client.send(mutated(self._chance, DATAGRAMS))
            if self._chance.random() < 0.1:
                self._udp.remove(client)
                client.close()

    def leave(self) -> None:
        """End everything, one half of it by a RST."""
        for number, connection in enumerate(self._connections):
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()
        for client in self._udp:
            client.close()


@pytest.fixture
def targets() -> Iterator[str]:
    """Every protocol has a route, with a name for some."""
    with TcpTarget(moody) as tcp, UdpTarget() as udp:
        tables = "".join(
            f'[protocols.{name}]\nprotocol = "{name}"\ntarget = ["{target.text}"]\n{more}'
            for name, target, more in (
                ("http", tcp, ""),
                ("ssh", tcp, ""),
                ("socks5", tcp, ""),
                ("tls", tcp, 'server_names = ["web.test"]\n'),
                ("quic", udp, 'server_names = ["web.test"]\nidle_lifetime = 1\n'),
                ("wireguard", udp, "idle_lifetime = 1\n"),
            )
        )
        yield (
            f'tcp_target = ["{tcp.text}"]\nudp_target = ["{udp.text}"]\nudp_idle_lifetime = 1\n'
            f'tcp_detect_timeout = "300ms"\n{tables}'
        )


@pytest.mark.parametrize("has_headers", [False, True], ids=["plain", "behind PROXY headers"])
def test_nothing_from_the_network_harms_a_worker(tmp_path: Path, targets: str, *, has_headers: bool) -> None:
    chance = random.Random(SEED)
    headers = 'tcp_recv_proxy_protocol = true\ntcp_trusted_proxies = ["127.0.0.0/8"]\n' if has_headers else ""
    with Proxy(tmp_path, headers + targets) as proxy:
        begin: tuple[bytes, ...] = PROXY_HEADERS if has_headers else ()

        def disturb(steps: int) -> None:
            stranger = Stranger(proxy, chance, begin)
            for _ in range(steps):
                stranger.step()
            stranger.leave()
            eventually(lambda: proxy.metric("worker_sessions") == 0, "everything has ended")

        disturb(STEPS // 4)  # what is made at its first use has been used after this
        workers, before = proxy.worker_pids(), snapshot(proxy)

        disturb(STEPS)

        assert growth(before, snapshot(proxy)) == []
        assert proxy.worker_pids() == workers
        assert proxy.metric("sessions_closed_total", reason="internal") == 0
        with proxy.connect() as client:
            client.sendall(begin[0] + b"\0ok\x03" if has_headers else b"\0ok\x03")
            assert client.recv(100) == b"\0ok\x03"
        with proxy.udp() as udp:
            udp.send(b"ok")
            assert udp.recv(100) == b"ok"
