from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpxy_l4 import logs
from rpxy_l4.logs import Sink
from tests.support.proxy import ROOT


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    before = logs.EVENTS.handlers[:], logs.EVENTS.level, logs.EVENTS.propagate
    yield
    logs.EVENTS.handlers[:], logs.EVENTS.propagate = before[0], before[2]
    logs.EVENTS.setLevel(before[1])
    logs._current.clear()


def test_a_timestamp_is_rfc_3339_in_utc_with_milliseconds() -> None:
    assert logs.timestamp(1_700_000_000.0625) == "2023-11-14T22:13:20.062Z"


def test_events_go_to_a_file_with_time_level_and_role(tmp_path: Path) -> None:
    logs.setup("worker 3", tmp_path)
    logging.getLogger("rpxy_l4.x").warning("disk %s", "full")

    line = (tmp_path / "rpxy-l4.log").read_text()
    assert line.endswith("Z warning worker 3: disk full\n")


def test_a_rotated_file_is_let_go_when_reopened(tmp_path: Path) -> None:
    current = logs.setup("supervisor", tmp_path)
    current.access.write(b"one\n")
    (tmp_path / "access.log").rename(tmp_path / "access.log.1")
    current.access.write(b"two\n")
    logs.reopen()
    current.access.write(b"three\n")

    assert (tmp_path / "access.log.1").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "access.log").read_bytes() == b"three\n"


def test_a_file_that_cannot_be_opened_again_stays_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    current = logs.setup("supervisor", directory)
    directory.rename(tmp_path / "moved")
    logs.reopen()
    current.access.write(b"still here\n")

    assert (tmp_path / "moved" / "access.log").read_bytes() == b"still here\n"
    assert "cannot open a log file again" in (tmp_path / "moved" / "rpxy-l4.log").read_text()


def test_a_pipe_that_nobody_reads_drops_lines_and_counts_them() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer, None)
    line = b"x" * 99 + b"\n"
    for _ in range(100):
        sink.write(line * 100)

    assert sink.dropped > 0
    os.set_blocking(reader, False)
    got = bytearray()
    while True:
        try:
            got += os.read(reader, 65536)
        except BlockingIOError:
            break
    assert got.count(b"\n") + sink.dropped == 100 * 100
    assert set(bytes(got).split(b"\n")) == {line[:-1], b""}
    os.close(reader)
    os.close(writer)


def test_a_terminal_that_stops_background_writers_does_not_signal_this_one() -> None:
    # In a session of its own whose terminal this is, as a background process; 9: the signal came.
    code = """
import os, signal, sys, termios
from rpxy_l4.logs import Sink
parent, terminal = os.openpty()
os.setsid()
os.close(os.open(os.ttyname(terminal), os.O_RDWR))
flags = termios.tcgetattr(terminal)
flags[3] |= termios.TOSTOP
termios.tcsetattr(terminal, termios.TCSANOW, flags)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, lambda *_: os._exit(9))
    sink = Sink(terminal, None)
    sink.write(b"line\\n")
    os._exit(sink.dropped)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or os.read(parent, 100) != b"line\\r\\n")
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=ROOT, check=False).returncode == 0


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = Sink(writer, None)
    sink.write(b"one\ntwo\n")

    assert sink.dropped == 2
    os.close(writer)


def test_an_event_that_repeats_does_not_flood_the_log(tmp_path: Path) -> None:
    logs.setup("worker 0", tmp_path)
    for number in range(1000):
        logging.getLogger("rpxy_l4.x").warning("client %d is odd", number)
    logging.getLogger("rpxy_l4.x").warning("something else")

    lines = (tmp_path / "rpxy-l4.log").read_text().splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith("something else")


def test_an_event_of_several_lines_is_indented_so_that_it_stays_one_entry(tmp_path: Path) -> None:
    logs.setup("supervisor", tmp_path)
    try:
        int("bad")
    except ValueError:
        logging.getLogger("rpxy_l4.x").exception("fault")

    lines = (tmp_path / "rpxy-l4.log").read_text().splitlines()
    assert lines[0].endswith("error supervisor: fault")
    assert all(line.startswith("  ") for line in lines[1:])
    assert lines[-1].startswith("  ValueError: ")


def test_a_fault_in_a_log_call_ends_nothing(tmp_path: Path) -> None:
    logs.setup("supervisor", tmp_path)
    logging.getLogger("rpxy_l4.x").warning("%d", "not a number")

    assert "unprintable event" in (tmp_path / "rpxy-l4.log").read_text()


def test_a_line_too_long_for_a_pipe_is_dropped_and_the_others_come_through() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer, None)
    sink.write(b"one\n" + b"x" * 5000 + b"\ntwo\n")

    assert os.read(reader, 65536) == b"one\ntwo\n"
    assert sink.dropped == 1
    os.close(reader)
    os.close(writer)
    os.close(sink.descriptor)


def test_writers_to_one_pipe_never_wait_for_each_other() -> None:
    reader, writer = os.pipe()
    sinks = [Sink(writer, None) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda sink=sink: [sink.write(b"y" * 3000 + b"\n") for _ in range(500)])
        for sink in sinks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert not any(thread.is_alive() for thread in threads)
    assert sum(sink.dropped for sink in sinks) >= 1500 - 65536 // 3001
    os.close(reader)
    os.close(writer)
    for sink in sinks:
        os.close(sink.descriptor)


def test_what_the_program_itself_does_is_never_left_out_of_the_log(tmp_path: Path) -> None:
    logs.setup("supervisor", tmp_path)
    for number in range(50):
        logging.getLogger("rpxy_l4.x").info("generation %d applied", number)

    assert len((tmp_path / "rpxy-l4.log").read_text().splitlines()) == 50
