"""Children: stopped with their owner, and missed when they end too early."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from rpxy_l4.demo.processes import Child, DemoError, choose_port, is_free, pause, running_targets, tail
from rpxy_l4.demo.scene import HOST

BOTH = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def test_a_child_that_ends_is_missed_at_once_with_its_last_words(tmp_path: Path) -> None:
    script = "import sys; sys.exit('I cannot')"
    with (
        Child("helper", [sys.executable, "-S", "-c", script], tmp_path / "said") as child,
        pytest.raises(DemoError, match=r"(?s)the helper ended unexpectedly, status 1.*I cannot"),
    ):
        pause([child], 10)


def test_leaving_stops_a_child(tmp_path: Path) -> None:
    script = "import sys; print('up', flush=True); sys.stdin.read(); import signal; signal.pause()"
    with Child("helper", [sys.executable, "-S", "-c", script], tmp_path / "said", talks=True) as child:
        assert child.process.stdout is not None
        assert child.process.stdout.readline() == b"up\n"
        pause([child], 0)
    assert child.process.returncode == -signal.SIGTERM


def test_targets_that_cannot_start_are_an_error_with_their_words(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "certificate.pem").mkdir()
    with pytest.raises(DemoError, match=r"(?s)the targets ended.*IsADirectoryError"), running_targets(folder):
        pass


def test_a_port_is_taken_when_anything_listens_on_it() -> None:
    with socket.create_server((HOST, 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((HOST, 0))
        assert not is_free(tcp.getsockname()[1], BOTH)
        assert not is_free(udp.getsockname()[1], BOTH)
        assert is_free(udp.getsockname()[1], (socket.SOCK_STREAM,))


def test_the_preferred_port_is_chosen_unless_it_is_taken() -> None:
    with socket.create_server((HOST, 0)) as server:
        taken = server.getsockname()[1]
        other = choose_port(taken, BOTH)
    assert other != taken
    assert choose_port(other, BOTH) == other


def test_the_tail_of_a_file_is_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == "  (nothing)"
    path.write_text("".join(f"{n}\n" for n in range(50)))
    assert tail(path).splitlines() == [f"  {n}" for n in range(30, 50)]
