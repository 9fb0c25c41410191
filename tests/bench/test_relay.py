"""The relay in C is only worth comparing with if it does the work: these are its bytes, beside the real sockets."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from bench import contestants, load, workloads
from bench.contestants import FLOOR, Running, find, version
from tests.support.targets import (
    TcpTarget,
    UdpTarget,
    digests,
    echo,
    read_all,
    read_exactly,
    speaks_first,
)
from tests.support.waiting import PATIENCE, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the relay is compiled"),
]

CONTESTANT = next(each for each in contestants.ALL if each.name == FLOOR)
WORKLOADS = {each.name: each for each in workloads.ALL}
NOISE = random.Random(1).randbytes(8 << 20)
RESET = struct.pack("ii", 1, 0)
UDP_SEGMENT = 103
STUCK_SECONDS = 0.1
MIB = 1 << 20
IDLE_DESCRIPTORS = 5
"""Standard input, output and error, the listening socket, the epoll set."""

Start = Callable[[str, int], AbstractContextManager[Running]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "CACHE", tmp_path_factory.mktemp("cache"))
        found = find(CONTESTANT, {})
        assert found is not None
        yield found


@pytest.fixture
def start(program: Path) -> Start:
    """The relay of a workload, to a port of 127.0.0.1; it must be alive at the end."""

    @contextmanager
    def run(workload: str, target: int) -> Iterator[Running]:
        cores = os.sched_getaffinity(0)
        with contestants.running(CONTESTANT, program, WORKLOADS[workload], target, cores) as relay:
            yield relay
            assert relay.process.poll() is None

    return run


def connect(relay: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), PATIENCE)


@contextmanager
def udp_socket() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(PATIENCE)
        yield opened


@contextmanager
def udp_client(relay: Running) -> Iterator[socket.socket]:
    with udp_socket() as client:
        client.connect(("127.0.0.1", relay.port))
        yield client


def send_until_stuck(client: socket.socket, most: int) -> int:
    """Send the noise again and again; return how much was taken."""
    client.settimeout(STUCK_SECONDS)
    sent = 0
    try:
        while sent < most:
            at = sent % len(NOISE)
            sent += client.send(NOISE[at : at + MIB])
    except TimeoutError:
        pass
    client.settimeout(PATIENCE)
    return sent


def send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(NOISE[:MIB])


def descriptors(relay: Running) -> int:
    return len(list(Path(f"/proc/{relay.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("source", sorted(load.SOURCES.glob("*.c")), ids=lambda path: path.name)
def test_every_program_compiles_without_a_warning(source: Path, tmp_path: Path) -> None:
    flags = ("-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror")

    subprocess.run(["cc", *flags, "-o", tmp_path / "any", source], check=True)


def test_its_version_is_that_of_its_compiler(program: Path) -> None:
    assert version(CONTESTANT, program) != "unknown"


# TCP


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, len(NOISE)])
def test_bytes_come_back_as_they_were_sent_and_the_ends_are_passed_on(start: Start, size: int) -> None:
    with TcpTarget(echo) as target, start("tcp-kept", target.port) as relay, connect(relay) as client:

        def send() -> None:
            client.sendall(NOISE[:size])
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert read_all(client) == NOISE[:size]
        sender.join(PATIENCE)


def test_small_messages_go_to_and_fro(start: Start) -> None:
    with TcpTarget(echo) as target, start("tcp-kept", target.port) as relay, connect(relay) as client:
        for number in range(100):
            client.sendall(b"%100d" % number)
            assert read_exactly(client, 100) == b"%100d" % number


def test_a_target_may_speak_first_and_end_first(start: Start) -> None:
    with TcpTarget(lambda each: each.sendall(b"220 hello")) as target, start("tcp-new", target.port) as relay:
        with connect(relay) as client:
            assert read_all(client) == b"220 hello"
            # Until then there may be the session of who looked whether it listens, too.
            eventually(lambda: descriptors(relay) == IDLE_DESCRIPTORS + 2)
        eventually(lambda: descriptors(relay) == IDLE_DESCRIPTORS)


def test_many_connections_are_not_mixed_up(start: Start) -> None:
    with TcpTarget(digests("d")) as target, start("tcp-new", target.port) as relay:
        clients = [connect(relay) for _ in range(50)]
        for number, client in enumerate(clients):
            client.sendall(b"x" * number)
        for number, client in enumerate(clients):
            with client:
                client.shutdown(socket.SHUT_WR)
                assert read_all(client).startswith(b"d %d " % number)


def test_who_does_not_read_is_not_read_from_and_nothing_is_lost(start: Start) -> None:
    with TcpTarget(echo) as target, start("tcp-up-1", target.port) as relay, connect(relay) as client:
        sent = send_until_stuck(client, 256 * MIB)
        assert sent < 256 * MIB
        with connect(relay) as other:  # who is in nobody's way
            other.sendall(b"hello")
            assert read_exactly(other, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        copies = sent // len(NOISE) + 1
        assert read_all(client) == (NOISE * copies)[:sent]


def test_a_reset_ends_one_session_and_no_other(start: Start) -> None:
    with TcpTarget(echo) as target, start("tcp-up-1", target.port) as relay, connect(relay) as kept:
        for size in (0, 1, MIB):
            with connect(relay) as client:
                client.sendall(NOISE[:size])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        kept.sendall(b"hello")
        assert read_exactly(kept, 5) == b"hello"
        # The session that is kept, and a pipe of each direction that is there for the next.
        eventually(lambda: descriptors(relay) <= IDLE_DESCRIPTORS + 2 + 4)


def test_a_target_that_resets_does_not_hurt_the_others(start: Start) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with TcpTarget(reset) as target, start("tcp-up-1", target.port) as relay:
        for _ in range(3):
            with connect(relay) as client, pytest.raises(ConnectionError):
                send_for_ever(client)


def test_a_client_of_a_target_that_is_not_there_is_let_go(start: Start) -> None:
    with start("tcp-new", contestants.free_port()) as relay:
        for _ in range(3):
            with connect(relay) as client:
                assert client.recv(1) == b""


def test_a_client_that_has_ended_still_gets_its_answer(start: Start) -> None:
    with TcpTarget(speaks_first(b"220 ")) as target, start("tcp-new", target.port) as relay, connect(relay) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"220 hello"


# UDP


def test_each_client_has_a_flow_and_gets_its_own_answers(start: Start) -> None:
    with UdpTarget("t") as target, start("udp-64", target.port) as relay, ExitStack() as stack:
        # All stay open: a port that is free again may be given to the next client, which would then have no new flow.
        for number in range(50):
            client = stack.enter_context(udp_client(relay))
            for size in (0, 1, 100, 9000):
                datagram = (b"%d " % number * size)[:size]
                client.send(datagram)
                assert client.recv(1 << 16) == b"t:" + datagram
        assert len(target.sources) == 50


@pytest.mark.parametrize("segmented", [True, False])
def test_bursts_arrive_datagram_by_datagram_in_both_directions(start: Start, segmented: bool) -> None:
    def send(sock: socket.socket, data: bytes) -> None:
        if segmented:
            sock.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1200))])
        else:
            for at in range(0, len(data), 1200):
                sock.send(data[at : at + 1200])

    with (
        udp_socket() as target,
        start("udp-segmented-1", target.getsockname()[1]) as relay,
        udp_client(relay) as client,
    ):
        # The last datagram of each is shorter; after the first few, the relay takes many at a time.
        for number in range(10):
            burst = NOISE[number * 30_000 :][: 20 * 1200 + number]
            parts = [burst[at : at + 1200] for at in range(0, len(burst), 1200)]
            send(client, burst)
            received = [target.recvfrom(1 << 16) for _ in parts]
            assert [data for data, _ in received] == parts

            target.connect(received[0][1])
            send(target, burst)
            assert [client.recv(1 << 16) for _ in parts] == parts


def test_datagrams_of_all_lengths_stay_in_order_among_bursts(start: Start) -> None:
    lengths = [1200] * 12 + [0, 1200, 1300, 1300, 7, 1200, 40_000, 1200, 1200, 1, 1, 0, 1200]
    datagrams = [NOISE[at : at + length] for at, length in enumerate(lengths)]
    with udp_socket() as target, start("udp-plain", target.getsockname()[1]) as relay, udp_client(relay) as client:
        client.send(b"hello")
        target.connect(target.recvfrom(10)[1])
        for _ in range(3):
            for one, other in ((client, target), (target, client)):
                for datagram in datagrams:
                    one.send(datagram)
                assert [other.recv(1 << 16) for _ in datagrams] == datagrams


def test_a_target_that_is_not_there_costs_datagrams_but_not_the_flow(start: Start) -> None:
    with udp_socket() as target:
        port = target.getsockname()[1]
        target.close()
        with start("udp-64", port) as relay, udp_client(relay) as client:
            for _ in range(5):
                client.send(b"lost")
            with UdpTarget(port=port):

                def answered() -> bool:
                    client.send(b"hello")
                    client.settimeout(STUCK_SECONDS)
                    try:
                        return client.recv(10) == b"hello"
                    except TimeoutError:
                        return False

                eventually(answered)


def test_an_idle_flow_is_forgotten(start: Start) -> None:
    assert WORKLOADS["udp-new"].idle == 1
    with UdpTarget() as target, start("udp-new", target.port) as relay, udp_client(relay) as client:
        client.send(b"one")
        assert client.recv(10) == b"one"
        assert descriptors(relay) == IDLE_DESCRIPTORS + 1

        eventually(lambda: descriptors(relay) == IDLE_DESCRIPTORS)
        client.send(b"two")
        assert client.recv(10) == b"two"
