"""What ``rpxy-l4 ctl status`` shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class WorkerReport(NamedTuple):
    """One worker."""

    number: int
    """As people count, from 1."""
    pid: int | None
    state: str
    slots: Sequence[int]
    tcp_sessions: int
    udp_flows: int


class Report(NamedTuple):
    """The supervisor's view of itself."""

    version: str
    pid: int
    config: str
    generation: int
    sha256: str
    listening: Sequence[str]
    wanted: int
    slots: int
    workers: Sequence[WorkerReport]
    reloads: Mapping[str, int]
    last_reload_ok: bool
    kernel_path: str
    """Whether it is used, and where or why not."""
    kernel_connections: int
    """TCP connections that are in it."""
    kernel_path_left: Mapping[str, int]
    """Packets of its flows, and of TCP connections, that it left to the sockets or dropped, by why."""
    under_way: Sequence[str]
    """What has begun and is not done, in words."""


def as_data(report: Report) -> dict[str, Any]:
    """Return it for programs: the fields by their names."""
    return {**report._asdict(), "workers": [worker._asdict() for worker in report.workers]}


def as_text(report: Report) -> str:
    """Return it for people."""
    reloads = ", ".join(f"{count} {result}" for result, count in report.reloads.items())
    failed = "" if report.last_reload_ok else "; the last one failed, see the log"
    rows = [
        ("version", f"{report.version}, process {report.pid}"),
        ("configuration", f"{report.config}, generation {report.generation}, sha256 {report.sha256[:12]}"),
        ("listening", ", ".join(report.listening) or "nowhere"),
        ("reloads", f"{reloads}{failed}"),
        ("kernel path", f"{report.kernel_path}{_open(report)}{_left(report.kernel_path_left)}"),
        ("under way", ", ".join(report.under_way) or "nothing"),
        ("workers", f"{report.wanted} wanted, {report.slots} slots"),
    ]
    lines = [f"{name + ':':<15}{value}" for name, value in rows]
    head = ("worker", "process", "state", "tcp", "udp", "slots")
    table = [head, *(_row(worker) for worker in report.workers)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines)


def _left(packets: Mapping[str, int]) -> str:
    left = ", ".join(f"{count} {why}" for why, count in packets.items() if count)
    return f"; packets left to the sockets, or dropped: {left}" if left else ""


def _open(report: Report) -> str:
    return f"; {report.kernel_connections} connections now" if report.kernel_connections else ""


def _row(worker: WorkerReport) -> tuple[str, ...]:
    pid = "-" if worker.pid is None else str(worker.pid)
    slots = " ".join(map(str, worker.slots)) or "-"
    return str(worker.number), pid, worker.state, str(worker.tcp_sessions), str(worker.udp_flows), slots
