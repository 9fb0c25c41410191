"""The world that a configuration of the README speaks of, with its very ports, in a network namespace of its own.

Run as a program inside the namespace: reads a configuration from standard input, listens on every target in it, starts
the real proxy, sends what each route is for, and prints a line for each that says where it arrived.
"""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.support.hellos import openssl_hello
from tests.support.proxy import Proxy
from tests.support.quic_packets import aioquic_client, first_flight
from tests.support.targets import TcpTarget, UdpTarget

_PLAIN: Final = {
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "socks5": b"\x05\x01\x00",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "default": b"\xff plain bytes",
}
_PROXIED: Final = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n"

Case = tuple[str, str, bytes, list[str]]
"""Route, transport, what a client sends first, the targets that may answer."""


def main() -> None:
    """Print ``route transport outcome`` for each case; the outcome is ``ok``, ``dropped`` or what went wrong."""
    text = sys.stdin.read()
    config = tomllib.loads(text)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for transport, port in sorted(_targets(config)):
            if transport == "tcp":
                stack.enter_context(TcpTarget(_names_itself(port), port=port))
            else:
                stack.enter_context(UdpTarget(f"{port}", port=port))
        proxy = stack.enter_context(Proxy(Path(folder), text, port=config["listen_port"], as_it_stands=True))
        for route, transport, first, targets in _cases(config):
            prefix = _PROXIED if config.get("tcp_recv_proxy_protocol") and transport == "tcp" else b""
            answer = _ask(proxy, transport, prefix + first)
            ports = {target.rpartition(":")[2].encode() for target in targets}
            outcome = "dropped" if answer is None else "ok" if answer in ports else f"answered by {answer!r}"
            print(route, transport, outcome)  # noqa: T201  this is how the test hears of it
        # Not TERM: the flows would be waited for.
        proxy.signal(signal.SIGQUIT)
        proxy.wait_end()


def _names_itself(port: int) -> Any:
    def handle(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(f"{port}:".encode())

    return handle


def _routes(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, entry in config.get("protocols", {}).items():
        yield name, "udp" if entry["protocol"] in {"quic", "wireguard"} else "tcp", entry
    for transport in ("tcp", "udp"):
        yield "default", transport, {"protocol": "default", "target": config.get(f"{transport}_target", [])}


def _targets(config: dict[str, Any]) -> set[tuple[str, int]]:
    return {
        (transport, int(target.rpartition(":")[2]))
        for _, transport, entry in _routes(config)
        for target in entry["target"]
    }


def _cases(config: dict[str, Any]) -> Iterator[Case]:
    served = {transport for transport, _ in _targets(config)}
    for name, transport, entry in _routes(config):
        server_name = (entry.get("server_names") or ["elsewhere.example"])[0]
        alpn = entry.get("alpn") or ["http/1.1"]
        match entry["protocol"]:
            case "tls":
                first = openssl_hello(server_name, alpn)
            case "quic":
                (first, *_) = first_flight(aioquic_client(server_name, *alpn))
            case "wireguard":
                first = b"\x01\0\0\0" + bytes(144)
            case plain:
                first = _PLAIN[plain]
        if transport in served:
            yield name, transport, first, entry["target"]


def _ask(proxy: Proxy, transport: str, first: bytes) -> bytes | None:
    """Send, and return the port that answered; None when the proxy dropped it."""
    if transport == "tcp":
        with proxy.connect() as client:
            client.sendall(first)
            try:
                return client.recv(100).partition(b":")[0] or None
            except ConnectionResetError:
                return None
    dropped = proxy.metric("datagrams_dropped_total", reason="no_route")
    with proxy.udp() as client:
        client.send(first)
        answer: list[bytes] = []
        listening = threading.Thread(target=lambda: answer.append(_receive(client)), daemon=True)
        listening.start()
        while listening.is_alive():
            listening.join(0.02)
            if proxy.metric("datagrams_dropped_total", reason="no_route") > dropped:
                return None
        return answer[0].partition(b":")[0]


def _receive(client: socket.socket) -> bytes:
    try:
        return client.recv(65_536)
    except OSError as error:
        return repr(error).encode()


if __name__ == "__main__":
    main()
