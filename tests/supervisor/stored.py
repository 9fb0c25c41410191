"""A stand-in for the supervisor in a process of its own: listens, or finds what one before it listened on.

``python -m tests.supervisor.stored PORT SLOTS``. It adopts what it was passed and opens the rest, has all of it stored,
says READY, writes what waited in the queues when it started, and waits to be killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any, Final

from rpxy_l4.control import Place
from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor.sockets import ListeningSockets
from rpxy_l4.supervisor.systemd import Notifier, inherited, parse_socket_name, socket_name, take
from rpxy_l4.verdict import Transport

_BACKLOG: Final = 64


def main(port: int, slots: int) -> None:
    taken = take(os.environ)
    notifier = Notifier(taken)
    binds = [Bind(transport, "127.0.0.1", port) for transport in Transport]
    sockets = ListeningSockets(slots)
    known = [(parse_socket_name(name), descriptor) for name, descriptor in inherited(taken, os.getpid())]
    offered = [(*place, descriptor) for place, descriptor in known if place is not None]
    refused = sockets.adopt(offered, binds)
    for stored, _ in known:
        if stored is not None and stored[:2] in refused:
            notifier.remove(socket_name(*stored))
    notifier.barrier(10.0)
    adopted = len(sockets.binds)
    sockets.open([bind for bind in binds if bind not in sockets.binds], _BACKLOG)
    waiting = {str(bind.transport): [_take_all(sockets, bind, slot) for slot in range(slots)] for bind in binds}
    for bind in binds:
        for slot in range(slots):
            notifier.store(socket_name(bind, slot, slots), sockets.descriptors([Place(slot, bind)]))
    notifier.ready("serving")
    inodes = [
        os.fstat(number).st_ino
        for slot in range(slots)
        for number in sockets.descriptors([Place(slot, bind) for bind in binds])
    ]
    words: dict[str, Any] = {"adopted": adopted, "refused": len(refused), "sockets": inodes, **waiting}
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()
    while True:
        signal.pause()


def _take_all(sockets: ListeningSockets, bind: Bind, slot: int) -> list[str]:
    """What waits in one queue: the ports of the clients, or the datagrams."""
    found: list[str] = []
    with socket.socket(fileno=os.dup(sockets.descriptors([Place(slot, bind)])[0])) as held:
        try:
            while True:
                if bind.transport is Transport.TCP:
                    connection, (_, port) = held.accept()
                    connection.sendall(b"served")
                    connection.close()
                    found.append(str(port))
                else:
                    found.append(held.recv(100).decode())
        except BlockingIOError:
            return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
