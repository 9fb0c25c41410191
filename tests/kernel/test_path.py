"""Loading and attaching, in the kernel that runs this."""

from __future__ import annotations

import os
import select
import struct
from contextlib import closing

import pytest

from rpxy_l4.kernel import bpf
from rpxy_l4.kernel.attachment import remove_stale_filters
from rpxy_l4.kernel.netlink import Netlink
from rpxy_l4.kernel.path import KernelPath
from tests.support.kernel_path import attached_to, needs_kernel_path, way
from tests.support.netns import Namespaces
from tests.support.peers import run

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def attached() -> dict[int, list[object]]:
    """What is attached to each interface: ids of programs that are linked, names of filters."""
    with closing(Netlink()) as netlink:
        numbers = [link.number for link in netlink.links()]
    return {number: attached_to(number) for number in numbers}


def old_way(path: KernelPath) -> KernelPath:
    """Have it attached as by a kernel before 6.6."""
    path._attachment._has_links = False
    return path


def wait_for_news(path: KernelPath) -> None:
    assert select.select([path], [], [], 10.0)[0]
    path.on_news()


@pytest.mark.parametrize("is_old", [False, True])
def test_it_is_attached_to_every_interface_and_to_those_that_come_later(here: Namespaces, *, is_old: bool) -> None:
    path = KernelPath(4)
    with closing(old_way(path) if is_old else path):
        path.attach()
        assert path.interfaces == ["cable0a", "lo"]
        assert path.mode == ("clsact" if is_old else way())
        assert [len(found) for found in attached().values()] == [1, 1]

        here.join("here", "10.2.0.1/24", "there", "10.2.0.2/24")
        wait_for_news(path)
        assert path.interfaces == ["cable0a", "cable1a", "lo"]

        run("ip", "-n", here["here"], "link", "delete", "cable0a")
        wait_for_news(path)
        assert path.interfaces == ["cable1a", "lo"]
    assert [found for found in attached().values() if found] == []


@pytest.mark.usefixtures("here")
def test_what_others_have_attached_stays() -> None:
    path, other = KernelPath(4), KernelPath(4)
    with closing(path), closing(other):
        other.attach()
        before = attached()
        path.attach()
        assert [len(found) for found in attached().values()] == [2, 2]
        path.close()
        assert attached() == before


@pytest.mark.usefixtures("here")
def test_filters_of_a_process_that_is_gone_are_removed_and_no_others() -> None:
    netlink, path = Netlink(), KernelPath(4)
    with closing(netlink), closing(old_way(path)):
        program = path.program("ethernet")
        netlink.add_filter(1, program, "rpxy-l4:1:0", 1)
        netlink.add_filter(1, program, f"rpxy-l4:{1 << 30}:5", 2)
        netlink.add_filter(1, program, "somebody's", 3)
        netlink.add_filter(1, program, "rpxy-l4:not:ours", 4)
        with closing(old_way(KernelPath(4))) as neighbour:
            neighbour.attach()
            path.attach()
            remove_stale_filters()

            assert [found.name for found in netlink.filters(1)][:2] == ["somebody's", "rpxy-l4:not:ours"]
            assert len(netlink.filters(1)) == 4
        assert len(netlink.filters(1)) == 3


def test_a_program_that_the_kernel_refuses_is_explained_by_its_verifier() -> None:
    needs_kernel_path()
    with pytest.raises(bpf.VerifierError) as refused:
        bpf.load_program("wrong", bytes([0x95, 0, 0, 0, 0, 0, 0, 0]))  # exit, without a result

    assert "R0 !read_ok" in refused.value.log


def test_a_kernel_without_the_coarse_clock_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_kernel_path()
    loaded, load = [], bpf.load_program

    def remember(name: str, code: bytes) -> int:
        loaded.append(code)
        return load(name, code)

    monkeypatch.setattr("rpxy_l4.kernel.path._is_before", lambda *version: version == (5, 11))
    monkeypatch.setattr(bpf, "load_program", remember)
    KernelPath(4).close()
    assert len(loaded) == 1
    assert struct.pack("<BBhi", 0x85, 0, 0, 5) in loaded[0]
    assert struct.pack("<BBhi", 0x85, 0, 0, 160) not in loaded[0]


@pytest.mark.usefixtures("here")
def test_closing_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208  names are what is wanted
    path = KernelPath(4)
    path.attach()
    path.close()

    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
