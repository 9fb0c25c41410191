"""Who does not read holds the sender back, and costs the worker no memory of its own."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.exactness import Stream
from tests.support.proxy import Proxy
from tests.support.waiting import PATIENCE

KIB: Final = 1024
MIB: Final = 1024 * KIB

OFFERED: Final = 10 * 1024 * MIB
"""What the sender would send if nobody held it back."""
AFTERWARDS: Final = 4 * MIB
"""More than fits on top of what waits, so that the session has to move again."""

SMALL_BUFFER: Final = 64 * KIB

BESIDE_BUFFERS: Final = 2 * MIB
"""A pipe, and the small buffers of both ends."""
MAX_GROWTH: Final = 8 * MIB

STALLED_SECONDS: Final = 0.5
"""A sender that can send nothing for so long is held back; whoever is not needs microseconds."""


@dataclass
class Session:
    """One session whose sender offers without end, and whose reader reads when told to."""

    sender: socket.socket
    reader: socket.socket
    stream: Stream
    sent: int = 0
    read: int = 0

    def offer(self, limit: int) -> None:
        """Send some, until ``limit`` bytes have been sent in all; nothing when the socket takes nothing."""
        self.sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.sent += self.sender.send(self.stream.piece(self.sent, min(256 * KIB, limit - self.sent)))

    def read_on(self) -> None:
        """Read to the end of file and check every byte."""
        self.reader.settimeout(PATIENCE)
        while data := self.reader.recv(256 * KIB):
            assert data == self.stream.piece(self.read, len(data)), f"wrong bytes after {self.read}"
            self.read += len(data)

    def finish(self) -> None:
        """Read on, while the sender sends some more and ends."""

        def go_on() -> None:
            offer_until_stalled([self], wanted, PATIENCE)
            self.sender.shutdown(socket.SHUT_WR)

        wanted = self.sent + AFTERWARDS
        sending = threading.Thread(target=go_on)
        sending.start()
        self.read_on()
        sending.join(PATIENCE)
        assert self.read == self.sent == wanted


def offer_until_stalled(sessions: Sequence[Session], limit: int, patience: float) -> None:
    """Send in all of them until each has sent ``limit`` bytes in all, or none took a byte for ``patience`` seconds."""
    while unfinished := {session.sender: session for session in sessions if session.sent < limit}:
        writable = select.select([], unfinished, [], patience)[1]
        if not writable:
            return
        for sender in writable:
            unfinished[sender].offer(limit)


@contextlib.contextmanager
def open_sessions(proxy: Proxy, listener: socket.socket, count: int, stalls: str) -> Iterator[list[Session]]:
    """Sessions through the proxy in which one side, ``client`` or ``target``, does not read yet.

    The buffers of both ends are small: what waits on the way waits in the proxy, and in the kernel on its behalf.
    """
    listener.settimeout(PATIENCE)
    with contextlib.ExitStack() as stack:
        sessions = []
        for number in range(count):
            client = stack.enter_context(proxy.connect())
            target = stack.enter_context(listener.accept()[0])
            sender, reader = (target, client) if stalls == "client" else (client, target)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sessions.append(Session(sender, reader, Stream(number)))
        yield sessions


def most_on_the_way() -> int:
    """What one session may have taken in when nothing moves: a full receive buffer, a full send buffer, a pipe.

    How far those buffers grow is the machine's to say; the kernel may overdraw them, hence twice.
    """
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{kind}").read_text().split()[-1] for kind in ("rmem", "wmem"))
    return 2 * sum(map(int, limits)) + BESIDE_BUFFERS


def memory(pid: int) -> int:
    """The proportional set size of a process in bytes: its own pages, and its part of those it shares."""
    match = re.search(r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * KIB


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("stalls", ["client", "target"])
def test_a_side_that_stops_reading_holds_the_other_back_and_gets_everything_later(
    start_proxy: StartProxy, stalls: str, count: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\nworkers = 1\n')
        (worker,) = proxy.worker_pids().values()
        with open_sessions(proxy, listener, 1, stalls) as warm:  # what a worker needs once is not what is measured
            for session in warm:
                session.finish()
        before = memory(worker)
        with open_sessions(proxy, listener, count, stalls) as stalled:
            offer_until_stalled(stalled, OFFERED, STALLED_SECONDS)
            assert max(session.sent for session in stalled) < most_on_the_way()
            assert memory(worker) - before < MAX_GROWTH
            for session in stalled:
                session.finish()

        counted = [
            int(line["bytes_out" if stalls == "client" else "bytes_in"]) for line in proxy.wait_for_sessions(1 + count)
        ]
    assert sorted(counted[1:]) == sorted(session.sent for session in stalled)


@pytest.mark.slow
def test_both_sides_that_stop_reading_at_once_hold_each_other_back(start_proxy: StartProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\nworkers = 1\n')
        with proxy.connect() as client, listener.accept()[0] as target:
            up, down = Session(client, target, Stream(0)), Session(target, client, Stream(1))
            offer_until_stalled([up, down], OFFERED, STALLED_SECONDS)
            # The one direction goes on while the other still stands.
            up.sender.shutdown(socket.SHUT_WR)
            up.read_on()
            assert up.read == up.sent
            down.finish()

        line = proxy.wait_for_session()
    assert (int(line["bytes_in"]), int(line["bytes_out"])) == (up.sent, down.sent)
