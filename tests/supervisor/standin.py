"""The real supervisor with children that serve nobody and say what they are told.

``python -m tests.supervisor.standin CONFIG``. ``tcp_backlog`` tells a worker how to behave: see the constants.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Final

from rpxy_l4 import logs
from rpxy_l4.control import Addresses, Applied, Apply, Drain, Draining, ReopenLogs, Status
from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.listen import ListeningSocket
from rpxy_l4.supervisor.main import Supervisor
from tests.support.descriptors import open_descriptors

DIES: Final = 13
"""Exit status 3 instead of taking the configuration."""
WAITS: Final = 15
"""Takes the configuration when somebody has written to the FIFO ``gate`` beside the configuration file."""
STAYS: Final = 17
"""Does not end when told to."""
TELLS_NONSENSE: Final = 19
"""Takes the configuration, and then says what nobody can understand."""

_BEAT: Final = 0.5


def say(text: str) -> None:
    os.write(2, f"standin: {text}\n".encode())


def run_worker(slot: int, slots: int, channel: Channel, slab: Slab) -> int:
    """Be a worker in everything but serving."""
    backlog = 0
    while True:
        slab.row(slot)[Cell.HEARTBEAT] = time.monotonic_ns()
        if not select.select([channel], [], [], _BEAT)[0]:
            continue
        received = channel.receive()
        message, descriptors = received if received is not None else (None, [])
        match message:
            case Apply(snapshot, addresses, attached):
                backlog = snapshot.tcp_backlog
                if backlog == DIES:
                    return 3
                if backlog == WAITS:
                    (Path(sys.argv[1]).parent / "gate").read_bytes()
                own = {0, 1, 2, channel.fileno(), *descriptors, *logs.current().descriptors()}
                extra = len(open_descriptors() - own)
                names = ",".join(attached_bind.host for attached_bind in attached)
                say(f"worker {slot}/{slots} applies {snapshot.generation}: new {names or '-'}, extra {extra}")
                say(f"worker {slot} knows {dict(addresses)}")
                channel.send(Applied(snapshot.generation))
                if backlog == TELLS_NONSENSE:
                    os.write(channel.fileno(), b"inonsense")
            case Addresses(addresses):
                say(f"worker {slot} knows {dict(addresses)}")
            case Drain(timeout):
                say(f"worker {slot} drains for {timeout:g} s")
                channel.send(Draining())
                if backlog != STAYS:
                    return 0
            case ReopenLogs():
                logs.reopen()
                say(f"worker {slot} reopens")
            case _:
                return 0


def run_admin(channel: Channel, slab: Slab, slots: int, listening: ListeningSocket | None) -> int:
    """Know one name, and repeat what the supervisor says."""
    say(f"admin begins with {listening is not None}")
    generation = 0
    while True:
        slab.row(slots)[Cell.HEARTBEAT] = time.monotonic_ns()
        if not select.select([channel], [], [], _BEAT)[0]:
            continue
        received = channel.receive()
        if received is None:
            return 0
        message, descriptors = received
        if isinstance(message, Status):
            states = ",".join(worker.state for worker in message.workers)
            say(f"admin sees {message.newest.generation} {states} {len(descriptors)} draining={message.draining}")
            if "known.test" in message.newest.names:
                channel.send(Addresses({"known.test": ("127.0.0.1",)}))
            if "flood.test" in message.newest.names and message.newest.generation > generation:
                for number in range(2000, 0, -1):
                    address = f"127.0.{number >> 8}.{number & 255}"
                    while not channel.send(Addresses({"flood.test": (address,)})):
                        select.select([], [channel], [], _BEAT)
                say("admin has said it all")
            generation = message.newest.generation
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    logs.setup("supervisor", None)
    sys.exit(Supervisor(Path(sys.argv[1]), None, run_worker=run_worker, run_admin=run_admin).run())
