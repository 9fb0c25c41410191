"""What ``/proc`` says about a tree of processes (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


def parent_of(stat: str) -> int:
    """Return the parent's id from the text of ``/proc/PID/stat``; the name in it may contain anything."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_of_stat(stat: str) -> float:
    """Return the seconds of CPU in the text of a ``stat`` file, to the clock tick."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_of_schedstat(schedstat: str) -> float:
    """Return the seconds of CPU in the text of a ``schedstat`` file, which has nanoseconds."""
    return int(schedstat.partition(" ")[0]) / 1e9


def memory_of_rollup(rollup: str) -> int:
    """Return the proportional set size in the text of ``smaps_rollup``, in bytes; shared pages count in part."""
    return _kib_field(rollup, "Pss:")


def peak_of_status(status: str) -> int:
    """Return the peak resident set size in the text of ``status``, in bytes; 0 for a process without memory."""
    return _kib_field(status, "VmHWM:")


def _kib_field(text: str, name: str) -> int:
    return next((int(line.split()[1]) * _KIB for line in text.splitlines() if line.startswith(name)), 0)


def descendants(parents: Mapping[int, int], root: int) -> list[int]:
    """Return ``root`` and all that descend from it, from each process's parent."""
    tree = [root]
    for member in tree:
        tree += [pid for pid, parent in parents.items() if parent == member and pid not in tree]
    return tree


def tree_of(root: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            for stat in _texts([folder / "stat"]):
                parents[int(folder.name)] = parent_of(stat)
    return descendants(parents, root)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU that all threads of these processes have used; those that ended meanwhile are not in it.

    ``schedstat`` is exact; a kernel without it gives clock ticks.
    """
    total = 0.0
    for pid in pids:
        for thread in _folders(PROC / str(pid) / "task"):
            exact = [cpu_of_schedstat(text) for text in _texts([thread / "schedstat"])]
            total += sum(exact) if exact else sum(cpu_of_stat(text) for text in _texts([thread / "stat"]))
    return total


def memory(pids: Iterable[int]) -> int:
    """Return the bytes of memory that these processes hold, what they share counted once."""
    return sum(memory_of_rollup(text) for text in _texts(PROC / str(pid) / "smaps_rollup" for pid in pids))


def peak_memory(pids: Iterable[int]) -> int:
    """Return the sum of the largest resident sets so far, in bytes; what they share counts in each."""
    return sum(peak_of_status(text) for text in _texts(PROC / str(pid) / "status" for pid in pids))


def has_udp_port(table: str, port: int) -> bool:
    """Return whether a UDP socket is bound to the port, from the text of ``/proc/net/udp``."""
    return any(line.split()[1].endswith(f":{port:04X}") for line in table.splitlines()[1:])


def _folders(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:  # the process has ended
        return []


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_text()
        except OSError:  # the process has ended, or the kernel has no such file
            continue
