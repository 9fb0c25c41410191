"""Waiting for what gives no event: a number in /proc, a metric."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

IS_EMULATED: Final = "RPXY_L4_EMULATED" in os.environ
"""Whether this machine is one of tests/machine: several times slower than others."""
# For a machine that is busy with other things; nothing here takes that long.
PATIENCE: Final = 120.0 if IS_EMULATED else 15.0
_INTERVAL: Final = 0.02


def eventually(condition: Callable[[], T], what: str = "", timeout: float = PATIENCE) -> T:
    """Return the first true value of ``condition``. Fails the test when there is none within ``timeout`` seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"not within {timeout} s: {what or condition}; last value {value!r}"
            raise AssertionError(msg)
        pause.wait(_INTERVAL)


def pass_time(seconds: float) -> None:
    """Let real time pass, where its passing is what the test is about."""
    threading.Event().wait(seconds)
