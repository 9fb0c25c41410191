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
    """Readings by slot, with CPU seconds that go on counting when a slot gets a new process.

    What a process used after it was read for the last time is not counted.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Read below ``proc``."""
        self._proc = proc
        self._lock = threading.Lock()  # two scrapes may overlap
        self._last: dict[int, tuple[int, Reading]] = {}
        self._before: dict[int, tuple[float, float]] = {}
        """CPU seconds of each slot's earlier processes."""

    def read(self, pids: Mapping[int, int | None]) -> dict[int, Reading]:
        """Read the process of each slot; a slot without one has only the CPU seconds of its past."""
        with self._lock:
            return {slot: self._read_slot(slot, pid) for slot, pid in pids.items()}

    def _read_slot(self, slot: int, pid: int | None) -> Reading:
        last_pid, last = self._last.get(slot, (None, Reading()))
        now = Reading() if pid is None else read_process(pid, self._proc)
        user, system = self._before.get(slot, (0.0, 0.0))
        if last_pid is not None and (pid != last_pid or now.cpu_user is None):
            user += last.cpu_user or 0.0
            system += last.cpu_system or 0.0
            self._before[slot] = user, system
            del self._last[slot]
        if pid is not None and now.cpu_user is not None:
            self._last[slot] = pid, now
        return replace(now, cpu_user=user + (now.cpu_user or 0.0), cpu_system=system + (now.cpu_system or 0.0))
