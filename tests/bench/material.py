"""A result with two contestants and made-up figures."""

from __future__ import annotations

from bench.document import Document, Measured
from bench.measure import Entry, Sample


def sample(throughput: float = 1000.0, cpu: float | None = 50e-6, *, p99: float = 300.0, lost: int = 0) -> Sample:
    return Sample(
        throughput=throughput, cpu=cpu, busy=0.5, requests=1000, lost=lost, p50=100.0, p99=p99, p999=900.0, rate=0.0
    )


def measured(name: str, unit: str, **entries: Entry) -> Measured:
    return Measured(name, f"text of {name}", unit, entries)


def document(*workloads: Measured, versions: tuple[str, ...] = ("ours", "nginx")) -> Document:
    return Document(
        date="2026-11-22T12:00:00+00:00",
        commit="abc1234",
        command="python -m bench",
        machine={"processor": "a fast one", "cores": "2", "kernel": "Linux 6"},
        settings={"seconds": 0.5, "repeat": 3},
        versions=dict.fromkeys(versions, "1.0"),
        titles={"ours": "rpxy-l4", "nginx": "nginx stream", "sslh": "sslh", "envoy": "Envoy"},
        missing=["envoy"],
        notes=["tcp-new needs more"],
        workloads=list(workloads),
    )
