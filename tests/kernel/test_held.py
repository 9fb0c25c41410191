"""What a worker holds of kernel paths, with files in place of links: only what is closed matters here."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from rpxy_l4.control import SETTINGS, KernelPiece
from rpxy_l4.kernel.held import HeldPaths
from rpxy_l4.kernel.layout import NO_UDP, SETTINGS_WORDS, Choosing, Setting

PATH = b"one"
LINK, OTHER, WORDS = (KernelPiece(PATH, number) for number in (4, 5, SETTINGS))


def opened() -> int:
    return os.memfd_create("link")


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def settings() -> tuple[int, memoryview]:
    """A descriptor, and the words behind it."""
    descriptor = opened()
    os.truncate(descriptor, mmap.PAGESIZE)
    return descriptor, memoryview(mmap.mmap(descriptor, 8 * SETTINGS_WORDS)).cast("Q")


def test_what_is_not_wanted_any_more_is_closed_and_the_rest_is_not() -> None:
    held, link, other = HeldPaths(), opened(), opened()
    held.change({LINK, OTHER}, {LINK: link, OTHER: other})
    held.change({OTHER}, {})
    assert (is_open(link), is_open(other)) == (False, True)
    held.change(set(), {})
    assert not is_open(other)


def test_what_comes_a_second_time_is_closed() -> None:
    held, link, again = HeldPaths(), opened(), opened()
    held.change({LINK}, {LINK: link})
    held.change({LINK}, {LINK: again})
    assert (is_open(link), is_open(again)) == (True, False)
    held.change(set(), {})


def test_nothing_begins_any_more_and_what_there_is_is_counted() -> None:
    held = HeldPaths()
    descriptor, words = settings()
    held.change({WORDS}, {WORDS: descriptor})
    assert not is_open(descriptor), "the mapping is enough"
    words[Setting.CHOOSING], words[Setting.FLAGS], words[Setting.OPENED], words[Setting.CLOSED] = Choosing.ANY, 4, 7, 4
    assert held.live == 3
    held.begin_no_more()
    assert words[Setting.CHOOSING] == Choosing.NONE
    assert words[Setting.FLAGS] == 4 | NO_UDP
    held.change(set(), {})
    assert held.live == 0


def test_without_memory_for_settings_the_rest_is_held() -> None:
    held, link, (pipe, end) = HeldPaths(), opened(), os.pipe()
    held.change({LINK, WORDS}, {WORDS: pipe, LINK: link})  # a pipe cannot be mapped, as if there were no memory
    assert (is_open(link), is_open(pipe)) == (True, False)
    assert held.live == 0
    held.change(set(), {})
    os.close(end)
