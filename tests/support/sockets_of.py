"""Which sockets a process has, and whom they are connected to: /proc/PID/fd and /proc/PID/net (proc(5))."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.resources import open_links

_SOCKET: Final = "socket:["


class Pair(NamedTuple):
    """Both ends of an IPv4 socket; ("0.0.0.0", 0) for one that is not connected."""

    local: tuple[str, int]
    remote: tuple[str, int]


def sockets_of(pid: int, kind: str) -> frozenset[Pair]:
    """The IPv4 sockets of a process; ``kind`` is "tcp" or "udp". What it opens or closes meanwhile may be missing."""
    owned = {link[len(_SOCKET) : -1] for link in open_links(pid) if link.startswith(_SOCKET)}
    table = Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    rows = (line.split() for line in table)
    return frozenset(Pair(_address(row[1]), _address(row[2])) for row in rows if row[9] in owned)


def _address(text: str) -> tuple[str, int]:
    """Hexadecimal, the address in the machine's byte order."""
    host, _, port = text.partition(":")
    return socket.inet_ntoa(struct.pack("=I", int(host, 16))), int(port, 16)
