"""Whether processes hold more after something than before it, by what they are for: those that died were replaced."""

from __future__ import annotations

from typing import Final

from tests.support.proxy import Proxy
from tests.support.resources import Resources

MEMORY: Final = 12 << 20
"""Bytes that a process may have grown by: heaps have holes, and series of new routes stay in the metrics."""
PIPE_ENDS: Final = 2 * 64
"""Of the empty pipes that a worker keeps for its next bulk stream."""


def snapshot(proxy: Proxy) -> dict[str, Resources]:
    """All processes of a proxy that has nothing to do."""
    # Those who follow others have other numbers.
    workers = [pid for _, pid in sorted(proxy.worker_pids().items())]
    pids = {"supervisor": proxy.pid, **{f"worker {place}": pid for place, pid in enumerate(workers)}}
    pids["admin"] = next(pid for pid, title in proxy.children().items() if title.startswith("rpxy-l4: admin"))
    return {role: Resources.of(pid) for role, pid in pids.items()}


def growth(before: dict[str, Resources], after: dict[str, Resources]) -> list[str]:
    """What has grown; empty when nothing has."""
    found = [f"{role} is missing" for role in before.keys() - after.keys()]
    for role, now in after.items():
        then = before[role]
        if (
            now.descriptors > then.descriptors
            or now.pipe_ends > then.pipe_ends + PIPE_ENDS
            or now.threads > then.threads
            or is_swollen(then, now)
        ):
            found.append(f"{role}: {then} -> {now}")
    return found


def is_swollen(then: Resources, now: Resources) -> bool:
    """Whether a process has clearly more memory than it had."""
    return now.memory > then.memory + MEMORY
