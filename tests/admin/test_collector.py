from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rpxy_l4.admin.collector import ProxyCollector
from rpxy_l4.admin.proc import Reading
from rpxy_l4.admin.resolver import LookupResult
from rpxy_l4.control import Status
from rpxy_l4.endings import ConnectResult, Detected, Drop, Reason, Rejection
from rpxy_l4.metrics.layout import (
    CONNECT_INDEX,
    DETECTED_INDEX,
    DROP_INDEX,
    L_ACCEPT_ERRORS,
    L_DETECTED,
    L_DROPPED,
    L_PROXY_HEADERS,
    L_REJECTED,
    L_SESSION_HISTOGRAM,
    L_SOCKET_ERRORS,
    REASON_INDEX,
    REJECTION_INDEX,
    SESSION_BUCKETS,
    T_BYTES_IN,
    T_BYTES_OUT,
    T_CLOSED,
    T_CONNECT_HISTOGRAM,
    T_CONNECTS,
    T_DATAGRAMS_IN,
    T_OPENED,
    Cell,
    Directory,
    ListenerSeries,
    TargetSeries,
    listener_offset,
    target_offset,
)
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.verdict import Transport
from tests.admin import material
from tests.support.peers import run

SLOTS = 2


def some_processes(pids: Mapping[int, int | None]) -> Mapping[int, Reading]:
    return {slot: Reading(1.5, 0.25, 4096, 11, 1024) for slot in pids}


def registry(
    slab: Slab,
    status: Status | None,
    *,
    slots: int = SLOTS,
    processes: Callable[[Mapping[int, int | None]], Mapping[int, Reading]] = some_processes,
) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(
        ProxyCollector(
            rows=[slab.row(slot) for slot in range(slots)],
            status=lambda: status,
            processes=processes,
            lookups=lambda: {("a.example", LookupResult.OK): 4},
            expiries=lambda: {"a.example": 1_800_000_000.0},
            build={"version": "0.1.0", "python": "3.11.7", "uvloop": "0.23.0", "kernel": "6.1"},
        )
    )
    return made


def value(made: CollectorRegistry, name: str, /, **labels: str) -> float | None:
    return made.get_sample_value(f"rpxy_l4_{name}", labels)


def labels_of(made: CollectorRegistry, name: str, label: str, **where: str) -> set[str]:
    return {
        sample.labels[label]
        for family in made.collect()
        for sample in family.samples
        if sample.name == f"rpxy_l4_{name}" and where.items() <= sample.labels.items()
    }


def in_child(work: Callable[[], object]) -> None:
    """Run in a forked process, as a worker would."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def carry_sessions(row: memoryview) -> None:
    """What a worker counts for three TLS sessions, of which two have ended."""
    base = target_offset(0)
    row[base + T_OPENED] += 3
    row[base + T_BYTES_IN] += 100
    row[base + T_BYTES_OUT] += 5000
    row[base + T_CLOSED + REASON_INDEX[Reason.CLIENT_EOF]] += 1
    row[base + T_CLOSED + REASON_INDEX[Reason.TARGET_RESET]] += 1
    row[base + T_CONNECTS + CONNECT_INDEX[ConnectResult.OK]] += 3
    row[base + T_CONNECT_HISTOGRAM] += 3
    row[base + T_CONNECT_HISTOGRAM + 12] += 900
    row[target_offset(2) + T_DATAGRAMS_IN] += 8
    listener = listener_offset(0)
    row[listener + L_DETECTED + DETECTED_INDEX[Detected.TLS]] += 3
    row[listener + L_REJECTED + REJECTION_INDEX[Rejection.NO_ROUTE]] += 1
    row[listener + L_SESSION_HISTOGRAM + 2] += 2
    row[listener + L_SESSION_HISTOGRAM + len(SESSION_BUCKETS) + 1] += 1_500_000
    row[listener + L_ACCEPT_ERRORS] += 1
    row[listener + L_PROXY_HEADERS + 1] += 6
    row[listener + L_SOCKET_ERRORS + 4] += 7
    row[listener_offset(1) + L_DROPPED + DROP_INDEX[Drop.SNDBUF]] += 9
    row[Cell.TCP_OPENED] += 4
    row[Cell.TCP_CLOSED] += 2
    row[Cell.LOOP_LAG] = 250_000
    row[Cell.TCP_HANDED] = 3
    row[Cell.UDP_IN_KERNEL] = 2
    row[Cell.KERNEL_DATAGRAMS] = 9
    row[Cell.ACCESS_LINES_DROPPED] += 1


@pytest.fixture
def busy() -> CollectorRegistry:
    slab = Slab(SLOTS + 1)
    for slot in range(SLOTS):
        row = slab.row(slot)
        in_child(lambda row=row: carry_sessions(row))  # type: ignore[misc]  # an argument only to bind the value
    carry_sessions(slab.row(SLOTS))  # the spare row, which no worker has
    return registry(slab, material.status(states=("ready", "starting")))


WEB = {"listener": ":8448", "protocol": "tcp", "route": "web", "target": "10.0.0.1:443"}
UDP = {"listener": ":8448", "protocol": "udp", "route": "default", "target": "[::1]:53"}


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("sessions_total", WEB, 6),
        ("sessions", WEB, 2),
        ("bytes_total", {**WEB, "direction": "in"}, 200),
        ("bytes_total", {**WEB, "direction": "out"}, 10_000),
        ("sessions_closed_total", {**WEB, "reason": "client_eof"}, 2),
        ("sessions_closed_total", {**WEB, "reason": "target_reset"}, 2),
        ("datagrams_total", {**UDP, "direction": "in"}, 16),
        ("datagrams_dropped_total", {"listener": ":8448", "reason": "sndbuf"}, 18),
        ("detections_total", {"listener": ":8448", "protocol": "tcp", "result": "tls"}, 6),
        ("sessions_rejected_total", {"listener": ":8448", "protocol": "tcp", "reason": "no_route"}, 2),
        ("session_duration_seconds_count", {"listener": ":8448", "protocol": "tcp"}, 4),
        ("session_duration_seconds_sum", {"listener": ":8448", "protocol": "tcp"}, 3.0),
        ("session_duration_seconds_bucket", {"listener": ":8448", "protocol": "tcp", "le": "0.1"}, 0),
        ("session_duration_seconds_bucket", {"listener": ":8448", "protocol": "tcp", "le": "0.5"}, 4),
        ("session_duration_seconds_bucket", {"listener": ":8448", "protocol": "tcp", "le": "+Inf"}, 4),
        ("accept_errors_total", {"listener": ":8448", "errno": "EMFILE"}, 2),
        ("socket_errors_total", {"listener": ":8448", "protocol": "tcp", "errno": "EADDRNOTAVAIL"}, 14),
        ("proxy_protocol_headers_total", {"listener": ":8448", "result": "refused"}, 12),
        ("target_connects_total", {"route": "web", "target": "10.0.0.1:443", "result": "ok"}, 6),
        ("target_connect_duration_seconds_count", {"route": "web", "target": "10.0.0.1:443"}, 6),
        ("target_connect_duration_seconds_sum", {"route": "web", "target": "10.0.0.1:443"}, 0.0018),
        ("kernel_path_info", {"detail": "in use: tcx on lo, 16384 flows at most"}, 1),
        ("log_lines_dropped_total", {"stream": "access"}, 2),
        ("log_lines_dropped_total", {"stream": "error"}, 0),
        ("worker_sessions", {"worker": "2", "protocol": "tcp"}, 2),
        ("connections_handed_total", {"worker": "1"}, 3),
        ("worker_loop_lag_seconds", {"worker": "1"}, 0.25),
        ("worker_kernel_flows", {"worker": "1"}, 2),
        ("kernel_datagrams_total", {"worker": "1"}, 9),
    ],
)
def test_what_the_workers_counted_is_shown_as_one(
    busy: CollectorRegistry, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(busy, name, **labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("build_info", {"version": "0.1.0", "python": "3.11.7", "uvloop": "0.23.0", "kernel": "6.1"}, 1),
        ("config_info", {"sha256": "0123456789ab", "generation": "1"}, 1),
        ("config_last_reload_successful", {}, 1),
        ("config_last_reload_success_timestamp_seconds", {}, 1_800_000_000.5),
        ("config_reloads_total", {"result": "success"}, 3),
        ("config_reloads_total", {"result": "failure"}, 1),
        ("config_reloads_total", {"result": "unchanged"}, 0),
        ("workers", {"state": "ready"}, 1),
        ("workers", {"state": "starting"}, 1),
        ("workers", {"state": "draining"}, 0),
        ("workers", {"state": "dead"}, 0),
        ("worker_restarts_total", {"cause": "signal"}, 2),
        ("worker_restarts_total", {"cause": "heartbeat"}, 0),
        ("worker_cpu_seconds_total", {"worker": "1", "mode": "user"}, 1.5),
        ("worker_cpu_seconds_total", {"worker": "2", "mode": "system"}, 0.25),
        ("worker_resident_memory_bytes", {"worker": "1"}, 4096),
        ("worker_open_fds", {"worker": "1"}, 11),
        ("worker_max_fds", {"worker": "1"}, 1024),
        ("sessions_limit", {"listener": ":8448", "protocol": "tcp"}, 1000),
        ("sessions_limit", {"listener": ":8448", "protocol": "udp"}, 200),
        ("dns_lookups_total", {"name": "a.example", "result": "ok"}, 4),
        ("dns_expiry_timestamp_seconds", {"name": "a.example"}, 1_800_000_000.0),
    ],
)
def test_what_the_supervisor_said_is_shown(
    busy: CollectorRegistry, name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(busy, name, **labels) == expected


def test_promtool_finds_nothing_to_complain_about(busy: CollectorRegistry) -> None:
    checked = run("promtool", "check", "metrics", input=generate_latest(busy).decode())

    assert (checked.returncode, checked.stdout) == (0, "")


def test_every_name_is_used_once_and_has_the_prefix(busy: CollectorRegistry) -> None:
    names = [family.name + ("_total" if family.type == "counter" else "") for family in busy.collect()]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"rpxy_l4_[a-z0-9_]+", name) for name in names)


def test_the_reasons_of_a_listener_are_there_before_the_first_event() -> None:
    made = registry(Slab(SLOTS), material.status())

    tcp, udp = {"protocol": "tcp"}, {"protocol": "udp"}
    assert labels_of(made, "sessions_rejected_total", "reason", **tcp) == set(Rejection)
    assert labels_of(made, "datagrams_dropped_total", "reason") == set(Drop)
    assert labels_of(made, "detections_total", "result", **tcp) == {
        *("http", "tls", "ssh", "socks5"),
        *("unknown", "timeout", "skipped"),
    }
    assert labels_of(made, "detections_total", "result", **udp) == {
        *("quic", "wireguard"),
        *("unknown", "timeout", "skipped", "remembered"),
    }
    assert labels_of(made, "target_connects_total", "result") == set(ConnectResult)


def test_only_ordinary_ends_of_a_target_are_there_before_the_first_one() -> None:
    made = registry(Slab(SLOTS), material.status())

    assert labels_of(made, "sessions_closed_total", "reason", **WEB) == {"client_eof", "target_eof"}
    assert labels_of(made, "sessions_closed_total", "reason", **UDP) == {"idle", "unconfirmed"}


def test_datagrams_are_counted_for_udp_only_and_connects_for_tcp_only() -> None:
    made = registry(Slab(SLOTS), material.status())

    assert labels_of(made, "datagrams_total", "protocol") == {"udp"}
    assert "[::1]:53" not in labels_of(made, "target_connects_total", "target")


def test_connects_to_a_target_are_summed_over_listeners() -> None:
    slab = Slab(1)
    directory = Directory()
    for listener in (":1", ":2"):
        directory.listener(ListenerSeries(listener, Transport.TCP))
        series = directory.target(TargetSeries(listener, Transport.TCP, "default", "a:1"))
        slab.row(0)[target_offset(series) + T_CONNECTS + CONNECT_INDEX[ConnectResult.REFUSED]] = 2
    status = Status(snapshot=material.snapshot(), directory=directory, workers=())
    made = registry(slab, status, slots=1)

    assert value(made, "target_connects_total", route="default", target="a:1", result="refused") == 4


def test_before_the_supervisors_first_word_there_is_only_what_needs_none() -> None:
    names = {family.name for family in registry(Slab(SLOTS), None).collect()}

    assert names == {"rpxy_l4_build_info", "rpxy_l4_dns_lookups", "rpxy_l4_dns_expiry_timestamp_seconds"}


def test_a_worker_that_cannot_be_read_leaves_gaps_and_no_zeros() -> None:
    def nothing(pids: Mapping[int, int | None]) -> Mapping[int, Reading]:
        return dict.fromkeys(pids, Reading())

    made = registry(Slab(SLOTS), material.status(), processes=nothing)

    assert value(made, "worker_open_fds", worker="1") is None
    assert value(made, "worker_cpu_seconds_total", worker="1", mode="user") is None
    assert value(made, "worker_sessions", worker="1", protocol="tcp") == 0


def test_the_gauge_of_sessions_is_never_negative_while_workers_count() -> None:
    slab = Slab(SLOTS)
    made = registry(slab, material.status())
    pids = []
    for slot in range(SLOTS):
        pid = os.fork()
        if pid == 0:
            row, base = slab.row(slot), target_offset(0)
            closed = base + T_CLOSED
            until = time.monotonic() + 0.15
            while time.monotonic() < until:
                row[base] += 1
                row[closed] += 1
            os._exit(0)
        pids.append(pid)
    seen: list[float] = []
    while not seen or len(seen) < 20:
        seen.append(value(made, "sessions", **WEB) or 0.0)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

    assert min(seen) >= 0
    assert value(made, "sessions", **WEB) == 0
    assert (value(made, "sessions_total", **WEB) or 0) > 0


def test_a_scrape_of_many_slots_and_series_takes_no_noticeable_time() -> None:
    slots, targets = 16, 60  # 16 x 60 x 35 cells, about 2000 samples
    slab = Slab(slots)
    directory = Directory()
    directory.listener(ListenerSeries(":1", Transport.TCP))
    for i in range(targets):
        directory.target(TargetSeries(":1", Transport.TCP, "default", f"10.0.0.{i}:80"))
    made = registry(slab, Status(snapshot=material.snapshot(), directory=directory, workers=()), slots=slots)
    took: list[float] = []
    for _ in range(3):
        began = time.process_time()
        text: Any = generate_latest(made)
        took.append(time.process_time() - began)

    assert text.count(b"\n") > 1500
    assert min(took) < 0.2
