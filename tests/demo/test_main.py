"""The demo as a newcomer meets it: real processes, from the first line to the last."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from rpxy_l4.demo import main, scene, sessions
from rpxy_l4.demo.processes import is_free
from rpxy_l4.demo.table import State
from rpxy_l4.demo.targets import Served
from rpxy_l4.endings import Detected
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.verdict import Transport
from tests.demo.test_targets import hide_aioquic
from tests.support.proxy import child_pids, run_cli
from tests.support.waiting import eventually

ROOT: Final = Path(__file__).parent.parent.parent

EXPECTED: Final = {
    "HTTP: GET /": ("http", "web"),
    "TLS: GET /": ("tls site.example", "tls_name"),
    "TLS: a line": ("tls demo-echo", "tls_alpn"),
    "SSH: greeting": ("ssh", "ssh"),
    "SOCKS5: GET /": ("socks5", "socks5"),
    "TCP: a line": ("unknown", "default"),
    "QUIC: GET /": ("quic site.example h3", "quic"),
    "WireGuard: handshake": ("wireguard", "wireguard"),
    "UDP: a datagram": ("unknown", "default"),
}


def table(output: str) -> dict[str, list[str]]:
    """The cells of the rows: columns are two spaces apart."""
    rows = [re.split(r" {2,}", line) for line in output.splitlines()]
    return {row[0]: row[1:] for row in rows if row[0] in EXPECTED}


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class Demo:
    """``rpxy-l4 demo`` in the foreground of nobody; its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rpxy_l4", "demo", "--workers", "1"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text
            return re.search(pattern, self.text)

        match = eventually(found, f"{pattern} in the output", timeout=40)
        assert match is not None
        return match

    @property
    def text(self) -> str:
        return read(self.output)

    @property
    def port(self) -> int:
        return int(self.wait_for(rf"serves {scene.HOST}:(\d+),")[1])

    @property
    def proxy_pid(self) -> int:
        return int(self.wait_for(r"as process (\d+)\.")[1])

    def descendants(self) -> list[int]:
        return [*child_pids(self.process.pid), *child_pids(self.proxy_pid)]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """The demo, its table printed and its invitation too."""
    started = Demo(tmp_path)
    try:
        started.wait_for("Ctrl-C")
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.process.kill()
        started.process.wait()


def all_gone(pids: Sequence[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.e2e
@pytest.mark.slow
def test_every_protocol_takes_its_route_through_the_one_port(tmp_path: Path) -> None:
    result = run_cli("demo", "--exit", "--log-dir", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "9 of 9 took the right route" in result.stdout
    assert "\x1b" not in result.stdout
    rows = table(result.stdout)
    assert {sent: (recognised, route) for sent, (recognised, route, *_) in rows.items()} == EXPECTED
    targets = [target for _, _, target, *_ in rows.values()]
    assert len(set(targets)) == len(targets), "each has a target of its own"
    assert all(float(ms) > 0 for _, _, _, ms, _ in rows.values())
    # The table is made from this.
    logged = [sessions.parse(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert sorted((session["route"], session["target"]) for session in logged) == sorted(
        (route, target) for _, route, target, *_ in rows.values()
    )


@pytest.mark.e2e
@pytest.mark.slow
def test_without_aioquic_the_row_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_aioquic(tmp_path, monkeypatch)
    result = run_cli("demo", "--exit")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 of 9 took the right route" in result.stdout
    assert re.search(r"QUIC: GET / .* skipped: pip install 'rpxy-l4\[demo\]'", result.stdout)


@pytest.mark.e2e
@pytest.mark.slow
def test_it_stays_shows_what_one_tries_and_leaves_nothing_behind(demo: Demo) -> None:
    connection = http.client.HTTPConnection(scene.HOST, demo.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"Hello from the HTTP target.\n"
    demo.wait_for(r"\d\d:\d\d:\d\d  http -> web 127.0.0.1:\d+  \d+ bytes in, \d+ out, [\d.]+ ms, client_eof")

    config = Path(demo.wait_for(r"Its configuration is (.*)")[1])
    config.write_text(config.read_text().replace('detect_timeout = "3s"', 'detect_timeout = "1s"'))
    demo.wait_for("generation 2 applied on 1/1 workers")

    children = demo.descendants()
    assert len(children) == 4, "targets, supervisor, admin and a worker"
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(20) == 0
    assert demo.text.endswith("\nStopping.\n")
    assert list(demo.temporary.iterdir()) == []
    assert all_gone(children)


@pytest.mark.e2e
@pytest.mark.slow
def test_it_says_when_the_proxy_dies(demo: Demo) -> None:
    children = demo.descendants()
    os.kill(demo.proxy_pid, signal.SIGKILL)
    assert demo.process.wait(20) == 1
    assert "rpxy-l4 demo: the proxy ended unexpectedly, status -9" in demo.text
    assert list(demo.temporary.iterdir()) == []
    eventually(lambda: all_gone(children), "the rest ends too")


@pytest.mark.e2e
@pytest.mark.slow
def test_its_children_end_even_when_it_is_killed(demo: Demo) -> None:
    children, port = demo.descendants(), demo.port
    demo.process.kill()
    eventually(lambda: is_free(port, (socket.SOCK_STREAM, socket.SOCK_DGRAM)), "the port is free again")
    eventually(lambda: all_gone(children), "all have ended")


@pytest.mark.e2e
@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_without_a_traceback() -> None:
    command = [sys.executable, "-m", "rpxy_l4", "demo"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read().count("\n") == 1


def test_a_port_that_is_asked_for_and_taken_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server((scene.HOST, 0)) as server:
        port = server.getsockname()[1]
        assert main.run_demo(["--port", str(port)]) == 1
    assert capsys.readouterr().err == f"rpxy-l4 demo: port {port} of 127.0.0.1 is taken\n"


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "65536"], ["--workers", "0"], ["--nonsense"]])
def test_wrong_usage_is_said_on_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.run_demo(arguments)
    assert stopped.value.code == ExitStatus.USAGE
    error = capsys.readouterr().err
    assert error.startswith("rpxy-l4 demo: ")
    assert error.endswith("; see --help\n")
    assert error.count("\n") == 1


def test_the_admin_port_differs_from_the_proxys() -> None:
    if is_free(9448, (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
        assert main._ports(9448)[1] != 9448


STEP: Final = main._Step("HTTP: GET /", Transport.TCP, None, Detected.HTTP, scene.WEB)
SERVED: Final = Served(ports={scene.WEB: 9}, wireguard_public_key="")
KEY: Final = ("tcp", "127.0.0.1:5")
LOGGED: Final = {"detected": "http", "route": "web", "target": "127.0.0.1:9"}


@pytest.mark.parametrize(
    ("ok", "logged", "answer"),
    [
        pytest.param(False, LOGGED, "fine", id="the client was not content"),
        pytest.param(True, {}, "the access log has no such session", id="not logged"),
        pytest.param(True, {**LOGGED, "detected": "tls"}, "expected http web 127.0.0.1:9", id="another protocol"),
        pytest.param(True, {**LOGGED, "route": "default"}, "expected http web 127.0.0.1:9", id="another route"),
        pytest.param(True, {**LOGGED, "target": "127.0.0.1:8"}, "expected http web 127.0.0.1:9", id="another target"),
    ],
)
def test_a_row_fails_when_client_or_log_disagree(ok: bool, logged: Mapping[str, str], answer: str) -> None:
    row = main._row(STEP, main._Outcome(KEY, 0.0015, "fine", ok), {KEY: logged} if logged else {}, SERVED)
    assert row.state is State.FAILED
    assert row.answer == answer
    assert row.recognised == logged.get("detected", ""), "shown as it is in the log"
    assert row.route == logged.get("route", "")


def test_a_row_shows_what_the_log_says() -> None:
    row = main._row(STEP, main._Outcome(KEY, 0.0015, "fine", True), {KEY: LOGGED}, SERVED)
    assert row.state is State.OK
    assert (row.recognised, row.route, row.target, row.ms) == ("http", "web", "127.0.0.1:9", "1.5")
