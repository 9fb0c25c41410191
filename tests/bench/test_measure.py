from __future__ import annotations

import pytest

from bench import workloads
from bench.contestants import DIRECT, FLOOR
from bench.load import Result
from bench.measure import Entry, Settings, half_rate, units
from bench.workloads import Workload
from tests.bench.material import sample

WORKLOADS = {each.name: each for each in workloads.ALL}


def result(**values: int) -> Result:
    counts = {"requests": 10, "lost": 0, "sent": 0, "received": 0} | values
    return Result(seconds=1.0, p50=1.0, p99=1.0, p999=1.0, max=1.0, **counts)


def entry(*throughputs: float) -> Entry:
    return Entry(fastest=[sample(each) for each in throughputs])


def test_bulk_is_counted_in_gigabytes_of_both_directions() -> None:
    assert units(WORKLOADS["tcp-up-1"], result(sent=3 * 10**9, received=10**9)) == 4.0


def test_all_else_is_counted_in_requests() -> None:
    assert units(WORKLOADS["tcp-new"], result(sent=10**9)) == 10.0


def test_the_fixed_rate_is_half_of_what_the_slowest_proxy_can_do() -> None:
    entries = {"ours": entry(900.0), "nginx": entry(300.0, 400.0, 500.0), DIRECT: entry(100.0), FLOOR: entry(90.0)}

    assert half_rate(WORKLOADS["tcp-new"], entries) == 200.0


def test_a_proxy_that_has_broken_down_does_not_set_the_rate() -> None:
    entries = {"ours": entry(900.0), "nginx": entry(800.0), "rust": entry(3.0)}

    assert half_rate(WORKLOADS["tcp-new"], entries) == 400.0


def test_nobody_sets_the_rate_when_nobody_worked() -> None:
    assert half_rate(WORKLOADS["tcp-new"], {"ours": Entry(problem="no answers"), DIRECT: entry(1.0)}) is None
    assert half_rate(WORKLOADS["tcp-new"], {"ours": entry(0.0)}) is None


def test_the_rate_of_bulk_is_in_blocks() -> None:
    workload = WORKLOADS["tcp-down-1"]
    assert workload.paced is not None

    assert half_rate(workload, {"ours": entry(2.0)}) == pytest.approx(1e9 / workload.paced.bytes_each)


@pytest.mark.parametrize(
    ("cores", "workers", "proxy", "target", "load"),
    [
        ((0, 1), 1, {0}, {1}, {1}),
        ((0, 1), 2, {0, 1}, {1}, {1}),
        ((0, 1, 2, 3), 1, {0}, {2}, {3}),
        ((0, 1, 2, 3), 2, {0, 1}, {2}, {3}),
        ((5,), 1, {5}, {5}, {5}),
    ],
)
def test_proxy_target_and_load_share_a_core_only_where_they_must(
    cores: tuple[int, ...], workers: int, proxy: set[int], target: set[int], load: set[int]
) -> None:
    settings = Settings(seconds=1.0, repeat=1, cores=cores)

    assert settings.proxy_cores(workers) == proxy
    assert settings.target_core(workers) == target
    assert settings.load_core == load


@pytest.mark.parametrize("workload", workloads.ALL, ids=lambda each: each.name)
def test_no_workload_asks_for_more_than_udp_and_the_target_can_do(workload: Workload) -> None:
    for load in filter(None, (workload.load, workload.paced)):
        assert not load.segment or load.response * load.burst < 65_508
        assert load.burst * load.bursts <= 80
        assert load.transport == ("udp" if workload.job in {"udp", "quic"} else "tcp")
