"""Port numbers for programs that cannot be told to take any."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

# Below the kernel's ephemeral range (from 32768), so no outgoing connection of a test takes one in the meantime.
_FIRST: Final = 20_000
_LAST: Final = 32_000

# Processes that run tests side by side begin far from each other.
_next = itertools.count(os.getpid() * 97 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * 3000)


def free_port() -> int:
    """Return a port that nothing uses, TCP or UDP, on any address, and that this process has not given out lately."""
    for _ in range(_LAST - _FIRST):
        port = _FIRST + next(_next) % (_LAST - _FIRST)
        if all(_is_free(port, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            return port
    msg = "no free port"
    raise RuntimeError(msg)


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind is socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        try:
            probe.bind(("::", port))
        except OSError:
            return False
    return True
