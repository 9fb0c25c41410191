"""The report: tables in Markdown, the plot, and both in the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.aims import OURS, Verdict, cpu, judge
from bench.contestants import DIRECT
from bench.document import Document, Figure, Measured, to_json
from bench.plot import Row, draw
from bench.stats import Summary, ratio

BEGIN: Final = "<!-- bench -->"
END: Final = "<!-- /bench -->"
_NOTHING: Final = "-"
_MIB: Final = 1 << 20
_LOSS: Final = 0.001
"""Of the requests: more than this makes a figure doubtful."""

_ABOUT_THROUGHPUT: Final = """\
Units a second; in parentheses how much of its core the proxy used. Below 100 % it was the load that could do no
more."""
_ABOUT_LATENCY: Final = """\
Microseconds at p50 / p99 / p99.9, at a fixed rate of half of what the slowest contestant can do. For bulk: of blocks of
64 KiB, or of bursts."""
_ABOUT_MEMORY: Final = """\
MiB at the end of the fastest runs, shared pages counted once; in parentheses the sum of the peaks of all processes. For
idle sessions: bytes for each."""

Cell = Callable[[Measured, str], str]


class MarkerError(Exception):
    """The README has no place for the report."""


def write(document: Document, folder: Path) -> Path:
    """Write the result, its report and its plot next to each other; return the result's path."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / f"{document.date[:10]}-{document.commit}"
    base.with_suffix(".json").write_text(to_json(document))
    base.with_suffix(".svg").write_text(plot(document))
    base.with_suffix(".md").write_text(full(document, base.with_suffix(".svg").name))
    return base.with_suffix(".json")


def insert(page: str, block: str) -> str:
    """Return a page with the block between its two markers. Raises MarkerError where they are not, once each."""
    head, found, rest = page.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not found or not ended or BEGIN in rest or END in tail:
        raise MarkerError(f"the page needs {BEGIN} and {END}, once each and in this order")
    return f"{head}{BEGIN}\n{block.strip()}\n{END}{tail}"


def plot(document: Document) -> str:
    """Return the plot of CPU for the same work."""
    names = [(name, document.title(name)) for name in document.names if name != DIRECT]
    rows = []
    for measured in document.workloads:
        ours = measured.median(OURS, cpu)
        ratios = {name: value for name, _ in names if (value := ratio(measured.median(name, cpu), ours)) is not None}
        if len(ratios) > 1:
            rows.append(Row(measured.text, ratios))
    return draw("CPU for the same work, by that of rpxy-l4 (less is better)", names, rows)


def short(document: Document, picture: str) -> str:
    """Return what the README shows: the machine, CPU for each unit of work, and the plot."""
    return "\n\n".join(
        [
            f"CPU of all processes of a proxy for one unit of work, each with one worker or thread; {_how(document)}",
            _table(document, _speeds(document), _cpu_cell, direct=False),
            f"![CPU for the same work, by that of rpxy-l4]({picture})",
        ]
    )


def full(document: Document, picture: str) -> str:
    """Return the whole report."""
    speeds = _speeds(document)
    paced = [measured for measured in speeds if any(entry.paced for entry in measured.entries.values())]
    parts = [
        f"# Benchmark of {document.date[:10]}, commit {document.commit}",
        _machine(document),
        "## CPU for each unit of work",
        "The median of the runs as fast as each can go, and half of the distance between the extremes.",
        _table(document, speeds, _cpu_cell, direct=False),
        f"![CPU for the same work, by that of rpxy-l4]({picture})",
        "## Throughput",
        _ABOUT_THROUGHPUT,
        _table(document, speeds, _throughput_cell),
        "## Latency",
        _ABOUT_LATENCY,
        _table(document, paced, _latency_cell),
        "## CPU at that rate",
        _table(document, paced, _paced_cpu_cell, direct=False),
        "## Memory",
        _ABOUT_MEMORY,
        _table(document, document.workloads, _memory_cell, direct=False),
        "## Aims",
        _verdicts(judge(document)),
        "## What went wrong",
        _problems(document),
    ]
    return "\n\n".join(parts) + "\n"


def _how(document: Document) -> str:
    machine = document.machine
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, median of"
        f" {document.settings['repeat']:.0f} runs of {document.settings['seconds']:g} s, {document.date[:10]},"
        f" commit {document.commit}."
    )


def _machine(document: Document) -> str:
    lines = [f"- {key}: {value}" for key, value in document.machine.items()]
    lines += [f"- {document.title(name)}: {value}" for name, value in document.versions.items()]
    lines += [f"- not on this machine: {document.title(name)}" for name in document.missing]
    lines += [f"- {note}" for note in document.notes]
    return "\n".join([*lines, f"- command: `{document.command}`"])


def _speeds(document: Document) -> list[Measured]:
    return [measured for measured in document.workloads if measured.unit != "session"]


def _table(document: Document, rows: Sequence[Measured], cell: Cell, *, direct: bool = True) -> str:
    names = [name for name in document.names if direct or name != DIRECT]
    lines = [
        "| | " + " | ".join(document.title(name) for name in names) + " |",
        "|---" + "|---:" * len(names) + "|",
    ]
    lines += [f"| {row.text} | " + " | ".join(cell(row, name) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cpu_cell(measured: Measured, name: str) -> str:
    return _cost(measured, measured.summary(name, cpu))


def _paced_cpu_cell(measured: Measured, name: str) -> str:
    return _cost(measured, measured.summary(name, cpu, paced=True))


def _cost(measured: Measured, summary: Summary | None) -> str:
    if summary is None:
        return _NOTHING
    value = f"{summary.median:.3f} s/GB" if measured.unit == "GB" else f"{summary.median * 1e6:.1f} us"
    return f"{value} ±{summary.spread:.0%}"


def _throughput_cell(measured: Measured, name: str) -> str:
    summary = measured.summary(name, lambda sample: sample.throughput)
    if summary is None:
        return _NOTHING
    value = f"{summary.median:.2f}" if measured.unit == "GB" else f"{summary.median:,.0f}"
    busy = measured.median(name, lambda sample: sample.busy)
    return f"{value} ±{summary.spread:.0%}" + ("" if busy is None else f" ({busy:.0%})")


def _latency_cell(measured: Measured, name: str) -> str:
    figures: tuple[Figure, ...] = (lambda s: s.p50, lambda s: s.p99, lambda s: s.p999)
    values = [measured.median(name, figure, paced=True) for figure in figures]
    return " / ".join(_NOTHING if value is None else f"{value:.0f}" for value in values) if any(values) else _NOTHING


def _memory_cell(measured: Measured, name: str) -> str:
    if measured.unit == "session":
        summary = measured.bytes_each(name)
        return _NOTHING if summary is None else f"{summary.median:,.0f} B"
    entry = measured.entries.get(name)
    if entry is None or entry.memory is None or entry.peak is None:
        return _NOTHING
    return f"{entry.memory / _MIB:.0f} ({entry.peak / _MIB:.0f})"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    lines = ["| workload | aim | at most | measured | |", "|---|---|---:|---:|---|"]
    lines += [
        f"| {each.workload} | {each.text} | {each.limit:.3g} {each.unit}".rstrip()
        + f" | {each.value:.2f} {each.unit}".rstrip()
        + ("" if each.bounds is None else " ({:.2f} to {:.2f})".format(*each.bounds))
        + f" | {'met' if each.met else 'missed'} |"
        for each in verdicts
    ]
    return "\n".join(lines)


def _problems(document: Document) -> str:
    lines = []
    for measured in document.workloads:
        for name, entry in measured.entries.items():
            where = f"- {measured.name}, {document.title(name)}: "
            if entry.problem:
                lines.append(where + entry.problem.splitlines()[0])
            lines += [
                where + f"{sample.lost} requests lost in a run"
                for sample in entry.fastest + entry.paced
                if sample.lost > _LOSS * sample.requests
            ]
    return "\n".join(lines) or "Nothing."
