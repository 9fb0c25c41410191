"""``rpxy-l4 ctl`` against the running program."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpxy_l4.net.local import connect
from rpxy_l4.orders import MAX_PACKET, Request, decode_answer, encode_request
from rpxy_l4.version import VERSION
from tests.support.proxy import ROOT, Proxy, run_cli
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.e2e


def config(proxy_or_folder: Path, more: str = "") -> str:
    return f'tcp_target = ["127.0.0.1:1"]\n{more}\n[admin]\nlisten = ""\ncontrol = "{proxy_or_folder}/control"\n'


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(tmp_path, config(tmp_path)) as running:
        yield running


def ctl(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_cli("ctl", "-c", str(proxy.path), *arguments)


def test_status_shows_what_is_there(proxy: Proxy) -> None:
    shown = ctl(proxy, "status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"{VERSION}, process {proxy.pid}" in shown.stdout
    assert "under way:     nothing" in shown.stdout

    data = json.loads(ctl(proxy, "--json", "status").stdout)["data"]
    assert data["listening"] == [f"tcp 127.0.0.1:{proxy.port}"]
    assert {worker["number"]: worker["pid"] for worker in data["workers"]} == proxy.worker_pids()


def test_a_reload_is_answered_when_it_is_in_force(proxy: Proxy) -> None:
    proxy.write(config(proxy.folder, "access_log = false"))
    done = ctl(proxy, "reload")
    assert (done.returncode, done.stdout) == (0, "generation 2 applied on 2/2 workers\n")
    again = ctl(proxy, "reload")
    assert (again.returncode, again.stdout) == (
        0,
        "the configuration file is unchanged; generation 2 stays in force\n",
    )


def test_a_reload_that_is_refused_says_why_and_changes_nothing(proxy: Proxy) -> None:
    proxy.expect_trouble("was not reloaded")
    proxy.write(config(proxy.folder, "acces_log = false"))
    refused = ctl(proxy, "reload")
    assert refused.returncode == 78
    assert 'unknown key "acces_log"; did you mean "access_log"?' in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy.write(config(proxy.folder, f"listen_port = {taken.getsockname()[1]}"))
        refused = ctl(proxy, "reload")
    assert refused.returncode == 69
    assert "cannot listen on" in refused.stderr
    assert "generation 1," in ctl(proxy, "status").stdout


def test_workers_come_and_go(proxy: Proxy) -> None:
    assert ctl(proxy, "workers", "+1").stdout == "3 workers from now on, 2 until now\n"
    eventually(lambda: len(proxy.worker_pids()) == 3, "there are three")
    assert ctl(proxy, "workers", "-2").stdout == "1 workers from now on, 3 until now\n"
    eventually(lambda: len(proxy.worker_pids()) == 1, "there is one")
    too_many = ctl(proxy, "workers", "100")
    assert (too_many.returncode, too_many.stderr) == (
        1,
        "100 workers are not possible with 4 slots; 4 workers from now on, 1 until now\n",
    )
    wrong = ctl(proxy, "workers", "many")
    assert (wrong.returncode, wrong.stderr) == (64, "expected a number of workers, +N or -N, got 'many'\n")


def test_an_upgrade_is_answered_by_the_new_program(proxy: Proxy) -> None:
    before = set(proxy.worker_pids().values())
    done = ctl(proxy, "upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"upgraded to version {VERSION}: generation 2 applied on 2/2 workers\n"
    assert not before & {
        worker["pid"]
        for worker in json.loads(ctl(proxy, "--json", "status").stdout)["data"]["workers"]
        if worker["state"] == "ready"
    }
    assert ctl(proxy, "reload").returncode == 0


def test_a_broken_file_can_be_told_apart_from_a_program_that_is_not_there(proxy: Proxy) -> None:
    proxy.expect_trouble("was not reloaded")
    proxy.path.write_text("listen_port = \n")
    broken = ctl(proxy, "reload")
    assert broken.returncode == 64
    assert "name the socket with -s instead" in broken.stderr
    refused = run_cli("ctl", "-s", f"{proxy.folder}/control", "reload")
    assert refused.returncode == 78
    absent = run_cli("ctl", "-s", f"{proxy.folder}/nothing", "status")
    assert (absent.returncode, absent.stderr) == (
        69,
        f"rpxy-l4 ctl: {proxy.folder}/nothing: no such file or directory\n",
    )


def test_the_socket_moves_and_goes_with_a_reload(proxy: Proxy) -> None:
    old, new = proxy.folder / "control", proxy.folder / "elsewhere"
    proxy.reload(config(proxy.folder).replace("/control", "/elsewhere"), 2)
    assert new.exists()
    assert not old.exists()
    assert ctl(proxy, "status").returncode == 0
    proxy.reload('tcp_target = ["127.0.0.1:1"]\nadmin.listen = ""\n', 3)
    assert not new.exists()
    assert "there is no control in [admin]" in ctl(proxy, "status").stderr


def test_a_socket_that_cannot_be_made_refuses_the_configuration(proxy: Proxy) -> None:
    proxy.expect_trouble("was not reloaded")
    proxy.write(config(proxy.folder / "missing"))
    refused = run_cli("ctl", "-s", f"{proxy.folder}/control", "reload")
    assert refused.returncode == 69
    assert "no such file or directory" in refused.stderr


def test_a_second_instance_does_not_take_the_socket(proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = Proxy(tmp_path / "second", config(tmp_path))
    refused = run_cli("-c", str(other.path))
    assert refused.returncode == 69
    assert "control: address already in use" in refused.stderr
    assert ctl(proxy, "status").returncode == 0


def test_nothing_is_left_of_the_socket_after_the_end(tmp_path: Path) -> None:
    with Proxy(tmp_path, config(tmp_path)) as proxy:
        pass

    assert proxy.exit_status == 0
    assert not (tmp_path / "control").exists()


def test_clients_that_say_nothing_or_nonsense_keep_nobody_out(proxy: Proxy) -> None:
    path = f"{proxy.folder}/control"
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connect(path, PATIENCE))
        for nonsense in (b"\xff", b"{}", b'{"command": "explode", "argument": ""}', b"x" * 100_000):
            with connect(path, PATIENCE) as client:
                client.send(nonsense)
                assert decode_answer(client.receive(MAX_PACKET)).status == 64
        with connect(path, PATIENCE) as client:
            # More than one question: whether there is an answer is left open, and harms nobody else.
            client.send(encode_request(Request("status")))
            client.send(encode_request(Request("status")))
        assert ctl(proxy, "status").returncode == 0


def test_who_waits_is_answered_or_let_go_at_the_end(tmp_path: Path) -> None:
    with Proxy(tmp_path, config(tmp_path, 'drain_timeout = "1h"')) as proxy:
        proxy.signal(signal.SIGSTOP)
        command = [sys.executable, "-m", "rpxy_l4", "ctl", "-c", str(proxy.path), "--timeout", "0.2", "reload"]
        late = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        proxy.signal(signal.SIGCONT)
        assert (late.returncode, late.stderr) == (
            1,
            "rpxy-l4 ctl: no answer within 0.2 s; what was asked for may go on\n",
        )
        proxy.wait_for("the configuration file is unchanged")
