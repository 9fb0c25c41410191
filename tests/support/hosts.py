"""A client, a proxy and a target that are hosts of their own, with cables between them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rpxy_l4.kernel.netlink import Netlink
from tests.support.http3 import Http3Target
from tests.support.netns import Namespaces, inside
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.proxy import Proxy, Session, run_cli
from tests.support.targets import Handler, TcpTarget, read_all, read_exactly
from tests.support.tls_files import TlsFiles
from tests.support.udp_echo import UdpEcho
from tests.support.waiting import PATIENCE, eventually
from tests.support.wireguard import tunnel

CLIENT: Final = {4: "10.1.0.1", 6: "2001:db8:1::1"}
PROXY: Final = {4: "10.1.0.2", 6: "2001:db8:1::2"}
TARGET: Final = {4: "10.2.0.1", 6: "2001:db8:2::1"}
LOCAL: Final = {4: "127.0.0.1", 6: "::1"}
_PIECE: Final = 50_000
OTHER: Final = "10.3.0.1"
"""The first of the targets that are one more."""


class Network:
    """A client, a proxy and a target, each a host of its own."""

    def __init__(self, nets: Namespaces, folder: Path) -> None:
        self.nets = nets
        self.folder = folder

    def at(self, name: str) -> contextlib.AbstractContextManager[None]:
        return inside(self.nets[name])

    def ip(self, name: str, *arguments: str) -> None:
        said = run("ip", "-n", self.nets[name], *arguments)
        assert said.returncode == 0, said.stdout

    def run(self, name: str, *command: str, **options: Any) -> str:
        said = run("ip", "netns", "exec", self.nets[name], *command, **options)
        assert said.returncode == 0, said.stdout
        return said.stdout

    @contextlib.contextmanager
    def proxy(self, config: str, **options: Any) -> Iterator[Proxy]:
        drain = "" if "drain_timeout" in config else "drain_timeout = 0\n"
        config = f'listen_address_v4 = "0.0.0.0"\nlisten_ipv6 = true\n{drain}{config}'
        with Proxy(self.folder, config, netns=self.nets["proxy"], tcp_by_kernel=True, **options) as proxy:
            yield proxy

    @contextlib.contextmanager
    def echo(self, host: str) -> Iterator[UdpEcho]:
        with self.at("proxy" if host in LOCAL.values() else "target"):
            target = UdpEcho(host)
        with target:
            yield target

    @contextlib.contextmanager
    def client(self, proxy: Proxy, family: int = 4) -> Iterator[socket.socket]:
        with self.at("client"), proxy.udp(PROXY[family]) as client:
            yield client

    def metric(self, proxy: Proxy, name: str) -> float:
        with self.at("proxy"):
            return proxy.metric(name)

    def in_kernel(self, proxy: Proxy) -> int:
        """How many datagrams were forwarded by the kernel, as far as that is counted by now."""
        return int(self.metric(proxy, "kernel_datagrams_total"))


@contextlib.contextmanager
def tunnel_to_proxy(network: Network) -> Iterator[str]:
    """Lead the client to the proxy by WireGuard, too; the proxy's address there."""
    mark, port = os.getpid() % 100_000, free_port()
    with (
        tunnel(network.nets["client"], f"wgc{mark}", "10.6.0.1/24", network.folder) as near,
        tunnel(network.nets["proxy"], f"wgp{mark}", "10.6.0.2/24", network.folder) as far,
    ):
        far.set("listen-port", str(port), "peer", near.public_key, "allowed-ips", "10.6.0.1/32")
        near.set("peer", far.public_key, "allowed-ips", "10.6.0.2/32", "endpoint", f"{PROXY[4]}:{port}")
        yield "10.6.0.2"


@contextlib.contextmanager
def make_network(folder: Path, *others: str) -> Iterator[Network]:
    """Of ``others``, each is one more target, at 10.3.0.1, 10.4.0.1 and so on."""
    with Namespaces("client", "proxy", "target", *others) as nets:
        nets.join("client", "10.1.0.1/24", "proxy", "10.1.0.2/24")
        nets.join("proxy", "10.2.0.2/24", "target", "10.2.0.1/24")
        made = Network(nets, folder)
        for name, interface, address in (
            ("client", "cable0a", "2001:db8:1::1"),
            ("proxy", "cable0b", "2001:db8:1::2"),
            ("proxy", "cable1a", "2001:db8:2::2"),
            ("target", "cable1b", "2001:db8:2::1"),
        ):
            made.ip(name, "-6", "address", "add", f"{address}/64", "dev", interface, "nodad")
        for number, other in enumerate(others, 3):
            nets.join("proxy", f"10.{number}.0.2/24", other, f"10.{number}.0.1/24")
        yield made


@contextlib.contextmanager
def capture(network: Network, name: str, interface: str, what: str = "udp") -> Iterator[Callable[[], list[str]]]:
    """What tcpdump says of UDP, or something else, on an interface, line by line as far as that is written."""
    command = ("tcpdump", "-i", interface, "-n", "-vv", "-l", what)
    with Program(*command, netns=network.nets[name]) as tcpdump:
        eventually(lambda: "listening on" in tcpdump.output(), "tcpdump listens")
        yield lambda: re.sub(r"\n\s+", " ", tcpdump.output()).splitlines()


def wait_for_lines(seen: Callable[[], list[str]], text: str, count: int) -> list[str]:
    """The lines of a capture that have a text in them, when there are so many."""

    def enough() -> list[str]:
        lines = [line for line in seen() if text in line]
        return lines if len(lines) >= count else []

    return eventually(enough, f"{count} lines with {text!r}")


def control(network: Network) -> str:
    return f'[admin]\nlisten = "127.0.0.1:9448"\ncontrol = "{network.folder}/control"\n'


def status(network: Network) -> str:
    said = run_cli("ctl", "-s", f"{network.folder}/control", "status")
    assert said.returncode == 0, said.stderr
    return next(line for line in said.stdout.splitlines() if line.startswith("kernel path"))


def interfaces() -> list[int]:
    with contextlib.closing(Netlink()) as netlink:
        return [link.number for link in netlink.links()]


@contextlib.contextmanager
def target_at(network: Network, host: str, handler: Handler, port: int = 0) -> Iterator[TcpTarget]:
    """A server at a host's address, run by this process."""
    with network.at("proxy" if host in LOCAL.values() else "other" if host == OTHER else "target"):
        made = TcpTarget(handler, host, port)
    with made:
        yield made


@contextlib.contextmanager
def http3_at(network: Network, host: str, files: TlsFiles) -> Iterator[Http3Target]:
    """An HTTP/3 server at a host's address. Its thread, and so its sockets, are of that host."""
    with network.at("proxy" if host in LOCAL.values() else "target"), contextlib.ExitStack() as opening:
        target = opening.enter_context(Http3Target("web", files, host=host))
        stack = opening.pop_all()
    with stack:
        yield target


def connect(
    network: Network, proxy: Proxy, host: str = PROXY[4], *, at: str = "client", port: int = 0
) -> socket.socket:
    """A connection from a host to the proxy; from this port, where one is given."""
    with network.at(at):
        return socket.create_connection((host, proxy.port), PATIENCE, ("", port) if port else None)


def exchange(
    network: Network, proxy: Proxy, data: bytes = b"hello", host: str = PROXY[4], *, at: str = "client"
) -> bytes:
    """Send all, say that this is all, and return what comes until the end."""
    with connect(network, proxy, host, at=at) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def by_pieces(network: Network, proxy: Proxy, data: bytes, host: str = PROXY[4]) -> bytes:
    """Send what a target returns in pieces that fit into the buffers of both, and return what came of all."""
    got = bytearray()
    with connect(network, proxy, host) as client:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            client.sendall(piece)
            got += read_exactly(client, len(piece))
    return bytes(got)


def warm_up(network: Network, proxy: Proxy, host: str = PROXY[4], *, at: str = "client") -> None:
    """One connection in user space: the client is known then, and its target has answered."""
    exchange(network, proxy, host=host, at=at)


def by_kernel(proxy: Proxy, count: int = 1, **wanted: str) -> list[Session]:
    """The lines of so many connections that went by the kernel."""
    return proxy.wait_for_sessions(count, worker="kernel", **wanted)
