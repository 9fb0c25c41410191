"""A supervisor that dies, and the next one that a service manager starts with the sockets it kept."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.proxy import child_pids
from tests.support.service_manager import ServiceManager
from tests.support.targets import UdpTarget
from tests.support.udp_echo import UdpEcho
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.e2e

WIREGUARD_INITIATION = b"\x01\0\0\0" + bytes(144)
WIREGUARD_DATA = b"\x04\0\0\0" + bytes(28)


def test_nobody_is_refused_when_a_supervisor_dies_and_sessions_go_on(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "config.toml"
    arguments = ("-m", "rpxy_l4", "-c", str(path))
    with (
        ServiceManager(str(tmp_path / "notify")) as manager,
        socket.create_server(("127.0.0.1", 0), backlog=100) as target,
        UdpEcho() as echo,
        ExitStack() as stack,
    ):
        path.write_text(
            f'listen_port = {port}\nlisten_address_v4 = "127.0.0.1"\nworkers = 2\nwatch = false\n'
            'drain_timeout = "10s"\n'
            f'tcp_target = ["127.0.0.1:{target.getsockname()[1]}"]\nudp_target = ["127.0.0.1:{echo.port}"]\n'
            f'[admin]\nlisten = ""\n'
        )

        def connect() -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            return client, stack.enter_context(target.accept()[0])

        first = manager.start(*arguments)
        manager.hear_until("READY=1")
        before = connect()
        orphans = child_pids(first.pid)
        ServiceManager.kill(first)
        # The workers finish what they have and listen no more; only the copies of the service manager do.
        eventually(lambda: all(not listens(pid) for pid in orphans), "the orphans accept nothing new")
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(20)]
        asking = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(20)]
        for client in asking:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            client.send(b"waits")

        second = manager.start(*arguments)
        manager.hear_until("READY=1")
        for client in waiting:
            client.sendall(b"served")
        for _ in waiting:
            assert stack.enter_context(target.accept()[0]).recv(100) == b"served"
        assert all(client.recv(100).endswith(b"waits") for client in asking)
        before[0].sendall(b"still there")
        assert before[1].recv(100) == b"still there"

        # A reload is told of, and an address that leaves is forgotten.
        path.write_text(path.read_text().replace("udp_target", "#udp_target"))
        second.send_signal(signal.SIGHUP)
        manager.hear_until("RELOADING=1")
        manager.hear_until("READY=1")
        kept = {name for name, _ in manager.kept}
        second.send_signal(signal.SIGTERM)
        manager.hear_until("STOPPING=1")
        stack.close()
        assert second.wait(PATIENCE) == 0
        assert {name.split("_")[1] for name in kept if name.startswith("listen_")} == {"tcp"}


def test_more_workers_than_the_slots_of_before_get_new_sockets(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "config.toml"
    arguments = ("-m", "rpxy_l4", "-c", str(path))
    with ServiceManager(str(tmp_path / "notify")) as manager, UdpEcho() as echo:
        for workers in (1, 3):
            path.write_text(
                f'listen_port = {port}\nlisten_address_v4 = "127.0.0.1"\nworkers = {workers}\nwatch = false\n'
                f'udp_target = ["127.0.0.1:{echo.port}"]\n[admin]\nlisten = ""\n'
            )
            supervisor = manager.start(*arguments)
            manager.hear_until(f"applied on {workers}/{workers} workers")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(PATIENCE)
                client.connect(("127.0.0.1", port))
                client.send(b"hello")
                assert client.recv(100).endswith(b"hello")
            ServiceManager.kill(supervisor)


def test_flows_go_on_to_the_target_that_they_had_when_a_supervisor_dies(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "config.toml"
    arguments = ("-m", "rpxy_l4", "-c", str(path))
    with (
        ServiceManager(str(tmp_path / "notify")) as manager,
        UdpTarget("vpn") as vpn,
        UdpTarget("default") as default,
        ExitStack() as stack,
    ):
        path.write_text(
            f'listen_port = {port}\nlisten_address_v4 = "127.0.0.1"\nworkers = 2\nwatch = false\n'
            f'udp_target = ["{default.text}"]\n[admin]\nlisten = ""\n'
            f'[protocols.vpn]\nprotocol = "wireguard"\ntarget = ["{vpn.text}"]\n'
        )
        clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(20)]

        def ask(data: bytes) -> set[bytes]:
            """Which targets answered."""
            for client in clients:
                client.send(data)
            return {client.recv(1000).partition(b":")[0] for client in clients}

        supervisor = manager.start(*arguments)
        manager.hear_until("READY=1")
        for client in clients:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
        assert ask(WIREGUARD_INITIATION) == {b"vpn"}
        assert ask(WIREGUARD_DATA) == {b"vpn"}
        for life in range(3):
            if life == 1:  # series that came with a reload are remembered, too
                path.write_text(path.read_text().replace(f'["{default.text}"]', f'["127.0.0.1:1", "{default.text}"]'))
            ServiceManager.kill(supervisor)
            supervisor = manager.start(*arguments)
            manager.hear_until("READY=1")
            # Nothing in it tells what it is to somebody who has not seen the beginning.
            assert ask(WIREGUARD_DATA) == {b"vpn"}
        supervisor.send_signal(signal.SIGTERM)
        manager.hear_until("STOPPING=1")
        assert supervisor.wait(PATIENCE) == 0
        assert {name for name, _ in manager.kept if not name.startswith("listen_")} == {"flow_memory", "flow_meaning"}
        assert len(manager.kept) == 4 + 2


def listens(pid: int) -> bool:
    """Whether a process has a socket that listens."""
    try:
        inodes = {str(link.readlink())[8:-1] for link in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return False
    return any(row[3] == "0A" and row[9] in inodes for row in rows)
