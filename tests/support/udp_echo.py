"""A UDP target that shows which port a flow comes from, and clients of it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from typing import Final, Self

from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE

ENOUGH: Final = 12
"""Exchanges of a flow by which it is in the kernel path."""


class UdpEcho:
    """A UDP target that answers with what it got, behind the port it got it from."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((host, port))
        self._wake, self._woken = socket.socketpair()
        self.port: int = self._socket.getsockname()[1]
        self.text = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while self._woken not in select.select([self._socket, self._woken], [], [])[0]:
            data, client = self._socket.recvfrom(65536)
            with contextlib.suppress(OSError):  # the client is gone, or what it sent has no room for a port
                self._socket.sendto(b"%d %s" % (client[1], data), client)

    def close(self) -> None:
        self._wake.close()
        self._thread.join(PATIENCE)
        self._woken.close()
        self._socket.close()


@contextlib.contextmanager
def clients(proxy: Proxy, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(proxy.udp()) for _ in range(count)]


def ask(client: socket.socket, text: bytes) -> int:
    """Send once, without a second try; the port that the target saw."""
    client.send(text)
    port, _, rest = client.recv(65536).partition(b" ")
    assert rest == text
    return int(port)


def enter(client: socket.socket) -> int:
    """Exchange so much that the flow is in the kernel path; the port that the target saw, the same throughout."""
    ports = {ask(client, b"%d" % number) for number in range(ENOUGH)}
    assert len(ports) == 1
    return ports.pop()
