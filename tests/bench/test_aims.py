from __future__ import annotations

import pytest

from bench import workloads
from bench.aims import CPU_AIMS, judge
from bench.contestants import DIRECT, FLOOR, KERNEL
from bench.measure import Entry
from tests.bench.material import document, measured, sample


def test_cpu_is_compared_with_the_best_of_the_peers() -> None:
    entries = {
        "ours": Entry(fastest=[sample(cpu=60e-6)]),
        "haproxy": Entry(fastest=[sample(cpu=80e-6)]),
        "nginx": Entry(fastest=[sample(cpu=50e-6)]),
    }

    (verdict,) = judge(document(measured("tcp-new", "connection", **entries)))

    assert verdict.value == pytest.approx(1.2)
    assert verdict.limit == 1.05
    assert not verdict.met


def test_no_aim_is_measured_against_the_floor() -> None:
    dear, cheap = Entry([sample()], [sample()], [1000.0]), Entry([sample(cpu=1e-6)], [sample(p99=1.0)], [1.0])
    without = {"ours": dear, "nginx": dear, "rust": dear}

    with_it, as_before = (
        judge(document(*(measured(each.name, each.unit, **entries) for each in workloads.ALL)))
        for entries in ({**without, FLOOR: cheap}, without)
    )

    assert as_before
    assert with_it == as_before


def test_latency_is_compared_at_the_fixed_rate() -> None:
    entries = {
        "ours": Entry(fastest=[sample(p99=9000.0)], paced=[sample(p99=210.0)]),
        "nginx": Entry(fastest=[sample(p99=1.0)], paced=[sample(p99=200.0)]),
    }

    verdicts = judge(document(measured("udp-idle-not", "request", **entries)))

    assert [(each.text, each.value, each.met) for each in verdicts] == [
        ("p99 latency against the best peer", 1.05, True)
    ]


def test_a_quic_connection_is_judged_by_what_it_costs_beyond_a_flow() -> None:
    quic = measured("quic-new", "flow", ours=Entry(fastest=[sample(cpu=200e-6)]))
    plain = measured("udp-new", "flow", ours=Entry(fastest=[sample(cpu=60e-6)]))

    (verdict,) = judge(document(quic, plain))

    assert verdict.value == pytest.approx(140.0)
    assert verdict.met


def test_idle_sessions_are_judged_in_kibibytes() -> None:
    (verdict,) = judge(document(measured("udp-idle", "session", ours=Entry(per_session=[3072.0]))))

    assert (verdict.value, verdict.limit, verdict.met) == (3.0, 2.0, False)


def test_growth_compares_many_sessions_with_few() -> None:
    few = measured("tcp-sessions-10", "request", ours=Entry(fastest=[sample(cpu=10e-6)]))
    many = measured("tcp-sessions-9000", "request", ours=Entry(fastest=[sample(cpu=10.5e-6)]))

    (verdict,) = judge(document(few, many))

    assert verdict.value == pytest.approx(1.05)
    assert verdict.met


def test_the_kernel_path_is_compared_with_no_proxy_at_all() -> None:
    # The machine becomes slower and slower, for both.
    entries = {
        KERNEL: Entry(fastest=[sample(900.0 / slow) for slow in range(1, 7)], paced=[sample(p99=120.0)]),
        DIRECT: Entry(fastest=[sample(1000.0 / slow, None) for slow in range(1, 7)], paced=[sample(p99=100.0)]),
    }

    verdicts = judge(document(measured("udp-64", "request", **entries)))

    assert [(each.text, round(each.value, 2), each.met) for each in verdicts] == [
        ("no proxy by the kernel path, throughput", 1.11, False),
        ("p99 latency of the kernel path against no proxy", 1.2, False),
        ("cores in use, kernel path", 0.5, False),
    ]
    assert verdicts[0].bounds == pytest.approx((10 / 9, 10 / 9))
    assert verdicts[1].bounds is None


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge(document(measured("tcp-new", "connection", ours=Entry(problem="it does not listen")))) == []


def test_every_aim_names_workloads_that_exist() -> None:
    known = {each.name for each in workloads.ALL}

    assert {name for aim in CPU_AIMS for name in aim.workloads} <= known
    assert {"quic-new", "udp-new", "tcp-idle", "udp-idle", "tcp-sessions-10", "tcp-sessions-9000"} <= known
