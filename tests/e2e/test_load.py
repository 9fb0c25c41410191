"""Everything at once for half a minute: clients of every kind, a reload each second, and the death of a worker.

What must hold: no connection fails but those that the dead worker held, and no UDP flow is lost to a reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.hellos import openssl_hello
from tests.support.http3 import Http3Target, http3_get
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.targets import HttpTarget, TcpTarget, UdpTarget, echo, read_all, reports
from tests.support.tls_files import TlsFiles
from tests.support.waiting import PATIENCE, eventually, pass_time

SECONDS: Final = 30
KILL_AFTER: Final = 15
AFTERMATH: Final = 2.0
"""Seconds in which everybody who talked to the dead worker notices."""


@dataclass(frozen=True)
class Failure:
    """What went wrong for one client, and when its attempt began and ended."""

    kind: str
    began: float
    ended: float
    error: str


@dataclass
class Crowd:
    """Clients in threads of their own, each doing its thing again and again until told to stop."""

    stopping: threading.Event = field(default_factory=threading.Event)
    done: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def add(self, kind: str, act: Callable[[], None], pause: float) -> None:
        """Start a client; what ``act`` raises is a failure of one connection."""
        self.done[kind] = 0

        def live() -> None:
            while not self.stopping.wait(pause):
                began = time.monotonic()
                try:
                    act()
                    self.done[kind] += 1
                except (OSError, AssertionError, TimeoutError) as error:
                    self.failures.append(Failure(kind, began, time.monotonic(), repr(error)))

        self._threads.append(threading.Thread(target=live, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(4 * PATIENCE)
            assert not thread.is_alive()


@dataclass
class Clients:
    """One act of each kind of client."""

    proxy: Proxy
    web: HttpTarget

    def http(self) -> None:
        """A connection of its own with one request."""
        with self.proxy.connect() as client:
            client.sendall(b"GET /load HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = read_all(client)
        assert answer.endswith(b"web /load"), answer

    def tls(self) -> None:
        """A ClientHello in two pieces, and a half-close."""
        hello = openssl_hello("example.com")
        with self.proxy.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(hello[:100])
            client.sendall(hello[100:])
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"tls\n" + hello

    def curl(self) -> None:
        result = run("curl", "--silent", "--show-error", f"http://127.0.0.1:{self.proxy.port}/bytes/100000")
        assert result.stdout == "x" * 100_000, result.stdout[:200]

    def dig(self) -> None:
        # From a port that nobody used lately: another client's flow may still be remembered by the address that it had.
        source = f"127.0.0.1#{free_port()}"
        result = run(
            "dig", "-b", source, "@127.0.0.1", "-p", str(self.proxy.port), "+short", "+tries=1", "+time=5", "name.test"
        )
        assert result.stdout == "192.0.2.1\n", result.stdout

    def http3(self) -> None:
        answer = asyncio.run(http3_get(self.proxy.port, "example.com", ["/bytes/20000"]))
        assert answer.bodies == ("x" * 20_000,)


@dataclass
class LongConnection:
    """A connection that stays: one message and its echo at a time, and a new one only when the old one broke."""

    proxy: Proxy
    breaks: int = 0
    _client: socket.socket | None = None

    def act(self) -> None:
        if self._client is None:
            self._client = self.proxy.connect()
            self._client.sendall(b"SSH-2.0-long\r\n")
            assert self._client.recv(100) == b"SSH-2.0-long\r\n"
        try:
            self._client.sendall(b"still there?")
            assert self._client.recv(100) == b"still there?"
        except (OSError, AssertionError):
            self._client.close()
            self._client = None
            self.breaks += 1
            raise

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@dataclass
class LongFlow:
    """A UDP flow that stays. Each datagram looks like WireGuard's first, so that it finds its route anew if it must."""

    client: socket.socket
    number: int
    turn: int = 0

    def act(self) -> None:
        self.turn += 1
        message = b"\1\0\0\0" + (b"flow %d turn %d" % (self.number, self.turn)).ljust(144)
        self.client.send(message)
        while (answer := self.client.recv(200)) != message:  # an answer that came too late for its own turn
            assert answer[4:].startswith(b"flow %d turn " % self.number), answer


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_reloads_and_the_death_of_a_worker_under_load(
    start_proxy: StartProxy, tls_files: Callable[[str], TlsFiles]
) -> None:
    dns_port = free_port()
    dns = ["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=", "--no-resolv", "--no-hosts"]
    dns += ["--bind-interfaces", "--listen-address=127.0.0.1", f"--port={dns_port}"]
    with (
        HttpTarget("web") as web,
        TcpTarget(reports("tls")) as tls,
        TcpTarget(echo) as shell,
        UdpTarget() as vpn,
        Http3Target("h3", tls_files("example.com")) as http3,
        Program("dnsmasq", *dns, "--host-record=name.test,192.0.2.1", udp=dns_port),
        contextlib.ExitStack() as stack,
    ):

        def config(generation: int) -> str:
            # Each one differs: an address that comes and goes, and a route whose target changes.
            extra = f', "127.0.0.{2 + generation % 3}"' if generation % 3 else ""
            return f"""
listen_address_v4 = ["127.0.0.1"{extra}]
udp_target = ["127.0.0.1:{dns_port}"]
[protocols.web]
protocol = "http"
target = ["{web.text}"]
[protocols.secure]
protocol = "tls"
server_names = ["example.com"]
target = ["{tls.text}"]
[protocols.other]
protocol = "tls"
server_names = ["other.test"]
target = ["127.0.0.1:{1 + generation}"]
[protocols.shell]
protocol = "ssh"
target = ["{shell.text}"]
[protocols.vpn]
protocol = "wireguard"
target = ["{vpn.text}"]
[protocols.quic]
protocol = "quic"
target = ["{http3.text}"]
"""

        proxy = start_proxy(config(1))
        proxy.expect_trouble("worker|signal|killed|died")
        clients, crowd = Clients(proxy, web), Crowd()
        connections = [LongConnection(proxy) for _ in range(20)]
        flows = [LongFlow(stack.enter_context(proxy.udp()), number) for number in range(40)]
        for flow in flows:
            flow.act()
            flow.client.settimeout(1.0)
        assert len(vpn.sources) == len(flows)

        for kind, act, pause in (
            ("http", clients.http, 0.02),
            ("tls", clients.tls, 0.03),
            ("curl", clients.curl, 0.3),
            ("dig", clients.dig, 0.3),
            ("http3", clients.http3, 0.3),
        ):
            crowd.add(kind, act, pause)
        for connection in connections:
            crowd.add("connection", connection.act, 0.1)
        for flow in flows:
            crowd.add("flow", flow.act, 0.1)

        killed_at = 0.0
        sources_before_the_kill = 0
        try:
            for second in range(1, SECONDS + 1):
                began = time.monotonic()
                proxy.write(config(second + 1))
                proxy.signal(signal.SIGHUP)
                # The log keeps lines that repeat so often to itself.
                proxy.wait_for_metric("config_reloads_total", second, result="success")
                if second == KILL_AFTER:
                    sources_before_the_kill = len(vpn.sources)
                    victim = proxy.worker_pids()[1]
                    killed_at = time.monotonic()
                    os.kill(victim, signal.SIGKILL)
                pass_time(max(0.0, began + 1 - time.monotonic()))
        finally:
            crowd.stop()
        for connection in connections:
            connection.close()

        # No UDP flow was lost to a reload: each kept its one socket until its worker was killed.
        assert sources_before_the_kill == len(flows)
        lost_flows = proxy.metric("sessions_closed_total", reason="worker_lost", protocol="udp", route="vpn")
        assert 0 < lost_flows < len(flows)
        assert len(vpn.sources) <= len(flows) + lost_flows  # a port may have been given out a second time

        # No connection failed but those of the killed worker, at that moment.
        unexplained = [
            failure for failure in crowd.failures if failure.ended < killed_at or failure.began > killed_at + AFTERMATH
        ]
        assert unexplained == []
        long_ones = [failure for failure in crowd.failures if failure.kind == "connection"]
        lost = proxy.metric("sessions_closed_total", reason="worker_lost", protocol="tcp", route="shell")
        assert len(long_ones) <= lost
        assert 0 < lost < len(connections)

        assert all(count > SECONDS / 2 for count in crowd.done.values()), crowd.done
        assert proxy.metric("worker_restarts_total") == 1
        assert proxy.metric("config_reloads_total", result="success") == SECONDS
        eventually(lambda: proxy.metric("sessions", protocol="tcp") == 0, "no session is left over")
