from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpxy_l4.metrics.layout import Directory, ListenerSeries, TargetSeries
from rpxy_l4.net.memory import SharedMemory
from rpxy_l4.supervisor.keepsake import MEANING, MEMORY, Keepsake, Shelf, find
from rpxy_l4.verdict import Transport

DIRECTORY = Directory(
    {ListenerSeries(":443", Transport.UDP): 0},
    {TargetSeries(":443", Transport.UDP, "vpn", "192.0.2.1:51820"): 0},
)
SLOTS = 4
BYTES = 8192


class Left:
    """What a supervisor that is gone had stored: copies of its descriptors."""

    def __init__(self, stack: ExitStack) -> None:
        self.memory = SharedMemory(BYTES)
        self.memory.view[:4] = b"flow"
        self.shelf = Shelf()
        self.shelf.write(Keepsake(self.memory, SLOTS, b"secret", DIRECTORY).meaning())
        stack.callback(os.close, self.memory.descriptor)
        stack.callback(os.close, self.shelf.descriptor)
        stack.callback(self.memory.view.release)

    def passed(self) -> list[tuple[str, int]]:
        return [("other", 0), (MEMORY, os.dup(self.memory.descriptor)), (MEANING, os.dup(self.shelf.descriptor))]


@pytest.fixture
def left() -> Iterator[Left]:
    with ExitStack() as stack:
        yield Left(stack)


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


def test_what_was_left_is_found(left: Left) -> None:
    before = open_descriptors()
    kept = find(left.passed(), SLOTS)

    assert kept is not None
    assert bytes(kept.memory.view[:4]) == b"flow"
    assert (kept.slots, kept.secret, kept.directory) == (SLOTS, b"secret", DIRECTORY)
    kept.memory.view.release()
    os.close(kept.memory.descriptor)
    assert open_descriptors() == before


def shorten(left: Left) -> None:
    os.ftruncate(left.memory.descriptor, BYTES // 2)


def tear(left: Left) -> None:
    left.shelf.write(Keepsake(left.memory, SLOTS, b"secret", DIRECTORY).meaning()[:-20])


def write_of(text: bytes) -> Callable[[Left], None]:
    return lambda left: left.shelf.write(text)


@pytest.mark.parametrize(
    "damage", [shorten, tear, *map(write_of, (b"", b"\xff", b"[]", b"{}", b'{"bytes": 8192, "slots": "x"}'))]
)
def test_what_is_damaged_is_forgotten_and_closed(left: Left, damage: Callable[[Left], None]) -> None:
    damage(left)
    before = open_descriptors()

    assert find(left.passed(), SLOTS) is None
    assert open_descriptors() == before


@pytest.mark.parametrize("slots", [None, SLOTS + 1])
def test_what_is_for_other_slots_is_forgotten(left: Left, slots: int | None) -> None:
    before = open_descriptors()

    assert find(left.passed(), slots) is None
    assert open_descriptors() == before


def test_half_of_it_is_of_no_use(left: Left) -> None:
    *half, (_, meaning) = left.passed()
    os.close(meaning)
    before = open_descriptors()

    assert find(half, SLOTS) is None
    assert len(before - open_descriptors()) == 1


def test_what_is_written_again_replaces_all(left: Left) -> None:
    left.shelf.write(b"x" * 100_000)
    left.shelf.write(Keepsake(left.memory, SLOTS, b"secret", DIRECTORY).meaning())
    kept = find(left.passed(), SLOTS)

    assert kept is not None
    kept.memory.view.release()
    os.close(kept.memory.descriptor)
