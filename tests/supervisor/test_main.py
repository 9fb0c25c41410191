"""The loop, in a process of its own with stand-in children. Real ones are driven in ``tests/e2e``."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from rpxy_l4.supervisor.main import NAMES_PATIENCE
from tests.supervisor.standin import DIES, LOSES, STAYS, TELLS_NONSENSE, WAITS
from tests.support.ports import free_port
from tests.support.proxy import ROOT, child_pids
from tests.support.waiting import PATIENCE, pass_time

USUAL = 1024


class Standin:
    """``tests.supervisor.standin`` and its output."""

    def __init__(self, folder: Path, **keys: str | int) -> None:
        # A path may be any bytes.
        self.file = folder / os.fsdecode(b"config\xff.toml")
        self.port, self.admin_port = free_port(), free_port()
        self.output = b""
        self.write(**keys)

    def write(self, **keys: str | int) -> None:
        """Write the file; keys are given as TOML."""
        usual: dict[str, str | int] = {
            "listen_port": self.port,
            "listen_address_v4": '"127.0.0.1"',
            "tcp_target": '["127.0.0.1:1"]',
            "workers": 2,
            "watch": "false",
            "kernel_path": '"off"',
            "admin.listen": f'"127.0.0.1:{self.admin_port}"',
        }
        self.file.write_text("".join(f"{key} = {value}\n" for key, value in {**usual, **keys}.items()))

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.supervisor.standin", str(self.file)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stderr is not None
        self.pipe = self.process.stderr.fileno()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def reload(self, **keys: str | int) -> None:
        self.write(**keys)
        self.signal(signal.SIGHUP)

    def children(self) -> list[int]:
        """The process of the admin and those of the workers, in the order in which they were started."""
        return sorted(child_pids(self.process.pid))

    def wait_for(self, text: str, count: int = 1) -> None:
        """Read on until the text has come so many times, anew for each call."""
        deadline = time.monotonic() + PATIENCE
        while self.output.count(text.encode()) < count:
            left = max(0.0, deadline - time.monotonic())
            part = os.read(self.pipe, 65536) if select.select([self.pipe], [], [], left)[0] else b""
            assert part, f"no {count} {text!r} in:\n{self.output.decode()}"
            self.output += part

    def end(self) -> int:
        """Wait for the end; its exit status. All output has been read then."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 65536):
                self.output += part
        return self.process.wait(PATIENCE)


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Callable[..., Standin]]:
    with contextlib.ExitStack() as stack:
        yield lambda **keys: stack.enter_context(Standin(tmp_path, **keys))


def test_every_worker_gets_its_sockets_and_nothing_else_of_the_supervisor(standin: Callable[..., Standin]) -> None:
    run = standin(listen_address_v4='["127.0.0.1", "127.0.0.2"]')
    run.wait_for("ready: generation 1 applied on 2/2 workers")

    run.wait_for("worker 0 applies 1: slots 0,2, new 0:127.0.0.1,0:127.0.0.2,2:127.0.0.1,2:127.0.0.2, extra 0\n")
    run.wait_for("worker 1 applies 1: slots 1,3, new 1:127.0.0.1,1:127.0.0.2,3:127.0.0.1,3:127.0.0.2, extra 0\n")


def test_a_reload_brings_only_what_is_new(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.reload(listen_address_v4='["127.0.0.1", "127.0.0.2"]')
    run.wait_for("generation 2 applied on 2/2")
    run.reload(listen_address_v4='["127.0.0.2"]')
    run.wait_for("generation 3 applied on 2/2")

    run.wait_for("worker 1 applies 2: slots 1,3, new 1:127.0.0.2,3:127.0.0.2, ")
    run.wait_for("worker 1 applies 3: slots 1,3, new -, ")


def test_the_number_of_slots_stays_until_the_next_start(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.reload(slots=5)

    run.wait_for("slots = 5 takes effect at the next start; it stays 4")
    run.wait_for("generation 2 applied on 2/2")


def test_one_worker_more_is_given_slots_of_others(standin: Callable[..., Standin]) -> None:
    run = standin(slots=6)
    run.wait_for("generation 1 applied on 2/2")
    run.signal(signal.SIGTTIN)

    run.wait_for("3 workers from now on, 2 until now")
    run.wait_for("worker 2 applies 1: slots -, new -, ")
    for giver, slot in ((0, 4), (1, 5)):
        run.wait_for(f"worker {giver} releases {slot}")
        run.wait_for(f"worker 2 inherits {slot}, new {slot}:127.0.0.1\n")


def test_one_worker_less_leaves_its_slots_to_others_before_it_drains(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.signal(signal.SIGTTOU)

    run.wait_for("worker 1 drains for ")
    for slot in (1, 3):
        run.wait_for(f"worker 1 releases {slot}")
        run.wait_for(f"worker 0 inherits {slot}, new {slot}:127.0.0.1\n")
    run.wait_for("admin sees 1 ready 0 draining=False")
    assert b"has died" not in run.output


def test_a_reload_may_change_the_number_of_workers(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.reload(workers=4)
    run.wait_for("generation 2 applied on 4/4")
    run.wait_for("inherits", count=2)
    run.reload(workers=1)

    run.wait_for("generation 3 applied on ")
    run.wait_for("drains for ", count=3)


def test_there_is_always_one_worker_and_never_more_than_slots(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1, slots=1)
    run.wait_for("generation 1 applied on 1/1")
    run.signal(signal.SIGTTIN)
    run.wait_for("2 workers are not possible with 1 slots")
    run.signal(signal.SIGTTOU)
    run.wait_for("0 workers are not possible with 1 slots")


def test_who_dies_while_slots_move_does_not_keep_them(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    *_, last = run.children()
    os.kill(last, signal.SIGSTOP)
    run.signal(signal.SIGTTOU)
    run.wait_for("worker 0 inherits 1, ")
    run.wait_for("worker 0 inherits 3, ")
    os.kill(last, signal.SIGKILL)

    run.wait_for("has died")
    run.reload(tcp_backlog=99)
    run.wait_for("generation 2 applied on ")


def test_slots_of_the_dead_reach_a_worker_that_could_not_be_told(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    _, first, _ = run.children()
    os.kill(first, signal.SIGSTOP)
    for orders in range(1, 401):  # more than its queue holds
        run.signal(signal.SIGUSR1)
        run.wait_for("log files opened again", count=orders)
    for deaths in range(1, 4):  # until its seat stays empty for a moment
        run.wait_for("worker 1 applies 1", count=deaths)
        *_, last = run.children()
        os.kill(last, signal.SIGKILL)
        run.wait_for("has died", count=deaths)
    run.signal(signal.SIGTTOU)
    run.wait_for("1 workers from now on")
    os.kill(first, signal.SIGCONT)

    run.wait_for("worker 0 applies 1: slots 0,1,2,3, ")


def test_a_worker_that_could_not_be_told_to_drain_is_told_later(standin: Callable[..., Standin]) -> None:
    run = standin(drain_timeout='"60s"')
    run.wait_for("generation 1 applied on 2/2")
    _, first, _ = run.children()
    os.kill(first, signal.SIGSTOP)
    for orders in range(1, 401):
        run.signal(signal.SIGUSR1)
        run.wait_for("log files opened again", count=orders)
    run.signal(signal.SIGTERM)
    run.wait_for("worker 1 drains")
    os.kill(first, signal.SIGCONT)

    run.wait_for("worker 0 drains for 60 s")
    assert run.end() == 0


def test_a_configuration_that_was_loaded_before_slots_move_waits_for_them(standin: Callable[..., Standin]) -> None:
    run = standin(tcp_target='["127.0.0.1:1"]')
    run.wait_for("generation 1 applied on 2/2")
    *_, last = run.children()
    os.kill(last, signal.SIGSTOP)
    run.reload(tcp_target='["unknown.test:1"]')
    run.wait_for("admin sees 2")
    run.signal(signal.SIGTTOU)
    run.wait_for("worker 0 inherits 3, ")
    pass_time(NAMES_PATIENCE + 0.5)
    os.kill(last, signal.SIGCONT)

    run.wait_for("worker 0 applies 2")
    assert run.output.index(b"worker 1 releases 3") < run.output.index(b"worker 0 applies 2")


def test_a_worker_that_lost_something_is_given_its_configuration_again_and_lives(
    standin: Callable[..., Standin],
) -> None:
    run = standin(tcp_backlog=LOSES)
    run.wait_for("worker 0 applies 1: ", count=2)
    run.wait_for("worker 1 applies 1: ", count=2)


def test_a_name_that_resolves_is_known_to_the_workers_from_the_start(standin: Callable[..., Standin]) -> None:
    run = standin(tcp_target='["known.test:1"]')
    run.wait_for("generation 1 applied on 2/2")

    run.wait_for("worker 0 knows {'known.test': ('127.0.0.1',)}")
    assert b"knows {}" not in run.output


def test_a_name_that_does_not_resolve_is_not_waited_for_long(standin: Callable[..., Standin]) -> None:
    began = time.monotonic()
    run = standin(tcp_target='["known.test:1", "unknown.test:1"]')
    run.wait_for("generation 1 applied on 2/2")

    assert time.monotonic() - began >= 2.0
    run.wait_for("worker 0 knows {'known.test': ('127.0.0.1',)}")


def test_a_name_that_was_known_before_is_not_waited_for(standin: Callable[..., Standin]) -> None:
    run = standin(tcp_target='["unknown.test:1"]')
    run.wait_for("generation 1 applied on 2/2")
    began = time.monotonic()
    run.reload(tcp_target='["unknown.test:1"]', tcp_backlog=99)
    run.wait_for("generation 2 applied on 2/2")

    assert time.monotonic() - began < 2.0


def test_reloads_that_come_while_one_is_under_way_are_one_and_the_last_content_wins(
    standin: Callable[..., Standin], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    run = standin(workers=1)
    run.wait_for("generation 1 applied on 1/1")
    run.reload(tcp_backlog=WAITS, workers=1)
    with (tmp_path / "gate").open("wb"):  # returns when the worker is at the gate
        run.reload(tcp_backlog=20, workers=1)
        run.reload(tcp_backlog=21, listen_address_v4='"127.0.0.3"', workers=1)
        run.signal(signal.SIGUSR1)
        run.wait_for("log files opened again")  # so the signals before it have arrived, too
    run.wait_for("generation 2 applied on 1/1")
    run.wait_for("generation 3 applied on 1/1")
    run.wait_for("worker 0 applies 3: slots 0,1, new 0:127.0.0.3,1:127.0.0.3, ")
    run.signal(signal.SIGTERM)

    assert run.end() == 0
    assert b"generation 4" not in run.output
    assert b"unchanged" not in run.output


def test_workers_that_die_of_a_configuration_do_not_keep_a_better_one_out(standin: Callable[..., Standin]) -> None:
    run = standin(tcp_backlog=DIES, workers=1)
    run.wait_for("worker 1 (process ", count=3)
    run.wait_for("has died: exit status 3; 0 sessions lost", count=3)
    run.reload(tcp_backlog=DIES, listen_address_v4='"127.0.0.2"', workers=1)
    run.wait_for("has died: exit status 3; 0 sessions lost", count=4)
    run.reload(tcp_backlog=USUAL, workers=1)

    run.wait_for("generation 2 was never in force on all workers")
    run.wait_for("generation 3 applied on 1/1")


@pytest.mark.parametrize(("number", "name"), [(35, "signal 35"), (34, "SIGRTMIN"), (9, "SIGKILL")])
def test_a_worker_may_die_of_any_signal(standin: Callable[..., Standin], number: int, name: str) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    os.kill(run.children()[-1], number)

    run.wait_for(f"has died: {name}; 0 sessions lost")
    run.wait_for("worker 2 is process")
    run.signal(signal.SIGTERM)
    assert run.end() == 0


def test_a_fault_of_the_supervisors_own_is_logged_and_does_not_end_it(standin: Callable[..., Standin]) -> None:
    run = standin(tcp_backlog=TELLS_NONSENSE)
    run.wait_for("critical supervisor: a fault of the supervisor's own in functools.partial", count=2)
    run.wait_for("UnpicklingError", count=2)
    run.wait_for("generation 1 applied on 2/2")
    run.reload()

    run.wait_for("generation 2 applied on 2/2")
    run.signal(signal.SIGTERM)
    assert run.end() == 0


def test_two_ports_do_not_change_places_in_one_reload(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.reload(listen_port=run.admin_port, **{"admin.listen": f'"127.0.0.1:{run.port}"'})

    run.wait_for(f"cannot listen on tcp 127.0.0.1:{run.admin_port}: address already in use")
    run.reload()
    run.wait_for("the configuration file is unchanged")


def test_a_file_that_became_a_pipe_is_not_waited_for(standin: Callable[..., Standin]) -> None:
    run = standin()
    run.wait_for("generation 1 applied on 2/2")
    run.file.unlink()
    os.mkfifo(run.file)
    run.signal(signal.SIGHUP)

    run.wait_for("cannot be read: it is no regular file")
    run.file.unlink()
    run.reload(tcp_backlog=99)
    run.wait_for("generation 2 applied on 2/2")


@pytest.mark.slow
def test_a_directory_that_was_made_anew_is_watched_again(standin: Callable[..., Standin]) -> None:
    run = standin(watch="true")
    run.wait_for("generation 1 applied on 2/2")
    shutil.rmtree(run.file.parent)
    run.wait_for("cannot go on watching")
    run.wait_for("the configuration was not reloaded")
    run.file.parent.mkdir()
    run.write(watch="true")
    # Found by looking at it now and then.
    run.wait_for("the configuration file is unchanged")
    began = time.monotonic()
    run.write(watch="true", tcp_backlog=98)

    run.wait_for("generation 2 applied on 2/2")
    assert time.monotonic() - began < 5


def test_a_worker_that_could_not_be_told_of_addresses_is_told_later(
    standin: Callable[..., Standin], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    run = standin(tcp_target='["flood.test:1"]', tcp_backlog=WAITS, workers=1)
    run.wait_for("admin has said it all")
    (tmp_path / "gate").write_bytes(b"")

    run.wait_for("worker 0 knows {'flood.test': ('127.0.0.1',)}")


def test_a_new_admin_address_is_handed_over(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1)
    run.wait_for("admin begins with True")
    run.wait_for("admin sees 1 ready 0")
    run.reload(**{"admin.listen": f'"127.0.0.1:{free_port()}"'})
    run.wait_for("admin sees 2 ready 1")


def test_without_an_admin_address_the_admin_process_runs_without_a_socket(standin: Callable[..., Standin]) -> None:
    run = standin(**{"admin.listen": '""'})

    run.wait_for("admin begins with False")
    run.wait_for("generation 1 applied on 2/2")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_ends_with_status_0_and_is_announced_to_the_admin_process(
    standin: Callable[..., Standin], number: signal.Signals
) -> None:
    run = standin(workers=1, drain_timeout='"7s"')
    run.wait_for("generation 1 applied on 1/1")
    run.signal(number)

    assert run.end() == 0
    run.wait_for("draining 0 sessions, up to 7 s; a second signal stops at once")
    run.wait_for("worker 0 drains for 7 s")
    run.wait_for("admin sees 1 ready 0 draining=True")
    assert run.output.rstrip().endswith(b"stopped")


def test_a_second_signal_ends_those_that_do_not_want_to(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1, tcp_backlog=STAYS)
    run.wait_for("generation 1 applied on 1/1")
    run.signal(signal.SIGTERM)
    run.wait_for("worker 0 drains for 30 s")
    run.signal(signal.SIGTERM)

    assert run.end() == 0
    run.wait_for("stopping at once")
    run.wait_for("worker 0 drains for 0 s")
    run.wait_for("worker 1 does not end: killing it")


def test_quit_stops_at_once(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1)
    run.wait_for("generation 1 applied on 1/1")
    run.signal(signal.SIGQUIT)

    assert run.end() == 0
    run.wait_for("worker 0 drains for 0 s")


def test_a_stop_during_the_start_is_obeyed(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1, tcp_target='["unknown.test:1"]')
    run.wait_for("admin sees 1")
    run.signal(signal.SIGTERM)

    assert run.end() == 0
    assert b"applied" not in run.output


def test_signals_without_a_meaning_change_nothing(standin: Callable[..., Standin]) -> None:
    run = standin(workers=1)
    run.wait_for("generation 1 applied on 1/1")
    for number in (signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGWINCH):
        run.signal(number)
    run.signal(signal.SIGUSR1)

    run.wait_for("worker 0 reopens")
    run.signal(signal.SIGTERM)
    assert run.end() == 0


def test_a_terminals_interrupt_reaches_everybody_and_counts_once(standin: Callable[..., Standin]) -> None:
    run = standin(drain_timeout='"7s"')
    run.wait_for("generation 1 applied on 2/2")
    os.killpg(run.process.pid, signal.SIGINT)

    assert run.end() == 0
    run.wait_for("worker 0 drains for 7 s")
    assert b"stopping at once" not in run.output
    assert b"has died" not in run.output
