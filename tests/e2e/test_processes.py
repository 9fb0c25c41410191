"""The supervisor and its children: what happens when one of them dies, hangs, or is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.program import change, copy_program
from tests.support.proxy import Proxy, cpu_seconds, process_title, run_cli
from tests.support.targets import TcpTarget, UdpTarget, answers, echo, read_all, read_exactly, reports
from tests.support.udp_echo import UdpEcho, ask, clients
from tests.support.waiting import PATIENCE, eventually, pass_time

DEATH: Final = r"worker|died|killed|signal"
CONFIG_ERROR: Final = 78  # EX_CONFIG, sysexits.h
UNAVAILABLE: Final = 69  # EX_UNAVAILABLE


def is_alive(client: socket.socket) -> bool:
    """Whether the echo behind a connection still answers."""
    try:
        client.sendall(b"?")
        return client.recv(1) == b"?"
    except OSError:
        return False


def refuses(address: tuple[str, int]) -> bool:
    """Whether nothing listens there."""
    try:
        socket.create_connection(address).close()
    except ConnectionError:
        return True
    return False


def replacement_of(proxy: Proxy, number: int, old: int) -> int:
    return eventually(
        lambda: pid if (pid := proxy.worker_pids().get(number, old)) != old else 0, f"worker {number} is replaced"
    )


# Names and limits.


def test_ps_shows_who_is_who(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')

        assert process_title(proxy.pid) == f"rpxy-l4: supervisor [{proxy.path}]"

        def titles_are(*titles: str) -> bool:
            return sorted(proxy.children().values()) == sorted(titles)

        # A child has its parent's title until it has set its own.
        admin = "rpxy-l4: admin"
        eventually(lambda: titles_are(admin, "rpxy-l4: worker 1 gen 1", "rpxy-l4: worker 2 gen 1"))

        proxy.reload(f'tcp_target = ["{target.text}"]\ntcp_backlog = 99\n', 2)
        assert titles_are(admin, "rpxy-l4: worker 1 gen 2", "rpxy-l4: worker 2 gen 2")


def test_without_an_admin_address_there_is_no_port_open_for_it(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n[admin]\nlisten = ""\n')
        with proxy.connect() as client:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"here\n"
        assert proxy.get("/metrics")[0] == 0


def test_the_soft_limit_on_open_files_is_raised_to_the_hard_one(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n', max_files=(256, 3000))
        for pid in proxy.worker_pids().values():
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert next(line for line in limits.splitlines() if "open files" in line).split()[3:5] == ["3000", "3000"]


# Death.


def test_a_killed_worker_is_replaced_and_only_its_own_sessions_end(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as tcp_target, UdpTarget() as udp_target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{tcp_target.text}"]\nudp_target = ["{udp_target.text}"]\n')
        proxy.expect_trouble(DEATH)
        connections = [stack.enter_context(proxy.connect()) for _ in range(30)]
        flows = [stack.enter_context(proxy.udp()) for _ in range(30)]
        assert all(is_alive(client) for client in [*connections, *flows])
        before = proxy.metrics()

        victim = proxy.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        replacement_of(proxy, 1, victim)

        survivors = [client for client in connections if is_alive(client)]
        lost = len(connections) - len(survivors)
        proxy.wait_for_metric("sessions_closed_total", lost, reason="worker_lost", protocol="tcp")
        assert proxy.metric("sessions_closed_total", reason="worker_lost", protocol="tcp") == lost
        assert proxy.metric("sessions", protocol="tcp") == len(survivors)
        assert proxy.metric("worker_restarts_total", cause="signal") == 1

        # A flow needs no handshake: its next datagram makes a new one in the replacement.
        assert all(is_alive(flow) for flow in flows)
        lost_flows = proxy.metric("sessions_closed_total", reason="worker_lost", protocol="udp")
        assert 0 < lost_flows < len(flows)
        assert len(udp_target.sources) <= len(flows) + lost_flows  # a port may have been given out a second time

        assert 0 < len(survivors) < len(connections)
        for _ in range(20):
            assert is_alive(stack.enter_context(proxy.connect()))
        after = proxy.metrics()
        fallen = [
            key
            for key, value in before.items()
            if key[0].endswith(("_total", "_bucket")) and after.get(key, -1) < value
        ]
        assert fallen == []


def test_connections_that_wait_for_a_stopped_worker_are_served_by_its_replacement(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("served")) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nworkers = 1\n')
        proxy.expect_trouble(DEATH)
        victim = proxy.worker_pids()[1]
        os.kill(victim, signal.SIGSTOP)
        waiting = [stack.enter_context(proxy.connect()) for _ in range(50)]
        os.kill(victim, signal.SIGKILL)

        for client in waiting:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"served\n"


@pytest.mark.slow
def test_a_worker_and_an_admin_process_that_hang_are_replaced_and_the_worker_says_where(tmp_path: Path) -> None:
    program, gate, logs = copy_program(tmp_path / "program"), tmp_path / "gate", tmp_path / "logs"
    begins = "    def accept(self, most: int) -> None:\n"
    hangs = f"        while os.path.exists({str(gate)!r}):\n            pass\n"
    change(program, "workers/tcp.py", begins, begins + hangs)
    with TcpTarget(reports("served")) as target:
        config = f'tcp_target = ["{target.text}"]\nworkers = 1\n'
        proxy = Proxy(tmp_path, config, program=program, arguments=("-l", str(logs)))
        proxy.start()
        log = logs / "rpxy-l4.log"
        eventually(lambda: log.exists() and "generation 1 applied on" in log.read_text(), "it serves")
        victim = proxy.worker_pids()[1]
        proxy.signal(signal.SIGUSR1)  # which opens the log again
        eventually(lambda: "log files opened again" in log.read_text())
        admin = admin_pid(proxy)
        os.kill(admin, signal.SIGSTOP)
        gate.touch()
        with proxy.connect(timeout=60) as client:
            client.shutdown(socket.SHUT_WR)
            eventually(lambda: "worker 1 hangs (no heartbeat for" in log.read_text(), "it is aborted")
            gate.unlink()
            # What it had accepted is lost with it; this one had not been.
            assert read_all(client) == b"served\n"

        assert replacement_of(proxy, 1, victim)
        eventually(lambda: "the admin process hangs (no heartbeat for" in log.read_text())
        eventually(lambda: admin_pid(proxy) not in (0, admin), "the admin process is replaced")
        assert "Fatal Python error: Aborted" in log.read_text()
        assert "in accept\n" in log.read_text()
        proxy.wait_for_metric("worker_restarts_total", 1, cause="heartbeat")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_end() == 0


def test_the_death_of_the_admin_process_disturbs_no_traffic(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        proxy.expect_trouble("admin")
        with proxy.connect() as client:
            assert is_alive(client)
            proxy.metrics_text()
            victim = next(pid for pid, title in proxy.children().items() if title.startswith("rpxy-l4: admin"))
            os.kill(victim, signal.SIGKILL)

            eventually(
                lambda: any(
                    title.startswith("rpxy-l4: admin") and pid != victim for pid, title in proxy.children().items()
                )
            )
            assert is_alive(client)
            assert proxy.metric("sessions_total") == 1


def admin_pid(proxy: Proxy) -> int:
    return next((pid for pid, title in proxy.children().items() if title.startswith("rpxy-l4: admin")), 0)


def test_the_processor_time_of_dead_workers_outlives_the_admin_process(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nworkers = 1\n')
        proxy.expect_trouble(DEATH + "|admin")
        worker = proxy.worker_pids()[1]
        with proxy.connect() as client:
            while cpu_seconds(worker) < 0.2:
                assert is_alive(client)
        used = cpu_seconds(worker)
        os.kill(worker, signal.SIGKILL)
        replacement_of(proxy, 1, worker)
        victim = admin_pid(proxy)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: admin_pid(proxy) not in (0, victim), "the admin process is replaced")

        assert proxy.metric("worker_cpu_seconds_total", worker="1") >= used


def test_a_worker_is_replaced_while_the_log_directory_cannot_be_used(tmp_path: Path) -> None:
    logs, moved = tmp_path / "logs", tmp_path / "moved"
    with TcpTarget(reports("served")) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\nworkers = 1\n', arguments=("--log-dir", str(logs)))
        proxy.start()
        try:
            events = logs / "rpxy-l4.log"
            eventually(lambda: events.exists() and "generation 1 applied on" in events.read_text(), "it serves")
            victim = proxy.worker_pids()[1]
            logs.rename(moved)
            logs.write_text("in the way")
            os.kill(victim, signal.SIGKILL)
            replacement_of(proxy, 1, victim)

            with proxy.connect() as client:
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"served\n"
            assert " error worker 1: cannot open the log files" in (moved / "rpxy-l4.log").read_text()
            eventually(lambda: "event=session" in (moved / "access.log").read_text(), "the session is logged")
        finally:
            proxy.signal(signal.SIGTERM)
            assert proxy.wait_end() == 0


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "300ms"\n')
        proxy.expect_trouble("supervisor is gone")
        with proxy:
            children = list(proxy.children())
            assert len(children) == 3
            with proxy.connect() as client:
                assert is_alive(client)
                proxy.signal(signal.SIGKILL)
                eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")


def test_workers_serve_on_without_a_supervisor_if_told_to_until_each_is_told_to_end(tmp_path: Path) -> None:
    with TcpTarget(echo) as target, UdpEcho() as udp:
        proxy = Proxy(
            tmp_path,
            f'tcp_target = ["{target.text}"]\nudp_target = ["127.0.0.1:{udp.port}"]\n'
            'drain_timeout = "1h"\non_supervisor_loss = "serve"\n',
        )
        proxy.expect_trouble("supervisor is gone")
        with proxy:
            workers = proxy.worker_pids().values()
            children = list(proxy.children())
            with proxy.connect() as old, clients(proxy, 20) as flows:
                assert is_alive(old)
                ports = [ask(flow, b"one") for flow in flows]
                proxy.signal(signal.SIGKILL)
                proxy.wait_for("serving on, until TERM", count=2)
                assert [ask(flow, b"two") for flow in flows] == ports
                for _ in range(20):
                    with proxy.connect() as new:
                        assert is_alive(new)
                assert is_alive(old)
                for pid in workers:
                    os.kill(pid, signal.SIGTERM)
                proxy.wait_for("finishing the TCP sessions that are open", count=2)
                assert is_alive(old)
                eventually(lambda: refuses(proxy.address), "nobody listens any more")
            eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")


@pytest.mark.parametrize("order", [signal.SIGTTOU, signal.SIGTERM, signal.SIGUSR2])
def test_workers_that_drain_go_on_with_that_without_a_supervisor(tmp_path: Path, order: signal.Signals) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "60s"\n')
        proxy.expect_trouble("supervisor is gone")
        with proxy, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(proxy.connect()) for _ in range(8)]
            assert all(map(is_alive, clients))
            proxy.signal(order)
            eventually(lambda: any("draining" in title for title in proxy.children().values()), "it drains")
            children = list(proxy.children())
            proxy.signal(signal.SIGKILL)
            proxy.wait_for("the supervisor is gone", count=2)
            assert all(map(is_alive, clients))
            for client in clients:
                client.close()
            eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")


# Orders.


def test_term_lets_open_sessions_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "60s"\n')
        with proxy, proxy.connect() as client:
            assert is_alive(client)
            eventually(lambda: proxy.get("/readyz")[0] == 200, "ready")

            proxy.signal(signal.SIGTERM)

            eventually(lambda: proxy.get("/readyz")[0] == 503, "not ready while draining")
            eventually(lambda: any("draining 1 session" in title for title in proxy.children().values()))
            eventually(lambda: refuses(proxy.address), "nothing listens any more")
            assert is_alive(client)
            client.close()
            assert proxy.wait_end() == 0

        assert proxy.wait_for_session()["reason"] == "client_eof"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_ends_after_its_timeout(tmp_path: Path, number: signal.Signals) -> None:
    with TcpTarget(echo) as target, UdpTarget() as udp_target:
        proxy = Proxy(
            tmp_path,
            f'tcp_target = ["{target.text}"]\nudp_target = ["{udp_target.text}"]\ndrain_timeout = "300ms"\n',
        )
        with proxy, proxy.connect() as client, proxy.udp() as flow:
            assert is_alive(client)
            assert is_alive(flow)
            began = time.monotonic()
            proxy.signal(number)

            assert read_all(client) == b""
            assert proxy.wait_end() == 0
            assert time.monotonic() - began > 0.25

        assert proxy.wait_for_session(transport="tcp")["reason"] == "drain"
        assert proxy.wait_for_session(transport="udp")["reason"] == "drain"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_term_or_int_stops_at_once(tmp_path: Path, first: signal.Signals) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "600s"\n')
        with proxy, proxy.connect() as client:
            assert is_alive(client)
            proxy.signal(first)
            eventually(lambda: any("draining" in title for title in proxy.children().values()))
            assert is_alive(client)
            proxy.signal(signal.SIGTERM)

            assert proxy.wait_end() == 0


def test_quit_stops_at_once(tmp_path: Path) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "600s"\n')
        with proxy, proxy.connect() as client:
            assert is_alive(client)
            proxy.signal(signal.SIGQUIT)

            assert proxy.wait_end() == 0


def test_a_stopped_worker_does_not_keep_the_rest_from_ending(tmp_path: Path) -> None:
    with TcpTarget(echo) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\ndrain_timeout = "0s"\n')
        proxy.expect_trouble(DEATH)
        with proxy:
            os.kill(proxy.worker_pids()[1], signal.SIGSTOP)
            proxy.signal(signal.SIGTERM)

            proxy.wait_end()


# Starting.


def test_a_file_that_is_no_toml_ends_the_start_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('listen_port = 8448\ntcp_target = ["127.0.0.1:80"\n')

    result = run_cli("--config", str(path))

    assert result.returncode == CONFIG_ERROR
    assert f"{path}:2:" in result.stderr or f"{path}:3:" in result.stderr


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('listen_prot = 8448\ntcp_target = ["127.0.0.1"]\n')

    for arguments in (("--config", str(path)), ("--check", "--config", str(path))):
        result = run_cli(*arguments)
        assert result.returncode == CONFIG_ERROR
        assert (
            f'{path}:1:1: error: listen_prot: unknown key "listen_prot"; did you mean "listen_port"?' in result.stderr
        )
        assert f"{path}:2:15: error: tcp_target[0]: " in result.stderr
        assert "^~~" in result.stderr


def test_a_port_that_another_program_has_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy = Proxy(tmp_path, 'tcp_target = ["127.0.0.1:1"]\n', port=taken.getsockname()[1])

        result = run_cli("--config", str(proxy.path))

    assert result.returncode == UNAVAILABLE
    assert str(proxy.port) in result.stderr


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_second_instance_on_the_same_port_is_refused(start_proxy: StartProxy, tmp_path: Path, transport: str) -> None:
    with TcpTarget(reports("first")) as target, UdpTarget("first") as udp_target:
        first = start_proxy(f'tcp_target = ["{target.text}"]\nudp_target = ["{udp_target.text}"]\n')
        folder = tmp_path / "second"
        folder.mkdir()
        second = Proxy(folder, f'{transport}_target = ["127.0.0.1:1"]\n', port=first.port)

        result = run_cli("--config", str(second.path))

        assert result.returncode == UNAVAILABLE
        with first.connect() as client:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"first\n"


def test_readiness_and_life(start_proxy: StartProxy) -> None:
    with TcpTarget(answers("x")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')

        eventually(lambda: proxy.get("/livez")[0] == 200)
        eventually(lambda: proxy.get("/readyz")[0] == 200)
        assert proxy.get("/elsewhere")[0] == 404


# Resources.


def test_running_out_of_descriptors_pauses_accepting_without_a_spin(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        # One slot, and so one queue: who came first is served first.
        config = f'tcp_target = ["{target.text}"]\nworkers = 1\nslots = 1\n'
        proxy = start_proxy(config, max_files=(256, 256))
        worker = proxy.worker_pids()[1]
        clients = [stack.enter_context(proxy.connect()) for _ in range(200)]
        proxy.wait_for_metric("accept_errors_total", 1, errno="EMFILE")
        began = cpu_seconds(worker)
        pass_time(1.0)
        assert cpu_seconds(worker) - began < 0.3

        # The first ones are served, and when they leave, those who waited are, too.
        for client in clients:
            client.settimeout(PATIENCE)
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            client.close()
        assert proxy.worker_pids()[1] == worker
