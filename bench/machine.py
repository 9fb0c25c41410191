"""The machine, the versions and the commit that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
_GIB: Final = 1 << 30


def describe() -> dict[str, str]:
    """Return what a reader must know about the machine."""
    return {
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
    }


def processor(cpuinfo: str) -> str:
    """Return the processor's name from the text of ``/proc/cpuinfo``."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str:
    """Return the short commit of this tree, with ``-dirty`` when files differ from it; ``unknown`` outside a clone."""
    name = _git("rev-parse", "--short", "HEAD")
    return "unknown" if name is None else name + ("-dirty" if _git("status", "--porcelain", "--untracked=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC).replace(microsecond=0)
