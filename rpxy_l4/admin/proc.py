"""What the kernel says about the worker processes, from ``/proc/<pid>`` (proc(5))."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")

# Fields of stat after the command's closing bracket, which are the file's third and later.
_STAT_UTIME: Final = 14 - 3
_STAT_STIME: Final = 15 - 3
_STAT_RSS: Final = 24 - 3


@dataclass(frozen=True, slots=True)
class Reading:
    """One worker. None is what could not be read: the process is gone, or ``/proc`` hides it."""

    cpu_user: float | None = None
    """Seconds."""
    cpu_system: float | None = None
    resident_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    """The soft limit; None also when there is no limit."""


def read_process(pid: int, proc: Path = Path("/proc")) -> Reading:
    """Read one process. Never raises."""
    folder = proc / str(pid)
    user, system, resident = _stat(folder)
    return Reading(user, system, resident, _open_fds(folder), _max_fds(folder))


def _stat(folder: Path) -> tuple[float, float, int] | tuple[None, None, None]:
    try:
        # The command is in brackets and may hold blanks and brackets itself.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        user = int(fields[_STAT_UTIME]) / _TICKS_PER_SECOND
        system = int(fields[_STAT_STIME]) / _TICKS_PER_SECOND
        return user, system, int(fields[_STAT_RSS]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None, None, None


def _open_fds(folder: Path) -> int | None:
    try:
        return len(os.listdir(folder / "fd"))  # noqa: PTH208  one string per descriptor is enough
    except OSError:
        return None


def _max_fds(folder: Path) -> int | None:
    try:
        for line in (folder / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                soft = line.split()[3]
                return int(soft) if soft.isdecimal() else None
    except (OSError, IndexError):
        pass
    return None


class WorkerProcesses:
    """Readings by slot, with CPU seconds that go on counting when a slot gets a new process."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Read below ``proc``."""
        self._proc = proc
        self._lock = threading.Lock()  # two scrapes may overlap
        self._shown: dict[int, tuple[float, float]] = {}

    def read(self, pids: Mapping[int, int | None], before: Mapping[int, tuple[float, float]]) -> dict[int, Reading]:
        """Read the process of each worker. ``before``: user and system CPU seconds of those that had its number.

        The CPU seconds of a number never go back: a process may be gone before it is known what it used in all.
        """
        with self._lock:
            return {slot: self._read_slot(slot, pid, before.get(slot, (0.0, 0.0))) for slot, pid in pids.items()}

    def _read_slot(self, slot: int, pid: int | None, before: tuple[float, float]) -> Reading:
        now = Reading() if pid is None else read_process(pid, self._proc)
        if pid is not None and now.cpu_user is None and slot not in self._shown:
            # It has just died, and what it used is not told yet: nothing is better than less than another admin
            # process may have shown.
            return now
        shown = self._shown.get(slot, (0.0, 0.0))
        user = max(shown[0], before[0] + (now.cpu_user or 0.0))
        system = max(shown[1], before[1] + (now.cpu_system or 0.0))
        self._shown[slot] = user, system
        return replace(now, cpu_user=user, cpu_system=system)
