"""Another version of the program takes over in place: nothing is lost, or nothing changes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.support.program import change, copy_program
from tests.support.proxy import Proxy, run_cli
from tests.support.udp_echo import UdpEcho, ask, clients
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

FLOWS = 200
WORKERS_DIE = ("workers/main.py", "    faulthandler.enable(", "    raise RuntimeError(")
"""A change by which workers die as soon as they are started."""
WORKERS_LIVE = (WORKERS_DIE[0], WORKERS_DIE[2], WORKERS_DIE[1])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy of the program, to be changed."""
    return copy_program(tmp_path / "program")


@pytest.fixture
def echo() -> Iterator[UdpEcho]:
    with UdpEcho() as target:
        yield target


def test_flows_sessions_counters_and_the_process_outlive_an_upgrade(
    tmp_path: Path, program: Path, echo: UdpEcho
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        config = f"""
workers = 2
drain_timeout = "20s"
tcp_target = ["127.0.0.1:{target.getsockname()[1]}"]
udp_target = ["127.0.0.1:{echo.port}"]
"""
        with (
            Proxy(tmp_path, config, program=program) as proxy,
            clients(proxy, FLOWS) as flows,
            contextlib.ExitStack() as stack,
        ):
            ports = [ask(client, b"one") for client in flows]
            client = stack.enter_context(proxy.connect())
            served = stack.enter_context(target.accept()[0])
            supervisor, before = proxy.pid, set(proxy.worker_pids().values())
            waiting = proxy.metric("sessions_total")

            change(program, "version.py", 'VERSION = "', 'VERSION = "9.')
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("upgraded to version 9.")

            assert [ask(client, b"two") for client in flows] == ports
            client.sendall(b"ping")
            assert served.recv(9) == b"ping"
            served.sendall(b"pong")
            assert client.recv(9) == b"pong"
            assert proxy.pid == supervisor
            assert proxy.metric("sessions_total") == waiting
            assert proxy.metric("sessions", protocol="udp") == FLOWS
            assert "9." in proxy.metrics_text().partition("rpxy_l4_build_info{")[2].partition("}")[0]
            stack.close()
            eventually(lambda: not before & set(proxy.worker_pids().values()), "the old workers have ended")
            assert [ask(client, b"three") for client in flows] == ports

            # The new program reloads, and is replaced, like any other.
            proxy.reload(f"{config}\naccess_log = false\n", 3)
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("upgraded to version 9.", count=2)
            assert [ask(client, b"four") for client in flows] == ports


@pytest.mark.parametrize(
    ("module", "old", "new", "said"),
    [
        ("cli.py", "from __future__", "from __nowhere__", "nowhere"),
        ("supervisor/upgrade.py", "FORMAT: Final = ", "FORMAT: Final = 9", "restart the program instead"),
        ("metrics/layout.py", "DRAINING = 9", "DRAINING = 10", "count different things"),
        ("config/model.py", "    workers: Workers", "    wokers: Workers", "workers"),
    ],
    ids=["broken", "of another format", "with other counters", "that does not know a key"],
)
def test_a_program_that_cannot_take_over_changes_nothing(
    tmp_path: Path, program: Path, echo: UdpEcho, module: str, old: str, new: str, said: str
) -> None:
    config = f'workers = 2\nudp_target = ["127.0.0.1:{echo.port}"]\n'
    with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
        proxy.expect_trouble("no upgrade, nothing has changed|Traceback")
        ports = [ask(client, b"one") for client in flows]
        before = proxy.worker_pids()
        change(program, module, old, new)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("no upgrade, nothing has changed")

        eventually(lambda: any(said in line for line in proxy.log()), "it says why")
        assert proxy.worker_pids() == before
        assert [ask(client, b"two") for client in flows] == ports
        change(program, module, new, old)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        assert [ask(client, b"three") for client in flows] == ports


def test_workers_of_the_new_version_that_die_at_once_leave_the_old_ones_serving_until_there_is_a_better_one(
    tmp_path: Path, program: Path, echo: UdpEcho
) -> None:
    config = f'workers = 1\nudp_target = ["127.0.0.1:{echo.port}"]\n'
    with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
        proxy.expect_trouble("")
        ports = [ask(client, b"one") for client in flows]
        change(program, *WORKERS_DIE)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("worker 2 (process", count=3)

        assert [ask(client, b"two") for client in flows] == ports
        change(program, *WORKERS_LIVE)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        assert [ask(client, b"three") for client in flows] == ports


def test_a_program_that_fails_after_all_begins_anew_with_the_listening_sockets(
    tmp_path: Path, program: Path, echo: UdpEcho
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        config = (
            f'workers = 2\nudp_target = ["127.0.0.1:{echo.port}"]\n'
            f'tcp_target = ["127.0.0.1:{target.getsockname()[1]}"]\n'
        )
        with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
            proxy.expect_trouble("")
            for client in flows:
                ask(client, b"one")
            supervisor, path = proxy.pid, "supervisor/main.py"
            change(program, path, "        self._addresses = dict(before.addresses)", "        raise RuntimeError")
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("beginning anew with the listening sockets")
            # Nobody is refused meanwhile.
            with proxy.connect() as connection:
                connection.sendall(b"hello")
                with target.accept()[0] as served:
                    assert served.recv(100) == b"hello"
            proxy.wait_for("taken over, with what waits there")
            proxy.wait_for("ready: generation 1 applied on 2/2 workers", count=2)
            assert proxy.pid == supervisor
            for client in flows:
                ask(client, b"two")


def test_fewer_workers_wanted_in_the_middle_of_an_upgrade(tmp_path: Path, program: Path, echo: UdpEcho) -> None:
    config = f'workers = 2\nudp_target = ["127.0.0.1:{echo.port}"]\n'
    with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
        proxy.expect_trouble("")
        ports = [ask(client, b"one") for client in flows]
        change(program, *WORKERS_DIE)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("worker 3 (process")
        proxy.signal(signal.SIGTTOU)
        proxy.wait_for("1 workers from now on")
        proxy.write(f"{config}\naccess_log = false\n")
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("the reload waits for the upgrade")

        assert [ask(client, b"two") for client in flows] == ports
        assert proxy.get("/readyz")[0] == HTTPStatus.OK
        change(program, *WORKERS_LIVE)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        assert [ask(client, b"three") for client in flows] == ports
        proxy.wait_for("generation 4 applied on 1/1 workers")


def test_an_upgrade_and_a_reload_that_come_together_are_both_done(tmp_path: Path, program: Path, echo: UdpEcho) -> None:
    config = f'workers = 2\nudp_target = ["127.0.0.1:{echo.port}"]\n'
    with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
        ports = [ask(client, b"one") for client in flows]
        proxy.write(f"{config}\naccess_log = false\n")
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGUSR2):
            proxy.signal(number)
        proxy.wait_for("upgraded to version")
        proxy.wait_for("worker 3 has")

        assert [ask(client, b"two") for client in flows] == ports


def test_an_operator_who_asks_for_an_upgrade_is_told_what_became_of_it(tmp_path: Path, program: Path) -> None:
    config = f'tcp_target = ["127.0.0.1:1"]\n[admin]\nlisten = ""\ncontrol = "{tmp_path}/control"\n'
    with Proxy(tmp_path, config, program=program) as proxy:
        proxy.expect_trouble("no upgrade, nothing has changed|Traceback")
        change(program, "version.py", 'VERSION = "', 'VERSION: nonsense = "9.')
        refused = run_cli("ctl", "-c", str(proxy.path), "upgrade")
        assert refused.returncode == 1
        assert "no upgrade, nothing has changed: the new program says:" in refused.stderr
        assert "nonsense" in refused.stderr

        change(program, "version.py", "VERSION: nonsense =", "VERSION =")
        done = run_cli("ctl", "-c", str(proxy.path), "upgrade")
        assert (done.returncode, done.stdout[:21]) == (0, "upgraded to version 9")


def test_a_configuration_that_comes_while_the_new_program_judges_is_judged_as_well(
    tmp_path: Path, program: Path, echo: UdpEcho
) -> None:
    config = f'workers = 2\nudp_target = ["127.0.0.1:{echo.port}"]\n'
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Proxy(tmp_path, config, program=program) as proxy, clients(proxy, 5) as flows:
        proxy.expect_trouble("no upgrade, nothing has changed")
        ports = [ask(client, b"one") for client in flows]
        waits = f"        if os.path.exists({str(gate)!r}):\n            open({str(gate)!r}).read()\n"
        judges = "        state = upgrade.unpack("
        change(program, "cli.py", judges, f"{waits}{judges}")
        refuses = '    if b"access_log" in content.data:\n        raise ConfigError([Problem(message="unheard of")])\n'
        known = "    directory = Directory("
        change(program, "supervisor/reload.py", known, f"{refuses}{known}")
        proxy.signal(signal.SIGUSR2)
        with gate.open("w"):
            gate.unlink()
            proxy.reload(f"{config}\naccess_log = false\n", 2)
        proxy.wait_for("no upgrade, nothing has changed")
        eventually(lambda: any("unheard of" in line for line in proxy.log()), "it says why")

        assert [ask(client, b"two") for client in flows] == ports


def test_an_address_that_was_removed_before_an_upgrade_comes_back_after_it_while_it_has_flows(
    tmp_path: Path, echo: UdpEcho
) -> None:
    # One slot: a socket that nobody uses leaves its group, and then flows of others reach it no more.
    usual = (
        f'workers = 1\nslots = 1\ndrain_timeout = "3s"\nudp_target = ["127.0.0.1:{echo.port}"]\nlisten_address_v4 = '
    )
    both = f'{usual}["127.0.0.1", "127.0.0.2"]\n'
    with Proxy(tmp_path, both) as proxy, clients(proxy, 5) as flows:
        ports = [ask(client, b"one") for client in flows]
        proxy.reload(f'{usual}["127.0.0.2"]\n', 2)
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        assert [ask(client, b"two") for client in flows] == ports
        proxy.reload(both, 4)
