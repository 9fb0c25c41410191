"""What this process has open, and how much another one may open."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator


def open_descriptors() -> set[int]:
    """The numbers of all open descriptors, without the one that lists them."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208  names are what is wanted
    return {number for number in found if is_open(number)}


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Meanwhile the process gets none beside those that it has."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208  names are what is wanted
    least = next(number for number in itertools.count() if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
