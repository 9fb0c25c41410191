"""Random faults one after another under all traffic, the same ones each time: nothing is lost, leaks or is miscounted.

It runs where ``RPXY_L4_SOAK_SECONDS`` says how long (``make soak``); ``RPXY_L4_SOAK_SEED`` makes it another one.
"""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.growth import growth, snapshot
from tests.chaos.test_faults import DATAGRAMS_OF_A_DEATH
from tests.chaos.traffic import Traffic
from tests.chaos.world import OTHER, PROXY, Scene, World
from tests.support.program import copy_program
from tests.support.traffic.source import LONGEST, Address, Conversation, Losses
from tests.support.waiting import eventually, pass_time

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.netns]

SECONDS: Final = float(os.environ.get("RPXY_L4_SOAK_SECONDS", "15"))
SEED: Final = int(os.environ.get("RPXY_L4_SOAK_SEED", "1"))
WORKERS: Final = 2
DRAIN: Final = f'drain_timeout = "{SECONDS + 600:.0f}s"\n'
"""Nobody who leaves ends a session that lasts as long as the test."""
PATIENCE: Final = 20.0
"""Of DNS clients: a worker that hangs, or died again and again, is not replaced at once."""
UNWRITTEN: Final = 1.0
"""Seconds around its death of which a worker's lines in the access log may be missing."""
LATE: Final = 5.0
"""Seconds at most between a connection's end at its client, and in its line."""
LINE: Final = 20
"""Bytes at most of a line to the target that sends one back."""

CPU_SECONDS: Final = 0.1
"""What a new admin process may say less: of the dead it knows what wait4(2) counted, not what /proc showed before."""

Series = tuple[str, frozenset[tuple[str, str]]]


def is_cpu(series: Series) -> bool:
    return "cpu_seconds" in series[0]


class Scraper:
    """Reads the metrics all the time, and notes what went backwards."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.latest: dict[Series, float] = {}
        self.scrapes = 0
        self.fallen: list[str] = []

    def start(self) -> None:
        with self._scene.world.at_the_proxy():
            self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.3):
            self._scrape()

    def _scrape(self) -> None:
        now = {
            key: value
            for key, value in self._scene.proxy.metrics().items()
            if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
        }
        self.fallen += [
            f"{key}: {value} -> {now.get(key)}"
            for key, value in self.latest.items()
            # Of a worker that has just died, it may not be known for a moment what it used.
            if now.get(key, value if is_cpu(key) else -1) < value - (CPU_SECONDS if is_cpu(key) else 0)
        ]
        self.latest |= now
        self.scrapes += 1

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LONGEST)
        assert not self._thread.is_alive()


@dataclass
class Hazards:
    """What happens, in an order that only the seed decides."""

    scene: Scene
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    killed: set[Address] = field(default_factory=set)
    """Clients of the TCP connections of killed workers."""
    deaths: list[float] = field(default_factory=list)
    """When that was, in monotonic seconds."""
    has_other: bool = True
    next_refusal: float = 0.0

    def reload(self) -> None:
        self.scene.reload(step=2)

    def address(self) -> None:
        self.has_other = not self.has_other
        hosts = f'"{PROXY}", "{OTHER}"' if self.has_other else f'"{PROXY}"'
        self.scene.reload(f"{DRAIN}listen_address_v4 = [{hosts}]\n", step=2)

    def kill(self) -> None:
        self.deaths.append(time.monotonic())
        self.killed |= self.scene.kill_worker(self.chance.choice(list(self.scene.staying())))

    def hang(self) -> None:
        """The same, with some ten seconds between the last that it did and its end."""
        self.deaths.append(time.monotonic())
        self.killed |= self.scene.hang_worker(self.chance.choice(list(self.scene.staying())))

    def refuse(self) -> None:
        """A change that is refused; seldom enough that each is said: the log has ten lines of a kind in ten seconds."""
        if time.monotonic() >= self.next_refusal:
            self.next_refusal = time.monotonic() + 4.0
            self.chance.choice((self.scene.reload_wrongly, self.scene.upgrade_wrongly))()

    def kill_admin(self) -> None:
        # Where it is not there, it is not replaced yet: each time in a row takes longer.
        if victim := self.scene.admin_pid():
            os.kill(victim, signal.SIGKILL)

    def freeze(self) -> None:
        """One worker stands still for a moment."""
        pid = self.scene.proxy.worker_pids()[self.chance.choice(list(self.scene.staying()))]
        os.kill(pid, signal.SIGSTOP)
        pass_time(0.3)
        os.kill(pid, signal.SIGCONT)

    def log_files(self) -> None:
        self.scene.proxy.signal(signal.SIGUSR1)

    def scale(self) -> None:
        for order, count in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            self.scene.proxy.signal(order)
            self.scene.wait_for_workers(count)

    def upgrade(self) -> None:
        self.scene.upgrade(2)

    def all(self) -> None:
        """Each of them once."""
        before = (self.reload, self.address, self.address, self.kill, self.kill_admin, self.freeze, self.log_files)
        between = (self.scale, self.scene.reload_wrongly, self.upgrade, self.scene.upgrade_wrongly)
        for act in (*before, *between, self.kill):
            act()

    def go_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        often = (self.reload, self.address, self.kill, self.freeze)
        sometimes = (self.kill_admin, self.log_files, self.refuse, self.refuse)
        acts = (*often, *often, *sometimes)
        while time.monotonic() < until:
            self.chance.choice(acts)()
            pass_time(self.chance.uniform(0.1, 0.8))


@pytest.mark.skipif("RPXY_L4_SOAK_SECONDS" not in os.environ, reason="`make soak` runs it")
@pytest.mark.timeout(int(120 + 2 * SECONDS))
def test_nothing_is_lost_leaks_or_is_miscounted(world: World, tmp_path: Path) -> None:
    keys = f'{DRAIN}listen_address_v4 = ["{PROXY}", "{OTHER}"]\n'
    program = copy_program(tmp_path / "program")
    with Scene(world, tmp_path, keys, idle_lifetime=5, program=program) as scene:
        for trouble in ("has died", "hangs", "the configuration was not reloaded", "no upgrade, nothing has changed"):
            scene.proxy.expect_trouble(trouble)
        scraper, hazards = Scraper(scene), Hazards(scene)
        scraper.start()

        # What is made at its first use has been used after this.
        _, first = suffer(scene, hazards, 0.0)
        before = snapshot(scene.proxy)
        traffic, losses = suffer(scene, hazards, SECONDS)
        # Sockets of an address that left are closed when a worker next looks.
        with contextlib.suppress(AssertionError):
            eventually(lambda: not growth(before, snapshot(scene.proxy)), timeout=5.0)
        after = snapshot(scene.proxy)
        scraper.stop()
        with world.at_the_proxy():
            metrics = scene.proxy.metrics()

        assert growth(before, after) == []
        assert scraper.fallen == []
        assert scraper.scrapes > SECONDS / 2
        assert unexcused(first + losses, hazards) == []
        assert open_without_end(metrics) == {}
        assert_the_counters_know(scene, metrics, hazards)
        assert_the_log_knows(
            scene, [each for client in (*traffic.http, *traffic.tcp) for each in client.ended], hazards
        )


def suffer(scene: Scene, hazards: Hazards, seconds: float) -> tuple[Traffic, list[Losses]]:
    """Every hazard once, and random ones for so many seconds; then wait until nothing is open."""
    with Traffic(scene, patience=PATIENCE) as traffic:
        hazards.all()
        if seconds:
            hazards.hang()  # takes long, and so comes once
            # Who had no answer for so long asks seldom, and would miss every chance between the deaths that follow.
            traffic.go_on()
        hazards.go_on_for(seconds)
        traffic.go_on()
        losses = traffic.stop()
    with scene.world.at_the_proxy():
        eventually(lambda: scene.proxy.metric("sessions") == 0, "no session is open", LONGEST)
        eventually(lambda: len(scene.proxy.worker_pids()) == WORKERS, "nobody leaves any more", LONGEST)
    return traffic, losses


def unexcused(losses: list[Losses], hazards: Hazards) -> list[str]:
    found: list[str] = []
    for each in losses:
        if each.is_udp and len(each.lost) <= DATAGRAMS_OF_A_DEATH * len(hazards.deaths):
            continue
        found += [loss.what for loss in each.lost if loss.client not in hazards.killed]
    return found


def open_without_end(metrics: dict[Series, float]) -> dict[frozenset[tuple[str, str]], float]:
    """Sessions that were opened, less those that were closed, for each series where that is not nothing."""
    balance: dict[frozenset[tuple[str, str]], float] = collections.defaultdict(float)
    for (name, labels), value in metrics.items():
        series = frozenset(label for label in labels if label[0] != "reason")
        balance[series] += {"rpxy_l4_sessions_total": value, "rpxy_l4_sessions_closed_total": -value}.get(name, 0)
    return {series: left for series, left in balance.items() if left}


def assert_the_counters_know(scene: Scene, metrics: dict[Series, float], hazards: Hazards) -> None:
    """They have every byte that a line tells of; what an echo got, it gave back, but for lost connections."""
    counted: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for (name, labels), value in metrics.items():
        if name == "rpxy_l4_bytes_total":
            told = dict(labels)
            counted[told["protocol"], told["route"], told["direction"]] += value
    logged: dict[tuple[str, str, str], int] = collections.defaultdict(int)
    for line in scene.proxy.access_lines():
        if line["event"] == "session":
            for direction in ("in", "out"):
                logged[line["transport"], line["route"], direction] += int(line[f"bytes_{direction}"])
    assert {key: (counted[key], size) for key, size in logged.items() if counted[key] < size} == {}
    echoed = [counted["tcp", "default", direction] for direction in ("in", "out")]
    assert 0 <= echoed[0] - echoed[1] <= LINE * len(hazards.killed), echoed
    assert echoed[1] > 0


def assert_the_log_knows(scene: Scene, conversations: list[Conversation], hazards: Hazards) -> None:
    """Every connection that ended in order has its line, with just the bytes that its client sent and received."""
    monotonic = time.monotonic() - time.time()

    def missing() -> list[Conversation]:
        lines: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
        for line in scene.proxy.access_lines():
            if line["event"] == "session" and line["reason"] in ("client_eof", "target_eof"):
                ended = dt.datetime.fromisoformat(line["ts"]).timestamp() + monotonic
                lines[line["client"], line["bytes_in"], line["bytes_out"]].append(ended)
        found = []
        for each in conversations:
            host, port = each.client
            # The same port says the same thing again some time later, and needs a line of its own.
            ends = lines[f"{host}:{port}", str(each.sent), str(each.received)]
            mine = [ended for ended in ends if abs(ended - each.ended) < LATE]
            if mine:
                ends.remove(mine[0])
            elif not any(abs(death - each.ended) < UNWRITTEN for death in hazards.deaths):
                found.append(each)
        return found

    assert len(conversations) > SECONDS
    eventually(lambda: not missing(), f"every connection has its line; without: {missing()[:5]}")
