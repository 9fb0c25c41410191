"""What the kernel says of routes and interfaces, and how it says that they have changed."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from rpxy_l4.kernel.layout import address
from rpxy_l4.kernel.routes import Passage, Routes
from tests.support.netns import Namespaces
from tests.support.peers import run

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture
def routes(here: Namespaces) -> Iterator[Routes]:  # noqa: ARG001  where they are
    with closing(Routes()) as made:
        yield made


def ip(nets: Namespaces, *arguments: str) -> None:
    said = run("ip", "-n", nets["here"], *arguments)
    assert said.returncode == 0, said.stdout


def find(routes: Routes, destination: str, source: str) -> Passage | None:
    return routes.find(address(destination, 0).packed, address(source, 0).packed)


def wait_for_news(routes: Routes) -> None:
    assert select.select([routes], [], [], 10.0)[0]
    routes.drain()


def test_addresses_of_this_machine_are_local_and_others_behind_an_interface(here: Namespaces, routes: Routes) -> None:
    ip(here, "-6", "address", "add", "2001:db8::1/64", "dev", "cable0a", "nodad")
    routes.drain()

    assert find(routes, "127.0.0.5", "127.0.0.1") == Passage(1, 65_536, is_local=True)
    assert find(routes, "10.1.0.1", "10.1.0.1") == Passage(1, 65_536, is_local=True)
    remote = find(routes, "10.1.0.2", "10.1.0.1")
    assert remote is not None
    assert (remote.interface > 1, remote.mtu, remote.is_local) == (True, 1500, False)
    assert find(routes, "2001:db8::2", "2001:db8::1") == remote
    assert find(routes, "::1", "::1") == Passage(1, 65_536, is_local=True)


def test_where_there_is_no_way_there_is_none(here: Namespaces, routes: Routes) -> None:
    ip(here, "route", "add", "blackhole", "10.8.0.0/16")
    ip(here, "route", "add", "unreachable", "10.9.0.0/16")
    routes.drain()

    for destination in ("192.0.2.1", "10.8.0.1", "10.9.0.1", "224.0.0.1", "255.255.255.255", "2001:db8:1::1"):
        source = "::1" if ":" in destination else "10.1.0.1"
        assert find(routes, destination, source) is None, destination


def test_the_mtu_is_that_of_the_route_or_of_the_interface(here: Namespaces, routes: Routes) -> None:
    ip(here, "route", "add", "10.8.0.0/16", "via", "10.1.0.2", "mtu", "1300")
    ip(here, "link", "set", "cable0a", "mtu", "1400")
    routes.drain()

    near, far = find(routes, "10.1.0.2", "10.1.0.1"), find(routes, "10.8.0.1", "10.1.0.1")
    assert near is not None
    assert far is not None
    assert (near.mtu, far.mtu) == (1400, 1300)


def test_a_change_is_told_and_what_was_known_is_forgotten(here: Namespaces, routes: Routes) -> None:
    here.join("here", "10.2.0.1/24", "there", "10.2.0.2/24")
    ip(here, "route", "add", "10.8.0.0/16", "via", "10.1.0.2")
    wait_for_news(routes)
    before = find(routes, "10.8.0.1", "10.1.0.1")

    ip(here, "route", "replace", "10.8.0.0/16", "via", "10.2.0.2")
    assert find(routes, "10.8.0.1", "10.1.0.1") == before
    wait_for_news(routes)

    after = find(routes, "10.8.0.1", "10.1.0.1")
    assert before is not None
    assert after is not None
    assert after.interface != before.interface
