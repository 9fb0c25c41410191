"""The command line from outside: one process for each test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rpxy_l4.supervisor.signals import SIGNALS
from rpxy_l4.version import VERSION
from tests.support.kernel_path import needs_kernel_path
from tests.support.ports import free_port
from tests.support.proxy import ROOT, run_cli
from tests.support.waiting import eventually

SCREEN: Final = (24, 120)
"""Lines and columns."""


@contextlib.contextmanager
def start(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the program in a group of its own, of which nothing is left afterwards."""
    command = [sys.executable, "-m", "rpxy_l4", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def test_help_fits_a_screen() -> None:
    shown = run_cli("--help")
    lines = shown.stdout.splitlines()

    assert shown.returncode == 0
    assert len(lines) <= SCREEN[0]
    assert max(map(len, lines)) <= SCREEN[1]
    for word in ("--config", "--check", "--log-dir", "--version", "demo", "schema"):
        assert word in shown.stdout


def test_the_signals_in_the_help_are_those_of_the_table() -> None:
    shown = run_cli("--help").stdout
    line = next(line for line in shown.splitlines() if line.startswith("Signals:"))
    named = {signal.Signals["SIG" + word] for word in line.replace(",", "").split() if f"SIG{word}" in dir(signal)}

    assert named == {number for number, meaning in SIGNALS.items() if meaning.text != "ignored"}


def test_version() -> None:
    assert run_cli("-V").stdout == f"rpxy-l4 {VERSION}\n"
    assert run_cli("--version").stdout == f"rpxy-l4 {VERSION}\n"


def test_the_long_version_tells_what_it_runs_on() -> None:
    shown = run_cli("-VV")

    assert shown.returncode == 0
    names = [line.partition(":")[0] for line in shown.stdout.splitlines()[1:]]
    assert names[:5] == ["Python", "uvloop", "cryptography", "data path", "kernel"]
    assert {"UDP_GRO", "splice", "pidfd", "inotify", "open files"} <= set(names)


@pytest.mark.parametrize(
    ("config", "udp", "tcp"),
    [
        ('tcp_target = ["127.0.0.1:1"]', "no: there is no target", "yes"),
        ('udp_target = ["127.0.0.1:1"]', "yes", "no: there is no default target"),
        ('kernel_path = "off"\nudp_target = ["127.0.0.1:1"]', "no: it is turned off", "no: there is no default target"),
    ],
)
def test_the_long_version_tells_what_of_a_configuration_goes_through_the_kernel(
    tmp_path: Path, config: str, udp: str, tcp: str
) -> None:
    needs_kernel_path()
    file = tmp_path / "config.toml"
    file.write_text(f"listen_port = 7\n{config}\n")
    rows = dict(line.split(":", 1) for line in run_cli("-VV", "-c", str(file)).stdout.splitlines()[1:])

    assert rows["kernel path"].strip() == "yes"
    assert (rows["- UDP flows"].strip(), rows["- TCP"].strip()) == (udp, tcp)


def test_the_schema_is_json() -> None:
    shown = run_cli("schema")

    assert shown.returncode == 0
    assert "listen_port" in json.loads(shown.stdout)["properties"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-c FILE is required"),
        (["--check"], "-c FILE is required"),
        (["--config"], "expected one argument"),
        (["--conf", "x"], "unrecognized arguments: --conf x"),
        (["serve"], "unrecognized arguments: serve"),
        (["schema", "--draft"], "unrecognized arguments: --draft"),
    ],
)
def test_a_wrong_command_line_is_status_64_and_one_line(arguments: list[str], message: str) -> None:
    shown = run_cli(*arguments)

    assert shown.returncode == 64
    assert shown.stdout == ""
    assert shown.stderr.startswith("rpxy-l4")
    assert message in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_good_file_is_ok(tmp_path: Path) -> None:
    file = write(tmp_path, 'listen_port = 8448\ntcp_target = ["127.0.0.1:1"]\n')
    shown = run_cli("--check", "-c", str(file))

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"{file}: OK (listener :8448, 1 route)\n"


def test_a_name_without_an_address_is_only_a_warning(tmp_path: Path) -> None:
    name = f"{'a' * 60}.invalid"
    file = write(tmp_path, f'listen_port = 8448\ntcp_target = ["{name}:1"]\n')
    shown = run_cli("-t", "-c", str(file))

    assert shown.returncode == 0
    assert shown.stderr.startswith(f"{file}: warning: {name} has no address now: ")
    assert "OK" in shown.stdout


@pytest.mark.parametrize("mode", [["--check"], []])
def test_all_problems_of_a_wrong_file_are_shown_and_the_status_is_78(tmp_path: Path, mode: list[str]) -> None:
    file = write(tmp_path, 'listen_port = "x"\ntcp_tarqet = ["127.0.0.1:1"]\n')
    shown = run_cli(*mode, "-c", str(file))

    assert shown.returncode == 78
    assert f"{file}:1:15: error: listen_port: " in shown.stderr
    assert f'{file}:2:1: error: tcp_tarqet: unknown key "tcp_tarqet"; did you mean "tcp_target"?' in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_file_that_is_not_there_is_status_78(tmp_path: Path) -> None:
    shown = run_cli("-c", str(tmp_path / "nothing.toml"))

    assert shown.returncode == 78
    assert shown.stderr == f"{tmp_path / 'nothing.toml'}: error: cannot be read: No such file or directory\n"


def test_an_address_that_is_taken_is_status_69(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = f'listen_port = {port}\nlisten_address_v4 = "127.0.0.1"\ntcp_target = ["127.0.0.1:1"]\n'
        shown = run_cli("-c", str(write(tmp_path, text)))

    assert shown.returncode == 69
    assert shown.stderr == f"rpxy-l4: cannot listen on tcp 127.0.0.1:{port}: address already in use\n"


def test_an_admin_address_that_is_taken_is_status_69(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = (
            f'listen_port = {free_port()}\nlisten_address_v4 = "127.0.0.1"\ntcp_target = ["127.0.0.1:1"]\n'
            f'[admin]\nlisten = "127.0.0.1:{port}"\n'
        )
        shown = run_cli("-c", str(write(tmp_path, text)))

    assert shown.returncode == 69
    assert f"tcp 127.0.0.1:{port}: address already in use" in shown.stderr


def test_a_log_directory_that_cannot_be_made_is_status_1(tmp_path: Path) -> None:
    file = write(tmp_path, 'listen_port = 8448\ntcp_target = ["127.0.0.1:1"]\n')
    shown = run_cli("-c", str(file), "-l", str(file / "logs"))

    assert shown.returncode == 1
    assert "not a directory" in shown.stderr


def blocks(pid: int, number: signal.Signals) -> bool:
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def test_a_hangup_while_the_program_is_still_loading_waits_until_it_serves(tmp_path: Path) -> None:
    text = f'listen_port = {free_port()}\nlisten_address_v4 = "127.0.0.1"\ntcp_target = ["127.0.0.1:1"]\nworkers = 1\n'
    file = write(tmp_path, text + 'kernel_path = "off"\n[admin]\nlisten = ""\n')
    with start("-c", str(file)) as process:
        eventually(lambda: blocks(process.pid, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]

        assert "generation 1 applied" in lines[0]
        assert "unchanged" in lines[1]
        assert not blocks(process.pid, signal.SIGHUP)
        process.terminate()
        assert process.wait(10) == 0


def test_a_configuration_from_a_pipe_is_read_once(tmp_path: Path) -> None:
    text = f'listen_port = {free_port()}\nlisten_address_v4 = "127.0.0.1"\ntcp_target = ["127.0.0.1:1"]\nworkers = 1\n'
    reader, writer = os.pipe()
    os.write(writer, text.encode() + b'[admin]\nlisten = ""\n')
    os.close(writer)
    with start("-c", f"/dev/fd/{reader}", "-l", str(tmp_path), pass_fds=(reader,)) as process:
        os.close(reader)
        log = tmp_path / "rpxy-l4.log"
        eventually(lambda: log.exists() and "generation 1 applied" in log.read_text())
        assert not any("inotify" in str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir())
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "cannot be read: it is no regular file" in log.read_text())
        process.terminate()
        assert process.wait(10) == 0


def test_a_program_that_waits_for_its_configuration_can_be_interrupted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with start("-c", str(tmp_path / "config.toml")) as process:
        with (tmp_path / "config.toml").open("wb"):  # returns when it has begun to read
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("mode", ["--check", ""])
def test_a_path_may_be_any_bytes(tmp_path: Path, mode: str) -> None:
    file = tmp_path / os.fsdecode(b"\xff.toml")
    file.write_text("listen_port = 0\n" if not mode else 'listen_port = 8448\ntcp_target = ["127.0.0.1:1"]\n')
    shown = run_cli("-c", str(file), *filter(None, [mode]))

    assert shown.returncode == (0 if mode else 78)
    assert f"{tmp_path}/\\xff.toml:" in shown.stdout + shown.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    shown = subprocess.run(
        [sys.executable, "-m", "rpxy_l4", "schema"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)

    assert "Traceback" not in shown.stderr


def test_a_disk_that_is_full_costs_a_line_and_no_traceback() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123  not a path to anything
        result = subprocess.run(
            [sys.executable, "-m", "rpxy_l4", "schema"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, "rpxy-l4: no space left on device\n")


def test_closed_standard_streams_harm_nothing(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'listen_port = {free_port()}\ntcp_target = ["127.0.0.1:1"]\n')
    program = f"exec {sys.executable} -m rpxy_l4 --check --config {config} <&- >&- 2>&-"

    assert subprocess.run(["sh", "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_wrong_file_is_status_78_even_when_nobody_can_be_told(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("listen_prot = 1\n")
    program = f"exec {sys.executable} -m rpxy_l4 --check --config {config} 2>/dev/full"

    assert subprocess.run(["sh", "-c", program], cwd=ROOT, check=False).returncode == 78


def test_a_log_directory_that_is_a_file_is_said_in_words(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'listen_port = {free_port()}\ntcp_target = ["127.0.0.1:1"]\n')
    result = run_cli("--config", str(config), "--log-dir", str(config))

    assert result.returncode == 1
    assert result.stderr == f"rpxy-l4: cannot open the log files: {config}: file exists\n"
