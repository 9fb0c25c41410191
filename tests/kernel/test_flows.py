"""Flows put in the kernel path and taken out, with real datagrams between sockets of one machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Final, Self

import pytest

from rpxy_l4.kernel.flows import Amount, Ends, Entry, KernelFlows
from rpxy_l4.kernel.layout import Address, address
from rpxy_l4.kernel.path import KernelPath
from tests.support.netns import Namespaces
from tests.support.peers import run

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SLOTS: Final = 2
CAPACITY: Final = 32
NOTHING: Final = (Amount(0, 0), Amount(0, 0))
TICKS: Final = 6
"""CLOCK_MONOTONIC_COARSE (linux/time.h)."""


class Flow:
    """A client, a socket where it sends to, one towards a target, and the target."""

    def __init__(self, flows: KernelFlows, slot: int = 0) -> None:
        with ExitStack() as stack:
            self.listener, self.source, self.target, self.client = (
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(4)
            )
            for end in (self.listener, self.target):
                end.bind(("127.0.0.1", 0))
            self.client.connect(self.listener.getsockname())
            self.source.connect(self.target.getsockname())
            for end in (self.listener, self.source, self.target, self.client):
                end.settimeout(10.0)
            self.target.setblocking(False)
            self._stack = stack.pop_all()
        self._flows = flows
        self.slot = slot
        self.entry: Entry | None = None
        self.counted = NOTHING
        self.reconsidered = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def ends(self) -> Ends:
        names = (each.getsockname() for each in (self.client, self.listener, self.source, self.target))
        return Ends(*(address(host, port) for host, port in names))

    def enter(self, series: int = 5) -> bool:
        self.entry = self._flows.install(self, self.slot, self.ends, series)
        if self.entry is None:
            return False
        # One packet of each direction still comes to the sockets.
        self.client.send(b"to be seen")
        assert self.listener.recv(100) == b"to be seen"
        self.target.sendto(b"seen", self.source.getsockname())
        assert self.client.recv(100) == b"seen", "the second one proves both"
        self._flows.take(self.entry)
        return True

    def leave_kernel(self) -> None:
        assert self.entry is not None
        self._flows.remove(self.entry)
        self.count_kernel(*self._flows.take(self.entry))
        self.entry = None

    def reconsider(self) -> None:
        self.reconsidered += 1

    def count_kernel(self, from_client: Amount, from_target: Amount) -> None:
        pairs = zip(self.counted, (from_client, from_target), strict=True)
        self.counted = tuple(Amount(a.packets + b.packets, a.bytes + b.bytes) for a, b in pairs)  # type: ignore[assignment]

    def goes_through_the_kernel(self) -> bool:
        """Send there and back, and see whether the sockets in between are left out."""
        self.client.send(b"question")
        try:
            data, sender = self.target.recvfrom(100)
        except BlockingIOError:
            assert self.listener.recv(100) == b"question"
            return False
        assert (data, sender) == (b"question", self.source.getsockname())
        self.target.sendto(b"reply", sender)
        assert self.client.recv(100) == b"reply"
        return True


@pytest.fixture
def path(here: Namespaces) -> Iterator[KernelPath]:  # noqa: ARG001  where it is attached
    with closing(KernelPath(CAPACITY)) as made:
        made.attach()
        yield made


def open_flows(path: KernelPath) -> KernelFlows:
    return KernelFlows(path.token, SLOTS, CAPACITY, *(os.dup(path.maps[name]) for name in ("flows", "counters")))


@pytest.fixture
def flows(path: KernelPath) -> Iterator[KernelFlows]:
    with closing(open_flows(path)) as made:
        made.claim({0, 1}, no_rest)
        yield made


def no_rest(series: int, from_clients: Amount, from_targets: Amount) -> None:
    raise AssertionError((series, from_clients, from_targets))


class Rest:
    """What is told of flows that are gone."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Amount, Amount]] = []

    def __call__(self, series: int, from_clients: Amount, from_targets: Amount) -> None:
        self.told.append((series, from_clients, from_targets))


def test_a_flow_is_forwarded_while_it_is_in(flows: KernelFlows) -> None:
    with Flow(flows) as flow:
        assert not flow.goes_through_the_kernel()
        assert flow.enter()
        assert flow.goes_through_the_kernel()
        flow.leave_kernel()
        assert not flow.goes_through_the_kernel()
        assert flow.counted == (Amount(1, 8), Amount(1, 5))


def test_what_has_passed_is_told_once(flows: KernelFlows) -> None:
    with Flow(flows) as flow, Flow(flows, slot=1) as quiet:
        assert flow.enter()
        assert quiet.enter()
        before = time.clock_gettime(TICKS)
        for _ in range(3):
            assert flow.goes_through_the_kernel()

        assert flow.entry is not None
        assert [*flows.news()] == [(flow.entry, Amount(3, 24), Amount(3, 15))]
        assert [*flows.news()] == []
        assert before <= flows.last(flow.entry) <= time.monotonic()


def test_pairs_of_counters_rest_before_another_flow_gets_them(flows: KernelFlows) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(Flow(flows)) for _ in range(CAPACITY // SLOTS + 1)]
        assert [flow.enter() for flow in made] == [True] * (CAPACITY // SLOTS) + [False]
        made[0].leave_kernel()
        assert not made[-1].enter()
        flows.rest(no_rest)
        assert made[-1].enter()
        assert made[-1].goes_through_the_kernel()
        assert not made[0].goes_through_the_kernel()


def await_tick() -> None:
    """Come back when a packet's time, which is that of a tick, is later than now."""
    now = time.monotonic()
    while time.clock_gettime(TICKS) <= now:
        pass


def test_a_full_slot_lets_those_go_that_are_idle_for_the_longest_time(
    flows: KernelFlows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpxy_l4.kernel.flows._BUSY_SECONDS", 0.0)
    with ExitStack() as stack:
        made = [stack.enter_context(Flow(flows)) for _ in range(CAPACITY // SLOTS)]
        assert all(flow.enter() for flow in made)
        await_tick()
        for flow in (*made[:3], *made[5:]):
            assert flow.goes_through_the_kernel()
        late = stack.enter_context(Flow(flows))
        assert not late.enter()
        assert [number for number, flow in enumerate(made) if flow.reconsidered] == [3, 4]
        flows.rest(no_rest)
        assert late.enter()


def test_busy_flows_stay_in_a_full_slot(flows: KernelFlows) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(Flow(flows)) for _ in range(CAPACITY // SLOTS)]
        assert all(flow.enter() for flow in made)
        assert not stack.enter_context(Flow(flows)).enter()
        flows.rest(no_rest)
        assert not any(flow.reconsidered for flow in made)


def test_what_a_dead_worker_left_is_taken_out_and_counted(path: KernelPath, flows: KernelFlows) -> None:
    with Flow(flows) as flow, Flow(flows, slot=1) as other:
        assert flow.enter(series=7)
        assert other.enter(series=8)
        assert flow.goes_through_the_kernel()
        assert other.goes_through_the_kernel()
        [*flows.news()]
        assert flow.goes_through_the_kernel()

        with closing(open_flows(path)) as replacement:
            rest = Rest()
            replacement.claim({0}, rest)
            assert rest.told == [(7, Amount(1, 8), Amount(1, 5))]
            assert not flow.goes_through_the_kernel()
            assert other.goes_through_the_kernel()
            with Flow(replacement) as fresh:
                assert fresh.enter()
                assert fresh.goes_through_the_kernel()


def test_a_flow_that_another_worker_goes_on_with_stays_in(path: KernelPath, flows: KernelFlows) -> None:
    with Flow(flows) as flow, closing(open_flows(path)) as taker:
        assert flow.enter()
        assert flow.entry is not None
        flows.give_up(0, no_rest)
        flows.disown(flow.entry)
        assert flow.goes_through_the_kernel()

        entry = taker.adopt(flow, 0, flow.entry.counter, flow.ends, flow.entry.passages)
        taker.take_news()
        assert taker.misrouted(9) == []
        taker.claim({0}, no_rest)
        assert flow.goes_through_the_kernel()
        assert [*taker.news()] == [(entry, Amount(2, 16), Amount(2, 10))]
        taker.remove(entry)
        assert not flow.goes_through_the_kernel()


def test_a_pair_that_rests_is_settled_when_its_slot_goes(path: KernelPath, flows: KernelFlows) -> None:
    """Who has the slot then may use it at once, and nobody else may clear it under its hands."""
    with Flow(flows) as flow, closing(open_flows(path)) as taker, Flow(taker) as other:
        assert flow.enter(series=7)
        assert flow.goes_through_the_kernel()
        assert flow.entry is not None
        flows.remove(flow.entry)  # without a look at what has passed
        rest = Rest()
        flows.give_up(0, rest)
        assert rest.told == [(7, Amount(1, 8), Amount(1, 5))]
        taker.claim({0}, no_rest)
        assert other.enter()
        assert other.goes_through_the_kernel()
        flows.rest(no_rest)
        assert other.entry is not None
        assert [*taker.news()] == [(other.entry, Amount(1, 8), Amount(1, 5))]


def test_a_pair_is_given_out_once(path: KernelPath, flows: KernelFlows) -> None:
    """Also where a flow ends in the moment in which its slot arrives."""
    with Flow(flows) as flow, closing(open_flows(path)) as taker, ExitStack() as stack:
        assert flow.enter()
        assert flow.entry is not None
        flows.give_up(0, no_rest)
        flows.disown(flow.entry)
        entry = taker.adopt(flow, 0, flow.entry.counter, flow.ends, flow.entry.passages)
        taker.remove(entry)
        taker.claim({0}, no_rest)
        taker.rest(no_rest)
        made = [stack.enter_context(Flow(taker)) for _ in range(CAPACITY // SLOTS + 1)]
        assert [each.enter() for each in made] == [True] * (CAPACITY // SLOTS) + [False]
        assert len({each.entry.counter for each in made if each.entry is not None}) == CAPACITY // SLOTS


def test_a_slot_that_is_not_ours_gives_nothing(flows: KernelFlows) -> None:
    with Flow(flows) as flow:
        flows.give_up(0, no_rest)
        assert not flow.enter()


@pytest.mark.parametrize(
    ("client", "target"),
    [
        (Address(b"\x7f\0\0\1", 9), address("::1", 9)),
        (address("fe80::1", 9), address("fe80::2", 9)),
        (address("192.0.2.1", 9), address("127.0.0.1", 9)),
    ],
    ids=["other family", "link-local", "no way"],
)
def test_what_cannot_be_forwarded_is_not_put_in(flows: KernelFlows, client: Address, target: Address) -> None:
    with Flow(flows) as flow:
        local, source = flow.ends.local, flow.ends.source
        assert flows.install(flow, 0, Ends(client, local, source, target), 1) is None


def test_the_source_of_a_flow_that_is_gone_is_not_taken_over(path: KernelPath, flows: KernelFlows) -> None:
    """Another flow may get the port before what was there is taken out: answers would go to the wrong client."""
    with Flow(flows) as flow, closing(open_flows(path)) as other:
        assert flow.enter()
        other.claim({1}, no_rest)
        client = flow.ends.client._replace(port=1)
        assert other.install(flow, 1, flow.ends._replace(client=client), 1) is None
        assert flow.goes_through_the_kernel()


def test_flows_whose_way_has_changed_are_named(here: Namespaces, flows: KernelFlows) -> None:
    with Flow(flows) as flow, Flow(flows) as other:
        run("ip", "-n", here["here"], "address", "add", "10.5.0.1/32", "dev", "lo")
        assert flow.enter()
        target = Address(address("10.5.0.1", 0).packed, 9)
        entry = flows.install(other, 0, other.ends._replace(target=target), 1)
        assert entry is not None
        flows.take_news()
        assert flows.misrouted(9) == []

        run("ip", "-n", here["here"], "address", "delete", "10.5.0.1/32", "dev", "lo")
        run("ip", "-n", here["here"], "route", "add", "10.5.0.1/32", "via", "10.1.0.2")
        flows.take_news()
        assert flows.misrouted(1) == []
        assert flows.has_suspects
        assert flows.misrouted(9) == [entry]
        assert not flows.has_suspects


def add_policy(here: Namespaces) -> None:
    run("ip", "-n", here["here"], "xfrm", "policy", "add", "src", "10.1.0.1/32", "dst", "10.9.0.0/16", "dir", "out",
        "tmpl", "proto", "esp", "mode", "transport")  # fmt: skip


def test_policies_of_ipsec_that_are_there_bar_the_first_flow(here: Namespaces, path: KernelPath) -> None:
    add_policy(here)
    with closing(open_flows(path)) as flows, Flow(flows) as flow:
        flows.claim({0}, no_rest)
        assert flows.is_barred
        assert not flow.enter()


def test_policies_of_ipsec_bar_everything(here: Namespaces, flows: KernelFlows) -> None:
    """What is forwarded by the kernel path would miss them, and leave unencrypted."""
    add_policy(here)

    def is_barred() -> bool:
        flows.rest(no_rest)
        return flows.is_barred

    assert is_barred()
    with Flow(flows) as flow:
        assert not flow.enter()
        run("ip", "-n", here["here"], "xfrm", "policy", "flush")
        assert not is_barred()
        assert flow.enter()
