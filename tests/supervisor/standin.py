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
from rpxy_l4.control import (
    Addresses,
    Applied,
    Apply,
    Attach,
    Drain,
    Draining,
    Inherit,
    Inherited,
    NotApplied,
    Release,
    Released,
    ReopenLogs,
    Status,
)
from rpxy_l4.flow_memory import FlowMemories
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

LOSES: Final = 21
"""Takes the configuration, and says that something behind it was lost, once."""

_BEAT: Final = 0.5


def say(text: str) -> None:
    os.write(2, f"standin: {text}\n".encode())


def run_worker(number: int, workers: int, channel: Channel, slab: Slab, memories: FlowMemories) -> int:  # noqa: ARG001  as the real one
    """Be a worker in everything but serving."""
    backlog, has_lost = 0, False
    fresh: list[str] = []
    own = {0, 1, 2, channel.fileno(), *logs.current().descriptors()}
    while True:
        slab.row(number)[Cell.HEARTBEAT] = time.monotonic_ns()
        if not select.select([channel], [], [], _BEAT)[0]:
            continue
        received = channel.receive()
        message, descriptors = received if received is not None else (None, [])
        match message:
            case Attach(places):
                fresh += [f"{place.slot}:{place.bind.host}" for place in places]
                own.update(descriptors)
            case Apply(snapshot, addresses, slots, order):
                backlog = snapshot.tcp_backlog
                if backlog == DIES:
                    return 3
                if backlog == WAITS:
                    (Path(sys.argv[1]).parent / "gate").read_bytes()
                extra = len(open_descriptors() - own)
                shown = ",".join(map(str, sorted(slots)))
                new = ",".join(fresh) or "-"
                say(f"worker {number} applies {snapshot.generation}: slots {shown or '-'}, new {new}, extra {extra}")
                fresh.clear()
                say(f"worker {number} knows {dict(addresses)}")
                channel.send(Applied(snapshot.generation, order))
                if backlog == LOSES and not has_lost:
                    has_lost = True
                    channel.send(NotApplied())
                if backlog == TELLS_NONSENSE:
                    os.write(channel.fileno(), b"inonsense")
            case Release(slot):
                os.close(descriptors[0])
                say(f"worker {number} releases {slot}")
                channel.send(Released(slot))
            case Inherit(slot):
                os.close(descriptors[0])
                say(f"worker {number} inherits {slot}, new {','.join(fresh)}")
                fresh.clear()
                channel.send(Inherited(slot))
            case Addresses(addresses):
                say(f"worker {number} knows {dict(addresses)}")
            case Drain(timeout):
                say(f"worker {number} drains for {timeout:g} s")
                channel.send(Draining())
                if backlog != STAYS:
                    return 0
            case ReopenLogs():
                logs.reopen()
                say(f"worker {number} reopens")
            case _:
                return 0


def run_admin(channel: Channel, slab: Slab, workers: int, listening: ListeningSocket | None) -> int:
    """Know one name, and repeat what the supervisor says."""
    say(f"admin begins with {listening is not None}")
    generation = 0
    while True:
        slab.row(workers)[Cell.HEARTBEAT] = time.monotonic_ns()
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
