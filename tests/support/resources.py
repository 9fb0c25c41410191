"""What a process uses of the system, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


def open_links(pid: int) -> list[str]:
    """What each open descriptor of a process leads to. One that is closed meanwhile may be missing."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  names are what is wanted
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115  no path, a label
    return links


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
        links = open_links(pid)
        pipes = sum(link.startswith("pipe:") for link in links)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(len(links) - pipes, pipes, threads, resident)
