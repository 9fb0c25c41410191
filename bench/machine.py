"""The machine, the versions and the commit that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
_GIB: Final = 1 << 30


def describe() -> dict[str, str]:
    """Return what a reader must know about the machine."""
    profiled = "built with" if is_profiled(sysconfig.get_config_vars()) else "built without"
    return {
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": f"{platform.python_version()}, {profiled} profile-guided optimisation",
    }


def processor(cpuinfo: str) -> str:
    """Return the processor's name from the text of ``/proc/cpuinfo``."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def is_profiled(build: Mapping[str, object]) -> bool:
    """Return whether an interpreter was built with profile-guided optimisation, by the variables of its ``sysconfig``.

    The cost of the proxy depends on it. Debian's and Ubuntu's are taken to be so on every architecture, though on a
    few, such as riscv64, they are not.
    """
    if "--enable-optimizations" in str(build.get("CONFIG_ARGS")):
        return True
    # Who ran "make profile-opt" by hand: the flag of GCC, or of clang.
    flags = str(build.get("PY_CFLAGS_NODIST"))
    if "-fprofile-use" in flags or "-fprofile-instr-use" in flags:
        return True
    # Debian does that, too, and then erases the flag wherever it stands, so that extensions are not built with it. But
    # configure always sets both of these or neither, whether or not they are going to be used.
    return bool(build.get("PGO_PROF_GEN_FLAG")) and not build.get("PGO_PROF_USE_FLAG")


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
