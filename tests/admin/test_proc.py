from __future__ import annotations

import os
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from rpxy_l4.admin.proc import Reading, WorkerProcesses, read_process


def fake_process(
    proc: Path, pid: int, *, user: int, system: int = 0, limit: str = "1024", command: str = "python"
) -> None:
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True, exist_ok=True)
    (folder / "fd" / "0").touch()
    fields = ["S", *["0"] * 10, str(user), str(system), *["0"] * 8, "3", *["0"] * 20]
    (folder / "stat").write_text(f"{pid} ({command}) {' '.join(fields)}\n")
    (folder / "limits").write_text(f"Limit  Soft Limit  Hard Limit  Units\nMax open files  {limit}  4096  files\n")


def test_this_process_reads_itself() -> None:
    reading = read_process(os.getpid())

    assert reading.cpu_user is not None
    assert reading.cpu_user > 0
    assert reading.cpu_system is not None
    assert reading.resident_bytes is not None
    assert 5_000_000 < reading.resident_bytes < 5_000_000_000
    assert reading.open_fds is not None
    assert reading.open_fds >= 3
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert reading.max_fds == (None if soft == resource.RLIM_INFINITY else soft)


def test_a_process_that_is_gone_reads_as_nothing() -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    assert read_process(child.pid) == Reading()


def test_what_is_hidden_does_not_hide_the_rest(tmp_path: Path) -> None:
    fake_process(tmp_path, 7, user=0)
    (tmp_path / "7" / "fd" / "0").unlink()
    (tmp_path / "7" / "fd").rmdir()
    (tmp_path / "7" / "limits").unlink()

    reading = read_process(7, tmp_path)

    assert (reading.open_fds, reading.max_fds) == (None, None)
    assert reading.resident_bytes == 3 * resource.getpagesize()


def test_blanks_and_brackets_in_the_command_shift_no_field(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fake_process(tmp_path, 7, user=5 * ticks, system=2 * ticks, command="rpxy-l4: x) S 1 (y")

    reading = read_process(7, tmp_path)

    assert (reading.cpu_user, reading.cpu_system) == (5.0, 2.0)


@pytest.mark.parametrize("stat", ["", "7 (x)", "7 (x) S 1 2", "7 (x) " + "nan " * 40])
def test_a_stat_of_another_form_reads_as_nothing(tmp_path: Path, stat: str) -> None:
    fake_process(tmp_path, 7, user=0)
    (tmp_path / "7" / "stat").write_text(stat)

    assert read_process(7, tmp_path).cpu_user is None


def test_no_limit_of_descriptors_reads_as_none(tmp_path: Path) -> None:
    fake_process(tmp_path, 7, user=0, limit="unlimited")

    assert read_process(7, tmp_path).max_fds is None


def test_the_cpu_seconds_of_a_slot_are_those_of_its_earlier_processes_and_of_the_living_one(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fake_process(tmp_path, 8, user=1 * ticks, system=2 * ticks)

    reading = WorkerProcesses(tmp_path).read({0: 8}, {0: (12.0, 0.5)})[0]

    assert (reading.cpu_user, reading.cpu_system) == (13.0, 2.5)


def test_the_cpu_seconds_of_a_slot_never_go_back_when_its_process_is_replaced(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    workers = WorkerProcesses(tmp_path)
    fake_process(tmp_path, 7, user=10 * ticks)
    fake_process(tmp_path, 8, user=1 * ticks)
    # It is gone before the supervisor has said what it used; 99 stands for it.
    told: list[tuple[int | None, float]] = [(7, 0.0), (99, 0.0), (None, 10.5), (8, 10.5), (8, 10.5)]
    seen = [workers.read({0: pid}, {0: (before, 0.0)})[0].cpu_user for pid, before in told]

    assert seen == [10.0, 10.0, 10.5, 11.5, 11.5]


def test_a_slot_without_a_process_has_no_memory_and_no_descriptors(tmp_path: Path) -> None:
    assert WorkerProcesses(tmp_path).read({3: None}, {}) == {3: Reading(cpu_user=0.0, cpu_system=0.0)}


def test_scrapes_that_overlap_count_the_past_once(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    workers = WorkerProcesses(tmp_path)
    fake_process(tmp_path, 7, user=10 * ticks)
    threads = [threading.Thread(target=workers.read, args=({0: 7}, {0: (5.0, 0.0)})) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert workers.read({0: 7}, {0: (5.0, 0.0)})[0].cpu_user == 15.0


def test_of_a_process_that_has_just_died_nothing_is_said_until_it_is_known_what_it_used(tmp_path: Path) -> None:
    workers = WorkerProcesses(tmp_path)

    assert workers.read({0: 99}, {0: (3.0, 0.0)})[0].cpu_user is None
    assert workers.read({0: None}, {0: (10.0, 0.0)})[0].cpu_user == 10.0
    assert workers.read({0: 99}, {0: (10.0, 0.0)})[0].cpu_user == 10.0
