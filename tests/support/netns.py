"""Network namespaces that a test makes for itself, joined by virtual cables."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.peers import program, run

_numbers = itertools.count()


class Namespaces:
    """Named namespaces, each with its loopback up; all gone at the end, with whatever is in them."""

    def __init__(self, *names: str) -> None:
        """Entering skips the test where namespaces are refused."""
        mark = f"{os.getpid()}-{next(_numbers)}"
        self._full = {name: f"rpxy-{mark}-{name}" for name in names}
        self._cables = itertools.count()

    def __getitem__(self, name: str) -> str:
        """What the system calls it."""
        return self._full[name]

    def __enter__(self) -> Self:
        program("ip")
        for full in self._full.values():
            for command in (("netns", "add", full), ("-n", full, "link", "set", "lo", "up")):
                made = run("ip", *command)
                if made.returncode != 0:
                    self.__exit__(None, None, None)
                    pytest.skip(f"network namespaces are refused here: {made.stdout.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for full in self._full.values():
            run("ip", "netns", "delete", full)

    def join(self, one: str, one_address: str, other: str, *other_addresses: str) -> None:
        """Lay a cable between two of them, with an address (``10.0.0.1/24``) at one end, and some at the other."""
        number = next(self._cables)
        ends = (f"cable{number}a", f"cable{number}b")
        _ip("link", "add", ends[0], "netns", self[one], "type", "veth", "peer", "name", ends[1], "netns", self[other])
        for name, end, addresses in ((one, ends[0], (one_address,)), (other, ends[1], other_addresses)):
            for address in addresses:
                _ip("-n", self[name], "address", "add", address, "dev", end)
            _ip("-n", self[name], "link", "set", end, "up")

    def own(self, name: str, network: str) -> None:
        """Make each address of a network one of the namespace's own: sockets may send from any, and get the answers."""
        _ip("-n", self[name], "route", "add", "local", network, "dev", "lo")

    def lead(self, name: str, network: str, via: str) -> None:
        """Let one of them find a network behind a neighbour's address."""
        _ip("-n", self[name], "route", "add", network, "via", via)


def _ip(*arguments: str) -> None:
    result = run("ip", *arguments)
    assert result.returncode == 0, result.stdout


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Sockets that this thread opens meanwhile belong to the network namespace, and stay there."""
    set_namespace = ctypes.CDLL(None, use_errno=True).setns
    with Path("/proc/thread-self/ns/net").open("rb") as home, Path("/run/netns", netns).open("rb") as there:
        assert set_namespace(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert set_namespace(home.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
