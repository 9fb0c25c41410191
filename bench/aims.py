"""What the proxy is meant to reach, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.contestants import DIRECT, KERNEL
from bench.document import Document, Figure, Measured
from bench.stats import ratio

OURS: Final = "ours"
_PEERS: Final = ("haproxy", "nginx", "sslh", "envoy")
_MICROSECOND: Final = 1e-6
_KIB: Final = 1024


@dataclass(frozen=True)
class Aim:
    """One comparison: ours by the best of others, and what the ratio may be at most."""

    text: str
    workloads: tuple[str, ...]
    against: tuple[str, ...]
    limit: float


CPU_AIMS: Final = (
    Aim("CPU against the better of HAProxy and nginx", ("tcp-new", "tls-new"), ("haproxy", "nginx"), 1.05),
    Aim("CPU against the best of HAProxy, nginx, sslh, Envoy", ("tcp-kept",), _PEERS, 1.05),
    Aim(
        "CPU against the better of HAProxy and nginx",
        ("tcp-down-1", "tcp-up-1", "tcp-down-64", "tcp-up-64"),
        ("haproxy", "nginx"),
        0.45,
    ),
    Aim("CPU against Envoy", ("tcp-down-1", "tcp-up-1", "tcp-down-64", "tcp-up-64"), ("envoy",), 0.95),
    Aim("CPU against the better of nginx and Envoy", ("udp-64", "udp-5000"), ("nginx", "envoy"), 0.85),
    Aim(
        "CPU against the better of nginx and Envoy",
        ("udp-segmented-1", "udp-segmented-64"),
        ("nginx", "envoy"),
        0.12,
    ),
    Aim("CPU against the better of nginx and Envoy", ("udp-plain",), ("nginx", "envoy"), 0.85),
)
_P99: Final = 1.10
_RUST: Final = 0.80
_GROWTH: Final = 1.10
_QUIC_MICROSECONDS: Final = 150.0
_DIRECTLY: Final = 1 / 0.95
_NEW_DIRECTLY: Final = 1 / 0.90
_BUSY: Final = 0.01
_IDLE_KIB: Final = {"tcp-idle": 3.0, "udp-idle": 2.0}


@dataclass(frozen=True)
class Verdict:
    """An aim beside what was measured."""

    workload: str
    text: str
    value: float
    limit: float
    unit: str = ""
    bounds: tuple[float, float] | None = None
    """Between which the value is; None where that is not known."""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value <= self.limit


def cpu(sample: object) -> float | None:
    """CPU for each unit."""
    return getattr(sample, "cpu", None)


def throughput(sample: object) -> float | None:
    """Units a second."""
    return getattr(sample, "throughput", None)


def p99(sample: object) -> float | None:
    """Latency that 99 of 100 requests keep."""
    return getattr(sample, "p99", None)


def judge(document: Document) -> list[Verdict]:
    """Return every aim for which there are figures."""
    return [
        *_ratios(document),
        *_quic(document),
        *_latencies(document),
        *_idle(document),
        *_growth(document),
        *_kernel_path(document),
    ]


def _compare(measured: Measured, against: tuple[str, ...], figure: Figure, *, paced: bool = False) -> float | None:
    return ratio(measured.median(OURS, figure, paced=paced), measured.best(against, figure, paced=paced))


def _ratios(document: Document) -> Iterator[Verdict]:
    for aim in CPU_AIMS:
        for measured in filter(None, map(document.workload, aim.workloads)):
            value = _compare(measured, aim.against, cpu)
            if value is not None:
                yield Verdict(measured.name, aim.text, value, aim.limit)
    for measured in document.workloads:
        value = _compare(measured, ("rust",), cpu)
        if value is not None:
            yield Verdict(measured.name, "CPU against rust-rpxy-l4", value, _RUST)


def _quic(document: Document) -> Iterator[Verdict]:
    quic, plain = document.workload("quic-new"), document.workload("udp-new")
    with_route = quic and quic.median(OURS, cpu)
    without = plain and plain.median(OURS, cpu)
    if with_route and without:
        beyond = (with_route - without) / _MICROSECOND
        yield Verdict("quic-new", "CPU beyond a plain UDP flow", beyond, _QUIC_MICROSECONDS, "us")


def _latencies(document: Document) -> Iterator[Verdict]:
    for measured in document.workloads:
        value = _compare(measured, _PEERS, p99, paced=True)
        if value is not None:
            yield Verdict(measured.name, "p99 latency against the best peer", value, _P99)


def _kernel_path(document: Document) -> Iterator[Verdict]:
    for measured in document.workloads:
        limit = _NEW_DIRECTLY if measured.name == "tcp-new" else _DIRECTLY
        slower = measured.compare(DIRECT, KERNEL, throughput)
        later = measured.compare(KERNEL, DIRECT, p99, paced=True)
        for text, found, most in (
            ("no proxy by the kernel path, throughput", slower, limit),
            ("p99 latency of the kernel path against no proxy", later, _P99),
        ):
            if found is not None:
                yield Verdict(measured.name, text, found.median, most, bounds=found.bounds)
        busy = measured.median(KERNEL, lambda sample: sample.busy)
        if busy is not None:
            yield Verdict(measured.name, "cores in use, kernel path", busy, _BUSY)


def _idle(document: Document) -> Iterator[Verdict]:
    for name, limit in _IDLE_KIB.items():
        measured = document.workload(name)
        memory = measured and measured.bytes_each(OURS)
        if memory:
            yield Verdict(name, "resident memory of a session", memory.median / _KIB, limit, "KiB")


def _growth(document: Document) -> Iterator[Verdict]:
    many, few = document.workload("tcp-sessions-9000"), document.workload("tcp-sessions-10")
    if many is None or few is None:
        return
    value = ratio(many.median(OURS, cpu), few.median(OURS, cpu))
    if value is not None:
        yield Verdict("tcp-sessions-9000", "CPU against 10 sessions", value, _GROWTH)
