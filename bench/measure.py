"""Running one workload: every contestant in turn, again and again."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench import contestants, load, proc
from bench.contestants import DIRECT, FLOOR, KERNEL, Contestant, ContestantError, Running
from bench.load import LoadError, Result
from bench.stats import least, summarize
from bench.workloads import Load, Workload

GIGABYTE: Final = 1e9
_BROKEN: Final = 0.1
_CALM: Final = 2.0
_TICK: Final = 0.02
_QUIET: Final = 0.1
"""Of a core: who uses less is done with its work."""


@dataclass(frozen=True)
class Settings:
    """How long and how often; where."""

    seconds: float
    repeat: int
    cores: tuple[int, ...]
    """The proxies are on the first ones, the load on the last."""

    def proxy_cores(self, workers: int) -> set[int]:
        """Return the cores of a proxy with so many workers."""
        return set(self.cores[:workers])

    @property
    def load_core(self) -> set[int]:
        """Return the core of the generator."""
        return {self.cores[-1]}

    def target_core(self, workers: int) -> set[int]:
        """Return the core of the target: one of its own where there is one to spare."""
        return {self.cores[-2]} if len(self.cores) > workers + 1 else self.load_core


@dataclass
class Sample:
    """One run of one contestant. Units are the workload's."""

    throughput: float
    """Units a second."""
    cpu: float | None
    """CPU seconds of all its processes for each unit; None without a proxy."""
    busy: float | None
    """CPU seconds of all its processes for each second: 1 is one core, full."""
    requests: int
    lost: int
    p50: float
    p99: float
    p999: float
    rate: float = 0.0
    """Requests a second that were asked for; 0: as many as were answered."""


@dataclass
class Entry:
    """All that was measured of one contestant in one workload."""

    fastest: list[Sample] = field(default_factory=list)
    paced: list[Sample] = field(default_factory=list)
    per_session: list[float] = field(default_factory=list)
    """Bytes of memory for each idle session."""
    memory: int | None = None
    """Bytes in use at the end, shared pages counted once."""
    peak: int | None = None
    """Bytes at most, summed over its processes."""
    problem: str = ""
    """Why there is nothing more."""


Entries = dict[str, Entry]


@dataclass(frozen=True)
class Field:
    """Who takes part: the programs that were found."""

    programs: Mapping[Contestant, Path]
    direct: bool

    def of(self, workload: Workload) -> list[Contestant]:
        """Return those that can do this."""
        return [contestant for contestant in self.programs if contestant.supports(workload)]


def raise_limits() -> int:
    """Allow this process and its children as many descriptors as the system does; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


def units(workload: Workload, result: Result) -> float:
    """Return how much of the workload's unit a run did."""
    return (result.sent + result.received) / GIGABYTE if workload.unit == "GB" else float(result.requests)


def half_rate(workload: Workload, entries: Entries) -> float | None:
    """Return half of the slowest contestant's throughput, as requests of the paced load a second.

    Who does not reach a tenth of the median contestant has broken down and does not count: all others would be measured
    doing next to nothing. None when no contestant did any work.
    """
    medians = [
        summary.median
        for name, entry in entries.items()
        # What is no proxy in user space sets no rate.
        if name not in {DIRECT, FLOOR, KERNEL}
        and (summary := summarize([sample.throughput for sample in entry.fastest])) is not None
    ]
    if not medians:
        return None
    bound = statistics.median(medians) * _BROKEN
    slowest = least(median for median in medians if median > bound)
    if slowest is None:
        return None
    paced = workload.paced or workload.load
    return slowest / 2 * (GIGABYTE / paced.bytes_each if workload.unit == "GB" else 1.0)


def run(workload: Workload, competitors: Field, settings: Settings, say: Callable[[str], None]) -> Entries:
    """Measure all contestants that can do the workload."""
    target_port = contestants.free_port()
    cores = settings.target_core(workload.workers)
    with ExitStack() as stack:
        entries: Entries = {}
        proxies: dict[str, Running | None] = {}
        for contestant in competitors.of(workload):
            entries[contestant.name] = Entry()
            try:
                proxies[contestant.name] = stack.enter_context(
                    contestants.running(
                        contestant,
                        competitors.programs[contestant],
                        workload,
                        target_port,
                        settings.proxy_cores(workload.workers),
                    )
                )
            except ContestantError as error:
                entries[contestant.name].problem = str(error)
        if competitors.direct and not workload.is_memory and workload.workers == 1:
            entries[DIRECT] = Entry()
            proxies[DIRECT] = None
        runner = _Runner(workload, settings, target_port, proxies, entries, say)
        with load.target(workload.load, target_port, cores):
            if workload.is_memory:
                runner.memory()
            else:
                runner.warm_up(workload.load)
                runner.repeat(workload.load, rate=0.0)
        rate = half_rate(workload, entries) if workload.latency and not workload.is_memory else None
        if rate is not None:
            paced = workload.paced or workload.load
            with load.target(paced, target_port, cores):
                runner.repeat(paced, rate=rate)
        return entries


@dataclass
class _Runner:
    """The contestants of one workload, all started; whoever is not measured does nothing meanwhile."""

    workload: Workload
    settings: Settings
    target_port: int
    proxies: Mapping[str, Running | None]
    entries: Entries
    say: Callable[[str], None]
    ended: dict[str, float] = field(default_factory=dict)
    """When each did something last."""

    def repeat(self, what: Load, rate: float) -> None:
        """Run a load through each in turn, A B C A B C, and keep what was measured."""
        for number in range(self.settings.repeat):
            for name, proxy, entry in self._healthy():
                samples = entry.paced if rate else entry.fastest
                with self._watched(name, entry):
                    self._settle(name)
                    sample = self._one(what, rate, proxy, entry)
                    samples.append(sample)
                    if proxy is not None:
                        _wait_until_calm(proxy.pids())
                    busy = "" if sample.busy is None else f" busy {sample.busy:4.0%}"
                    kind = "paced" if rate else "fastest"
                    self.say(
                        f"{self.workload.name:<18} {name:<8} {kind:<7} {number + 1}/{self.settings.repeat}"
                        f" {sample.throughput:12.1f} {self.workload.unit}/s{busy} p99 {sample.p99:.0f} us"
                        + (f" lost {sample.lost}" if sample.lost else "")
                    )

    def warm_up(self, what: Load) -> None:
        """Have each see the client and the target once: the kernel path takes connections of clients that it knows."""
        one = replace(what, sessions=1, window=1)
        for name, proxy, entry in self._healthy():
            if proxy is not None:
                with self._watched(name, entry), load.held(one, proxy.port, self.settings.load_core):
                    _wait_until_calm(proxy.pids())  # from its start, too

    def memory(self) -> None:
        """Measure what idle sessions take: once, for what is freed is not given back, and would be used again."""
        what = self.workload.load
        few = replace(what, sessions=64, window=64)
        for name, proxy, entry in self._healthy():
            if proxy is None:
                continue
            with self._watched(name, entry):
                # What the first sessions cost once is not what each costs.
                with load.held(few, proxy.port, self.settings.load_core):
                    before = proc.memory(proxy.pids())
                with load.held(what, proxy.port, self.settings.load_core):
                    after = proc.memory(proxy.pids())
                    entry.memory, entry.peak = after, proc.peak_memory(proxy.pids())
                entry.per_session.append((after - before) / (what.sessions - few.sessions))
                self.say(f"{self.workload.name:<18} {name:<8} {entry.per_session[-1]:10.0f} bytes for each session")

    def _healthy(self) -> Iterator[tuple[str, Running | None, Entry]]:
        return (
            (name, proxy, self.entries[name]) for name, proxy in self.proxies.items() if not self.entries[name].problem
        )

    @contextmanager
    def _watched(self, name: str, entry: Entry) -> Iterator[None]:
        try:
            yield
        except LoadError as error:
            entry.problem = str(error)
            self.say(f"{self.workload.name:<18} {name:<8} {error}")
        self.ended[name] = time.monotonic()

    def _settle(self, name: str) -> None:
        rest = self.workload.settle - (time.monotonic() - self.ended.get(name, -self.workload.settle))
        if rest > 0:
            time.sleep(rest)  # noqa: TID251  flows are forgotten by the clock, and nothing tells when

    def _one(self, what: Load, rate: float, proxy: Running | None, entry: Entry) -> Sample:
        pids: list[int] = []
        cpu: list[float] = []

        def at_ready() -> None:
            # Not earlier: the first process may listen before the others are there.
            pids.extend([] if proxy is None else proxy.pids())

        def at_begin() -> None:
            cpu.append(proc.cpu_seconds(pids))

        def at_end() -> None:
            cpu.append(proc.cpu_seconds(pids))
            if proxy is not None and not rate:
                entry.memory, entry.peak = proc.memory(pids), proc.peak_memory(pids)

        result = load.run(
            what,
            self.target_port if proxy is None else proxy.port,
            self.settings.load_core,
            seconds=self.settings.seconds,
            rate=rate,
            at_ready=at_ready,
            at_begin=at_begin,
            at_end=at_end,
        )
        done = units(self.workload, result)
        used = cpu[1] - cpu[0]
        return Sample(
            throughput=done / result.seconds,
            cpu=used / done if proxy is not None and done else None,
            busy=used / result.seconds if proxy is not None else None,
            requests=result.requests,
            lost=result.lost,
            p50=result.p50,
            p99=result.p99,
            p999=result.p999,
            rate=rate,
        )


def _wait_until_calm(pids: list[int]) -> None:
    """Wait, with a limit, until the proxy has cleaned up after a run, so as not to disturb the next one's."""
    deadline = time.monotonic() + _CALM
    before = -1.0
    while (used := proc.cpu_seconds(pids)) - before > _TICK * _QUIET and time.monotonic() < deadline:
        before = used
        time.sleep(_TICK)  # noqa: TID251  doing nothing is nothing that could be waited for


def pin_this_process(settings: Settings) -> None:
    """Stay off the proxies' core."""
    os.sched_setaffinity(0, settings.load_core)
    if len(settings.cores) == 1:
        print("there is one core only: load and proxy disturb each other", file=sys.stderr)
