"""Both ends of TCP sessions and UDP flows through a proxy, that know byte for byte what the other one sent."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

from tests.support.waiting import PATIENCE, pass_time

UDP_SEGMENT: Final = 103
"""Socket option of udp(7) that Python has no name for: one write becomes datagrams of this size."""

LARGEST_DATAGRAM: Final = 65_507
"""What UDP carries over IPv4."""

_READ: Final = 1 << 18
_STUCK_SECONDS: Final = 0.05


# Longer than any buffer on the way, and prime: what is lost, doubled or swapped by a power of two does not fit.
_PERIOD: Final = 4_194_301


@functools.cache
def _noise() -> memoryview:
    block = random.Random(_PERIOD).randbytes(_PERIOD)
    return memoryview(block + block)


@dataclass(frozen=True)
class Stream:
    """Endless bytes: the one at each position is known. Streams of different numbers have different bytes there."""

    number: int

    def piece(self, position: int, size: int) -> memoryview:
        """So many bytes, at most 4 MiB, from there."""
        start = (position + 10_007 * self.number) % _PERIOD
        return _noise()[start : start + size]


# TCP.


@dataclass(frozen=True)
class Write:
    """Send so many bytes with one call."""

    size: int


@dataclass(frozen=True)
class Settle:
    """Go on when the other end has read all that was sent."""


@dataclass(frozen=True)
class Rest:
    """Send nothing for so many seconds, in which the proxy can take what was sent: what follows comes by itself."""

    seconds: float


Step = Write | Settle | Rest


@dataclass(frozen=True)
class Plan:
    """What one end of a session does, apart from reading everything that comes."""

    steps: tuple[Step, ...]
    closes_last: bool = False
    """Its half-close waits until it has read the other end's. Of the two ends of a session one must not wait."""
    receive_buffer: int | None = None
    send_buffer: int | None = None
    holds: tuple[int, ...] = ()
    """After so many bytes, in rising order, it reads nothing until the other end has sent all, or can send no more."""

    @property
    def size(self) -> int:
        return sum(step.size for step in self.steps if isinstance(step, Write))


class TcpEnd:
    """One end of a session: a sender that follows its plan, and a reader that checks what comes."""

    def __init__(self, connection: socket.socket, plan: Plan, number: int) -> None:
        connection.settimeout(4 * PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, size in ((socket.SO_RCVBUF, plan.receive_buffer), (socket.SO_SNDBUF, plan.send_buffer)):
            if size is not None:
                connection.setsockopt(socket.SOL_SOCKET, option, size)
        self.plan = plan
        self.sent = 0
        """Bytes that the kernel took."""
        self.read = 0
        """Bytes that arrived."""
        self._connection = connection
        self._stream = Stream(number)
        self._changed = threading.Condition()
        self._closing = self._read_all = self._failed = False

    def send(self, other: TcpEnd) -> None:
        """Follow the plan and half-close."""
        with self._failing_together(other):
            for step in self.plan.steps:
                match step:
                    case Write(size):
                        self._write(size)
                    case Settle():
                        other.wait(lambda: other.read == self.sent)
                    case Rest(seconds):
                        pass_time(seconds)
            if self.plan.closes_last:
                self.wait(lambda: self._read_all)
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._connection.shutdown(socket.SHUT_WR)

    def _write(self, size: int) -> None:
        left = self._stream.piece(self.sent, size)
        while left:
            taken = self._connection.send(left)
            left = left[taken:]
            with self._changed:
                self.sent += taken
                self._changed.notify_all()

    def receive(self, other: TcpEnd) -> None:
        """Read to the end of file, and check every byte and that the end came after the last."""
        holds = list(self.plan.holds)
        with self._failing_together(other):
            while True:
                if holds and self.read >= holds[0]:
                    del holds[0]
                    other.wait_until_stuck()
                data = self._connection.recv(_READ)
                if not data:
                    break
                expected = other._stream.piece(self.read, len(data))
                assert data == expected, f"{_difference(data, expected)} after {self.read} bytes"
                with self._changed:
                    self.read += len(data)
                    self._changed.notify_all()
            assert other._closing, f"end of file after {self.read} bytes, which nobody sent"
            assert self.read == other.plan.size
            with self._changed:
                self._read_all = True
                self._changed.notify_all()

    def wait_until_stuck(self) -> None:
        """Until this end has sent all, or no byte for a while."""
        with self._changed:
            while not self._closing:
                if not self._changed.wait_for(functools.partial(self._has_moved, self.sent), _STUCK_SECONDS):
                    return

    def _has_moved(self, before: int) -> bool:
        return self._closing or self.sent > before

    @contextlib.contextmanager
    def _failing_together(self, other: TcpEnd) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.fail()
            other.fail()
            raise

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until something that this end has read makes it true."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._failed or condition(), 4 * PATIENCE), self.read
            assert not self._failed, "the other thread failed"

    def fail(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _difference(data: bytes, expected: memoryview) -> str:
    at = next(at for at, (got, wanted) in enumerate(itertools.zip_longest(data, expected)) if got != wanted)
    return f"{len(data)} bytes, wrong from the one at {at}"


def exchange(address: tuple[str, int], listener: socket.socket, plans: Sequence[tuple[Plan, Plan]]) -> None:
    """Run sessions at once, each with a plan of its client and of its target, and check every byte both ways.

    The proxy at ``address`` has ``listener`` as its only target, and connects to it without waiting for the client.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4 * len(plans)) as pool:
        jobs = []
        for number, (client_plan, target_plan) in enumerate(plans):
            client = stack.enter_context(socket.create_connection(address, PATIENCE))
            target = stack.enter_context(_accept(listener))
            one = TcpEnd(client, client_plan, 2 * number)
            two = TcpEnd(target, target_plan, 2 * number + 1)
            jobs += [
                pool.submit(act, other) for end, other in ((one, two), (two, one)) for act in (end.send, end.receive)
            ]
        errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            # The first cause: what the others say is that somebody else has failed.
            raise min(errors, key=lambda error: "other thread" in str(error) or isinstance(error, OSError))


def _accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(PATIENCE)
    return listener.accept()[0]


# UDP.


@dataclass(frozen=True)
class Burst:
    """Datagrams sent with one call: all of one length, but for the last, which may be shorter. Often just one."""

    parts: tuple[bytes, ...]

    @classmethod
    def cut(cls, data: bytes, segment: int) -> Self:
        """As the kernel will cut it. Without data it is one empty datagram."""
        return cls(tuple(data[at : at + segment] for at in range(0, len(data), segment)) or (b"",))

    def send(self, sock: socket.socket, to: tuple[str, int] | None = None) -> None:
        """Through a socket that is connected, or to an address."""
        segment = len(self.parts[0]).to_bytes(2, "little")
        cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, segment)] if len(self.parts) > 1 else []
        data = b"".join(self.parts)
        assert sock.sendmsg([data], cut, 0, *([] if to is None else [to])) == len(data)


class UdpFlows:
    """Clients of one proxy and their target, all in one thread: what is sent is received before more is sent.

    So no buffer overflows, nothing is lost, and whatever differs is a fault.
    """

    def __init__(self, clients: Sequence[socket.socket], target: socket.socket) -> None:
        """The clients are connected to the proxy; neither they nor the target ask for UDP_GRO."""
        self.clients = clients
        self._target = target
        target.settimeout(PATIENCE)
        self._flows: list[tuple[str, int]] = []
        for number, client in enumerate(clients):
            client.settimeout(PATIENCE)
            client.send(b"flow %d" % number)
            data, source = target.recvfrom(LARGEST_DATAGRAM)
            assert data == b"flow %d" % number
            self._flows.append(source)
        assert len(set(self._flows)) == len(clients)

    def exchange(self, up: Sequence[tuple[int, Burst]], down: Sequence[tuple[int, Burst]]) -> None:
        """Send bursts of clients, and of the target to clients, named by number; check what arrives and its order."""
        for client, burst in up:
            burst.send(self.clients[client])
        for client, burst in down:
            burst.send(self._target, self._flows[client])
        arrived: dict[tuple[str, int], list[bytes]] = {flow: [] for flow in self._flows}
        for _ in range(sum(len(burst.parts) for _, burst in up)):
            data, source = self._target.recvfrom(LARGEST_DATAGRAM + 1)
            arrived[source].append(data)
        for client, flow in enumerate(self._flows):
            _compare(arrived[flow], [part for number, burst in up if number == client for part in burst.parts])
        for client, sock in enumerate(self.clients):
            wanted = [part for number, burst in down if number == client for part in burst.parts]
            _compare([sock.recv(LARGEST_DATAGRAM + 1) for _ in wanted], wanted)

    def assert_nothing_is_left(self) -> None:
        """Nobody received anything beyond what was sent to it."""
        for sock in (*self.clients, self._target):
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                raise AssertionError(f"{len(sock.recv(LARGEST_DATAGRAM + 1))} bytes too many")


def _compare(got: Sequence[bytes], wanted: Sequence[bytes]) -> None:
    if got != wanted:
        raise AssertionError(
            f"datagrams of {[len(data) for data in got]}, not of {[len(data) for data in wanted]} bytes"
        )


# A wave of this much fits into every socket's buffer at its default size, by what the kernel charges for it.
_WAVE_BYTES: Final = 48_000
_WAVE_PARTS: Final = 60


def random_wave(chance: random.Random, flows: int, *, largest: int = LARGEST_DATAGRAM) -> list[tuple[int, Burst]]:
    """Bursts and single datagrams of random flows, in random order, that may be sent without waiting in between."""
    if chance.random() < 0.2:
        data = chance.randbytes(min(largest, chance.choice((0, largest, largest - 1, chance.randrange(largest + 1)))))
        return [(chance.randrange(flows), Burst((data,)))]
    wave: list[tuple[int, Burst]] = []
    parts_left, bytes_left = _WAVE_PARTS, _WAVE_BYTES
    while parts_left > 0 and bytes_left > 0 and chance.random() < 0.9:
        segment = min(largest, bytes_left, chance.choice((0, 1, 100, 1200, 1472, 9000, chance.randrange(20_000))))
        count = chance.choice((1, 1, 2, 3, chance.randrange(1, 61)))
        if segment == 0:
            burst = Burst((b"",))
        else:
            count = min(count, parts_left, max(1, bytes_left // segment))
            shorter = chance.choice((0, chance.randrange(segment), segment - 1))
            burst = Burst.cut(chance.randbytes(count * segment - shorter * (count > 1)), segment)
        wave.append((chance.randrange(flows), burst))
        parts_left -= len(burst.parts)
        bytes_left -= sum(map(len, burst.parts))
    return wave


@contextlib.contextmanager
def udp_socket(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A bound socket that is nobody's yet."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        yield sock
