"""What the machine may run short of: it is counted and said, nothing ends that is open, and it has an end itself."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support import seccomp
from tests.support.descriptors import no_more_descriptors
from tests.support.netns import Namespaces, inside
from tests.support.proxy import Proxy, cpu_seconds
from tests.support.seccomp import Rule
from tests.support.targets import TcpTarget, UdpTarget, echo, read_exactly
from tests.support.waiting import PATIENCE, pass_time

_NONBLOCK_CLOEXEC: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
TCP_TOWARDS_TARGET: Final = ((1, socket.SOCK_STREAM | _NONBLOCK_CLOEXEC),)
UDP_TOWARDS_TARGET: Final = ((1, socket.SOCK_DGRAM | _NONBLOCK_CLOEXEC),)
RESET_ON_CLOSE: Final = b"\1\0\0\0\0\0\0\0"

SHORTAGES: Final = {name: getattr(errno, name) for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")}

under_seccomp = pytest.mark.skipif(
    not seccomp.is_supported(), reason="the numbers of this machine's system calls are not known"
)


def is_served(client: socket.socket) -> bool:
    client.sendall(b"x")
    return read_exactly(client, 1) == b"x"


def ask(client: socket.socket, data: bytes = b"x") -> bytes:
    client.send(data)
    return client.recv(100)


def log_lines(proxy: Proxy, text: str) -> int:
    return sum(text in line for line in proxy.log())


def test_connections_wait_for_descriptors_and_are_served_when_there_are_some(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nworkers = 1\n')
        worker = proxy.worker_pids()[1]
        kept = stack.enter_context(proxy.connect())
        assert is_served(kept)
        with no_more_descriptors(worker):
            waiting = [stack.enter_context(proxy.connect()) for _ in range(10)]
            proxy.wait_for_metric("accept_errors_total", 1, errno="EMFILE")
            began = cpu_seconds(worker)
            pass_time(0.5)
            assert cpu_seconds(worker) - began < 0.2
            assert is_served(kept)
        assert all(map(is_served, waiting))
        assert log_lines(proxy, "cannot accept on") <= 10


def test_flows_are_refused_without_descriptors_and_served_when_there_are_some(start_proxy: StartProxy) -> None:
    with UdpTarget() as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\nworkers = 1\n')
        known, *new = (stack.enter_context(proxy.udp()) for _ in range(31))
        assert ask(known) == ask(known) == b"x"
        with no_more_descriptors(proxy.worker_pids()[1]):
            for client in new:
                client.send(b"lost")
            proxy.wait_for_metric("socket_errors_total", 30, protocol="udp", errno="EMFILE")
            assert proxy.metric("datagrams_dropped_total", reason="resources") == 30
            assert ask(known) == b"x"
        assert ask(new[0], b"now") == b"now"
        assert log_lines(proxy, "cannot open a flow") <= 10


@pytest.fixture
def few_ports() -> Iterator[str]:
    """A network namespace where a socket that is not bound gets one of four ports."""
    with Namespaces("ports") as nets:
        with inside(nets["ports"]):
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40003")
        yield nets["ports"]


def bound(kind: socket.SocketKind, port: int, proxy: Proxy) -> socket.socket:
    """A client that takes none of the ports that the proxy needs."""
    client = socket.socket(socket.AF_INET, kind)
    client.bind(("127.0.0.1", port))
    client.settimeout(PATIENCE)
    client.connect(proxy.address)
    return client


@pytest.mark.netns
def test_flows_without_a_port_towards_the_target_are_refused_until_there_is_one(
    start_proxy: StartProxy, few_ports: str
) -> None:
    with inside(few_ports), UdpTarget(port=30_001) as target, contextlib.ExitStack() as stack:
        config = f'udp_target = ["{target.text}"]\nudp_idle_lifetime = 1\nworkers = 1\n'
        proxy = start_proxy(config, netns=few_ports)
        *known, fifth = (stack.enter_context(bound(socket.SOCK_DGRAM, 30_100 + number, proxy)) for number in range(5))
        for _ in range(2):
            assert [ask(client) for client in known] == [b"x"] * 4
        fifth.send(b"lost")
        proxy.wait_for("no local port is left")
        assert [ask(client) for client in known] == [b"x"] * 4
        proxy.wait_for_session(reason="idle")
        assert ask(fifth, b"now") == b"now"


@pytest.mark.netns
def test_connections_without_a_port_towards_the_target_end_until_there_is_one(
    start_proxy: StartProxy, few_ports: str
) -> None:
    with inside(few_ports), TcpTarget(echo, port=30_001) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nworkers = 1\n', netns=few_ports)
        clients = [stack.enter_context(bound(socket.SOCK_STREAM, 30_100 + number, proxy)) for number in range(4)]
        assert all(map(is_served, clients))
        with bound(socket.SOCK_STREAM, 30_110, proxy) as fifth:
            assert fifth.recv(1) == b""
        proxy.wait_for(": ports_exhausted")
        assert all(map(is_served, clients))
        clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        clients[0].close()
        proxy.wait_for_session(reason="client_reset")
        with bound(socket.SOCK_STREAM, 30_111, proxy) as sixth:
            assert is_served(sixth)


@under_seccomp
@pytest.mark.parametrize("call", ["socket", "connect"])
@pytest.mark.parametrize("name", SHORTAGES)
def test_sockets_towards_targets_that_the_kernel_refuses_are_counted(
    start_proxy: StartProxy, name: str, call: str
) -> None:
    socket_rules = [Rule("socket", SHORTAGES[name], where) for where in (TCP_TOWARDS_TARGET, UDP_TOWARDS_TARGET)]
    rules = socket_rules if call == "socket" else [Rule("connect", SHORTAGES[name])]
    with UdpTarget() as udp, contextlib.ExitStack() as stack:
        config = f'tcp_target = ["127.0.0.1:9"]\nudp_target = ["{udp.text}"]\nworkers = 1\n'
        proxy = start_proxy(config, launcher=seccomp.arguments(rules))
        client = stack.enter_context(proxy.connect())
        assert client.recv(1) == b""
        stack.enter_context(proxy.udp()).send(b"x")
        for protocol in ("tcp", "udp"):
            proxy.wait_for_metric("socket_errors_total", 1, protocol=protocol, errno=name)
            assert proxy.metric("sessions_rejected_total", protocol=protocol, reason="resources") == 1


@under_seccomp
@pytest.mark.parametrize("name", SHORTAGES)
def test_a_kernel_that_accepts_nothing_is_asked_calmly(start_proxy: StartProxy, name: str) -> None:
    # The admin process cannot accept either, so there are no metrics here.
    proxy = start_proxy(
        'tcp_target = ["127.0.0.1:9"]\nworkers = 1\nadmin = { listen = "" }\n',
        launcher=seccomp.arguments([Rule("accept4", SHORTAGES[name])]),
    )
    worker = proxy.worker_pids()[1]
    with proxy.connect():
        proxy.wait_for("cannot accept on")
        began = cpu_seconds(worker)
        proxy.wait_for("cannot accept on", count=3)
        assert cpu_seconds(worker) - began < 0.2
        assert log_lines(proxy, "cannot accept on") == 3
