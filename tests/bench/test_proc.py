from __future__ import annotations

import os
import subprocess
import sys

from bench import proc

STAT = "7 (a ) b (c) S 3 7 7 0 -1 4194304 100 0 0 0 250 50 900 900 20 0 1 0 100 1000 50"


def test_the_parent_is_found_behind_a_name_with_brackets_and_blanks() -> None:
    assert proc.parent_of(STAT) == 3


def test_cpu_is_user_and_system_time_without_that_of_children() -> None:
    assert proc.cpu_of_stat(STAT) == 300 / os.sysconf("SC_CLK_TCK")


def test_schedstat_has_nanoseconds() -> None:
    assert proc.cpu_of_schedstat("1500000000 22 3\n") == 1.5


def test_memory_is_the_proportional_set_size() -> None:
    assert proc.memory_of_rollup("0-1 ---p 0 0 [rollup]\nRss:    100 kB\nPss:   40 kB\nPss_Anon: 5 kB\n") == 40 * 1024


def test_the_peak_of_a_process_without_memory_is_nothing() -> None:
    assert proc.peak_of_status("Name:\tx\nVmHWM:\t   12 kB\n") == 12 * 1024
    assert proc.peak_of_status("Name:\tzombie\n") == 0


def test_descendants_are_children_and_theirs_but_no_strangers() -> None:
    assert sorted(proc.descendants({2: 1, 3: 2, 4: 3, 5: 1, 9: 8}, 2)) == [2, 3, 4]


def test_a_port_is_bound_when_the_table_lists_it() -> None:
    table = "  sl  local_address rem_address\n  1: 0100007F:1F90 00000000:0000 07\n"

    assert proc.has_udp_port(table, 8080)
    assert not proc.has_udp_port(table, 8081)


def test_what_a_real_process_uses_can_be_read() -> None:
    command = [sys.executable, "-c", "import sys; sum(range(10**5)); print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        pids = proc.tree_of(os.getpid())

        assert child.pid in pids
        assert proc.cpu_seconds([child.pid]) > 0
        assert proc.peak_memory([child.pid]) >= proc.memory([child.pid]) > 1 << 20
        child.communicate()


def test_a_process_that_has_ended_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    assert proc.cpu_seconds([child.pid]) == 0
    assert proc.memory([child.pid]) == 0
    assert proc.peak_memory([child.pid]) == 0
