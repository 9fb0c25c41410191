from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rpxy_l4 import logs
from rpxy_l4.admin.main import run
from rpxy_l4.admin.resolver import parse_hosts
from rpxy_l4.control import Addresses, Apply, Message, ReopenLogs, Status
from rpxy_l4.metrics.layout import T_BYTES_IN, target_offset
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel
from tests.admin import material
from tests.support.waiting import PATIENCE, eventually

LOCALHOST = ("127.0.0.1", "::1")


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class Supervisor:
    """The supervisor's side of an admin process."""

    def __init__(self, log_dir: Path, room: int | None = None) -> None:
        """``room``: bytes that the admin process can send before it is read."""
        self.slab = Slab(3)
        self.listening = listen()
        self.port: int = self.listening.getsockname()[1]
        self.channel, end = Channel.pair()
        if room is not None:
            end._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                self.channel.close()
                logs.setup("admin", log_dir)
                status = run(end, self.slab, 2, self.listening)
            finally:
                os._exit(status)
        end.close()

    def tell(self, message: Message, *descriptors: int) -> None:
        assert self.channel.send(message, descriptors)

    def hear(self, timeout: float = PATIENCE) -> Addresses | None:
        """The next message; None when there is none within ``timeout`` seconds."""
        if not select.select([self.channel], [], [], timeout)[0]:
            return None
        received = self.channel.receive()
        assert received is not None
        message, descriptors = received
        assert isinstance(message, Addresses)
        assert descriptors == []
        return message

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def end(self) -> int:
        """Close the channel and return the exit status."""
        self.channel.close()
        self.listening.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path)
    yield made
    with suppress(ChildProcessError):
        assert made.end() == 0
    # Whatever was worth a line is a fault here.
    assert (tmp_path / logs.EVENT_FILE).read_text() == ""


def status(*names: str, generation: int = 1) -> Status:
    return material.status(material.snapshot(generation, names=names))


def test_it_is_not_ready_before_the_supervisor_has_spoken(supervisor: Supervisor) -> None:
    assert supervisor.get("/livez") == (200, "ok\n")
    assert supervisor.get("/readyz") == (503, "no configuration is in force yet\n")
    assert "rpxy_l4_build_info" in supervisor.get("/metrics")[1]


def test_it_shows_the_configuration_in_force_and_what_the_workers_counted(supervisor: Supervisor) -> None:
    supervisor.slab.row(1)[target_offset(0) + T_BYTES_IN] = 77
    supervisor.tell(status(generation=1))
    supervisor.tell(status(generation=2))
    eventually(lambda: 'generation="2"' in supervisor.get("/metrics")[1])

    assert supervisor.get("/readyz") == (200, "ok\n")
    text = supervisor.get("/metrics")[1]
    assert 'generation="1"' not in text
    assert (
        'rpxy_l4_bytes_total{direction="in",listener=":8448",protocol="tcp",route="web",target="10.0.0.1:443"} 77.0'
        in text
    )


def test_it_reads_the_processes_of_the_workers(supervisor: Supervisor) -> None:
    supervisor.tell(material.status(pids=(os.getpid(), None)))
    supervisor.hear()

    text = supervisor.get("/metrics")[1]
    assert 'rpxy_l4_worker_resident_memory_bytes{worker="1"}' in text
    assert 'rpxy_l4_worker_resident_memory_bytes{worker="2"}' not in text


def test_every_new_configuration_is_answered_with_the_addresses_and_no_other_status_is(supervisor: Supervisor) -> None:
    supervisor.tell(status("localhost"))
    assert supervisor.hear() == Addresses({"localhost": LOCALHOST} | local_names("localhost"))
    supervisor.tell(material.status(material.snapshot(1, names=["localhost"]), states=("ready", "dead")))
    supervisor.tell(status("localhost", generation=2))
    assert supervisor.hear() == Addresses({"localhost": LOCALHOST} | local_names("localhost"))
    supervisor.tell(status(generation=3))
    assert supervisor.hear() == Addresses({})
    assert supervisor.hear(timeout=0.05) is None


def local_names(*names: str) -> dict[str, tuple[str, ...]]:
    """What this machine's hosts file says."""
    hosts = parse_hosts(Path("/etc/hosts").read_text())
    return {name: hosts[name] for name in names if name in hosts}


def test_a_new_listening_socket_takes_the_place_of_the_old_one(supervisor: Supervisor) -> None:
    with listen() as other:
        port = other.getsockname()[1]
        supervisor.tell(status(), other.fileno())
        assert supervisor.get("/livez", port) == (200, "ok\n")
    supervisor.listening.close()

    eventually(lambda: not accepts(supervisor.port), "the old address is given up")
    assert supervisor.get("/livez", port) == (200, "ok\n")


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_configuration_without_an_admin_address_closes_it_and_another_opens_it_again(supervisor: Supervisor) -> None:
    supervisor.tell(material.status(material.snapshot(1, admin=None)))
    supervisor.listening.close()
    eventually(lambda: not accepts(supervisor.port), "the address is given up")
    with listen() as other:
        supervisor.tell(status(generation=2), other.fileno())
        assert supervisor.get("/livez", other.getsockname()[1]) == (200, "ok\n")


def test_it_leaves_the_signals_of_the_group_to_the_supervisor(supervisor: Supervisor) -> None:
    supervisor.tell(status())
    supervisor.hear()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(supervisor.pid, number)

    assert supervisor.get("/livez") == (200, "ok\n")
    assert supervisor.end() == 0


def test_it_ends_quickly_when_the_supervisor_is_gone_even_in_the_middle_of_a_request(supervisor: Supervisor) -> None:
    with socket.create_connection(("127.0.0.1", supervisor.port)):
        began = time.monotonic()

        assert supervisor.end() == 0
        assert time.monotonic() - began < 2


def test_it_is_named_for_ps(supervisor: Supervisor) -> None:
    supervisor.get("/livez")

    title = Path(f"/proc/{supervisor.pid}/cmdline").read_bytes()
    assert title.rstrip(b"\0") == b"rpxy-l4: admin"


def test_it_opens_its_logs_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.get("/livez")
    log = tmp_path / logs.EVENT_FILE
    log.rename(tmp_path / "rotated")
    supervisor.tell(ReopenLogs())

    eventually(log.exists)


def test_what_is_meant_for_a_worker_is_refused_and_its_descriptors_are_closed(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    try:
        ours, theirs = socket.socketpair()
        with ours:
            supervisor.tell(Apply(material.snapshot(), {}, frozenset()), theirs.fileno())
            theirs.close()
            ours.settimeout(PATIENCE)
            assert ours.recv(1) == b""
        assert supervisor.get("/livez") == (200, "ok\n")
    finally:
        assert supervisor.end() == 0
    assert "not for the admin process: Apply" in (tmp_path / logs.EVENT_FILE).read_text()


@pytest.mark.slow
def test_addresses_that_find_no_room_are_sent_when_there_is_some(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, room=4096)
    for generation in range(20):
        supervisor.tell(status(generation=generation))
    supervisor.tell(status("localhost", generation=20))
    # Not a word of its was read until here.
    eventually(lambda: 'generation="20"' in supervisor.get("/metrics")[1])
    heard = 0
    while (message := supervisor.hear()) is not None and "localhost" not in message.addresses:
        heard += 1

    assert message is not None
    assert heard < 20
    assert supervisor.end() == 0
