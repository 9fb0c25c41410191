"""What this process has open."""

from __future__ import annotations

import os


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
