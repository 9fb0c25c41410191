"""What a process uses of the system, from /proc (proc(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Resources:
    """One process at one moment."""

    descriptors: int
    """Without ends of pipes."""
    pipe_ends: int
    threads: int
    memory: int
    """Resident bytes."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read them; the process must be there."""
        links = []
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  names are what is wanted
            try:
                links.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115  no path, a label
            except FileNotFoundError:
                continue
        pipes = sum(link.startswith("pipe:") for link in links)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(len(links) - pipes, pipes, threads, resident)
