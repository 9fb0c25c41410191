from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import dns.resolver
import pytest
import uvloop

from rpxy_l4.admin.resolver import Found, LookupResult, Resolver, merge_families, parse_hosts, sorted_addresses
from tests.support.peers import Program
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE

OK, TIMEOUT, SERVFAIL = LookupResult.OK, LookupResult.TIMEOUT, LookupResult.SERVFAIL
NXDOMAIN, NODATA = LookupResult.NXDOMAIN, LookupResult.NODATA

# So short that a test sees several refreshes.
QUICK = 0.05


def dns_server(port: int, *records: str) -> Program:
    """A real DNS server that knows the zone ``test`` and refuses to talk about any other."""
    return Program(
        "dnsmasq",
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--pid-file=",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        "--local=/test/",
        f"--port={port}",
        *records,
        udp=port,
    )


@pytest.fixture(scope="module")
def zone() -> Iterator[int]:
    """The port of a server with the records below."""
    port = free_port()
    with dns_server(
        port,
        "--host-record=both.test,192.0.2.10,2001:db8::10,300",
        "--host-record=short.test,192.0.2.1,1",
        "--host-record=v6.test,2001:db8::6,300",
        "--address=/many.test/192.0.2.100",
        "--address=/many.test/192.0.2.20",
        "--address=/many.test/192.0.2.3",
        "--host-record=canonical.test,192.0.2.7,300",
        "--cname=alias.test,canonical.test,40",
        "--txt-record=text.test,nothing but text",
    ):
        yield port


class Reports:
    """What a resolver reported, in order."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, tuple[str, ...]]] = []
        self._news = asyncio.Event()

    def __call__(self, table: Mapping[str, tuple[str, ...]]) -> None:
        self.seen.append(dict(table))
        self._news.set()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not wanted():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def resolving(port: int, hosts: Path | None = None) -> AsyncIterator[tuple[Resolver, Reports]]:
    reports = Reports()
    resolver = Resolver(
        reports, hosts=hosts or Path("/dev/null"), nameservers=[("127.0.0.1", port)], least_wait=QUICK / 2
    )
    try:
        yield resolver, reports
    finally:
        resolver.close()


async def poll(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  nothing tells of a lookup that changes no address
            await asyncio.sleep(QUICK / 10)


def on_uvloop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def resolve(port: int, name: str, hosts: Path | None = None) -> tuple[tuple[str, ...] | None, Resolver]:
    async with resolving(port, hosts) as (resolver, reports):
        resolver.set_names([name], 30, 3600)
        await reports.until(lambda: bool(reports.seen))
        assert len(reports.seen) == 1
        return reports.seen[0].get(name), resolver


def result_of(resolver: Resolver) -> LookupResult:
    (ended,) = [result for (_, result), count in resolver.lookups().items() if count]
    return ended


@pytest.mark.parametrize(
    ("name", "addresses", "ttl"),
    [
        ("both.test", ("192.0.2.10", "2001:db8::10"), 300),
        ("v6.test", ("2001:db8::6",), 300),
        ("many.test", ("192.0.2.3", "192.0.2.20", "192.0.2.100"), 30),
        ("alias.test", ("192.0.2.7",), 40),
        ("short.test", ("192.0.2.1",), 30),
        ("localhost", ("127.0.0.1", "::1"), 30),
        ("db.localhost", ("127.0.0.1", "::1"), 30),
    ],
)
def test_a_name_becomes_its_sorted_addresses_until_its_ttl(
    zone: int, name: str, addresses: tuple[str, ...], ttl: float
) -> None:
    async def work() -> None:
        found, resolver = await resolve(zone, name)
        assert found == addresses
        assert result_of(resolver) is OK
        assert resolver.expiries()[name] == pytest.approx(time.time() + ttl, abs=2)

    on_uvloop(work())


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("nothing.test", NXDOMAIN),
        ("text.test", NODATA),
        ("not.ours.example", SERVFAIL),
        ("a" * 64 + ".test", SERVFAIL),
        ("a..test", SERVFAIL),
        pytest.param("\udcff.test", SERVFAIL, id="no text"),
    ],
)
def test_a_name_without_an_address_is_missing_and_its_failure_is_counted(
    zone: int, name: str, result: LookupResult
) -> None:
    async def work() -> None:
        found, resolver = await resolve(zone, name)
        assert found is None
        assert result_of(resolver) is result
        assert resolver.expiries() == {}

    on_uvloop(work())


def test_the_hosts_file_comes_before_dns_and_may_change(zone: int, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.99 both.test\n")

    async def work() -> None:
        async with resolving(zone, hosts) as (resolver, reports):
            resolver.set_names(["both.test"], QUICK, QUICK)
            await reports.until(lambda: len(reports.seen) == 1)
            hosts.write_text("192.0.2.98 both.test\n")
            await reports.until(lambda: len(reports.seen) == 2)
            hosts.unlink()
            await reports.until(lambda: len(reports.seen) == 3)
            assert [table["both.test"] for table in reports.seen] == [
                ("192.0.2.99",),
                ("192.0.2.98",),
                ("192.0.2.10", "2001:db8::10"),
            ]

    on_uvloop(work())


def test_without_a_name_the_report_comes_at_once() -> None:
    async def work() -> None:
        async with resolving(1) as (resolver, reports):
            resolver.set_names([], 30, 3600)
            assert reports.seen == [{}]

    on_uvloop(work())


def test_names_known_already_are_reported_at_once_and_are_not_asked_for_again(zone: int) -> None:
    async def work() -> None:
        async with resolving(zone) as (resolver, reports):
            resolver.set_names(["v6.test", "both.test"], 30, 3600)
            await reports.until(lambda: len(reports.seen) == 1)
            resolver.set_names(["v6.test"], 30, 3600)
            assert reports.seen[1:] == [{"v6.test": ("2001:db8::6",)}]
            assert resolver.lookups()["v6.test", OK] == 1
            assert set(resolver.expiries()) == {"v6.test"}

    on_uvloop(work())


def test_a_round_is_reported_once_and_whole(zone: int) -> None:
    async def work() -> None:
        async with resolving(zone) as (resolver, reports):
            resolver.set_names(["v6.test", "both.test", "nothing.test", "short.test"], 30, 3600)
            await reports.until(lambda: bool(reports.seen))
            assert [set(table) for table in reports.seen] == [{"v6.test", "both.test", "short.test"}]

    on_uvloop(work())


def test_a_name_that_is_taken_back_before_it_was_looked_up_holds_nothing_up(zone: int) -> None:
    async def work() -> None:
        async with resolving(zone) as (resolver, reports):
            resolver.set_names(["both.test", "v6.test"], 30, 3600)
            resolver.set_names(["v6.test"], 30, 3600)
            await reports.until(lambda: bool(reports.seen))
            assert reports.seen == [{"v6.test": ("2001:db8::6",)}]
            assert resolver.lookups()["both.test", OK] == 0

    on_uvloop(work())


def test_addresses_are_refreshed_and_reported_only_when_they_changed(zone: int) -> None:
    async def work() -> None:
        async with resolving(zone) as (resolver, reports):
            resolver.set_names(["both.test"], QUICK, QUICK)
            await poll(lambda: resolver.lookups()["both.test", OK] >= 4)
            assert len(reports.seen) == 1

    on_uvloop(work())


def test_the_last_addresses_stay_while_dns_is_down_and_new_ones_come_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="rpxy_l4")
    port = free_port()

    async def work() -> None:
        async with resolving(port) as (resolver, reports):
            with dns_server(port, "--host-record=a.test,192.0.2.1,1"):
                resolver.set_names(["a.test"], QUICK, QUICK)
                await reports.until(lambda: len(reports.seen) == 1)
            with dns_server(port):
                await poll(lambda: resolver.lookups()["a.test", NXDOMAIN] >= 3)
            with dns_server(port, "--host-record=a.test,192.0.2.2,1"):
                await reports.until(lambda: len(reports.seen) == 2)
            assert reports.seen == [{"a.test": ("192.0.2.1",)}, {"a.test": ("192.0.2.2",)}]

    on_uvloop(work())
    said = [record.getMessage() for record in caplog.records]
    # Between two of the servers there may be a time with none.
    assert said.count("a.test does not resolve (nxdomain), keeping 192.0.2.1") == 1
    assert said[-2:] == ["a.test resolves again", "a.test is now at 192.0.2.2"]


@pytest.mark.slow
def test_a_server_that_never_answers_holds_up_neither_the_report_nor_other_names(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.1 quick.test\n")

    async def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            async with resolving(silent.getsockname()[1], hosts) as (resolver, reports):
                began = time.monotonic()
                resolver.set_names(["quick.test", "dead.test"], 30, 3600)
                await reports.until(lambda: bool(reports.seen))
                assert time.monotonic() - began < 2
                assert reports.seen == [{"quick.test": ("192.0.2.1",)}]
                await poll(lambda: resolver.lookups()["dead.test", TIMEOUT] == 1)
                assert time.monotonic() - began < 6
                assert len(reports.seen) == 1

    on_uvloop(work())


@pytest.mark.slow
def test_a_server_that_answers_for_one_family_only_is_good_enough() -> None:
    class OnlyA(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            end = data.index(b"\0", 12) + 5
            if data[end - 4 : end - 2] == b"\x00\x01":
                header = data[:2] + b"\x81\x80" + b"\0\1\0\1\0\0\0\0"
                answer = b"\xc0\x0c\0\1\0\1\0\0\x01\x2c\0\4\xc0\0\2\x05"
                self.transport.sendto(header + data[12:end] + answer, addr)

    async def work() -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(OnlyA, ("127.0.0.1", 0))
        began = time.monotonic()
        found, _ = await resolve(transport.get_extra_info("sockname")[1], "one.test")
        assert found == ("192.0.2.5",)
        assert time.monotonic() - began < 1.4
        transport.close()

    on_uvloop(work())


def test_random_bytes_for_answers_end_as_failures_and_nothing_worse() -> None:
    chance = random.Random(4)

    class Noise(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            flags = bytes([0x81, 0x80 | chance.randrange(16)])
            self.transport.sendto(data[:2] + flags + chance.randbytes(chance.randrange(60)), addr)
            # An honest end, so that nobody waits for the rest of the time.
            self.transport.sendto(data[:2] + b"\x81\x83" + data[4:12] + data[12:], addr)

    async def work() -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Noise, ("127.0.0.1", 0))
        async with resolving(transport.get_extra_info("sockname")[1]) as (resolver, reports):
            resolver.set_names([f"{i}.test" for i in range(20)], 30, 3600)
            await reports.until(lambda: bool(reports.seen))
            assert sum(resolver.lookups().values()) == 20
        transport.close()

    on_uvloop(work())


class WithoutDns(Resolver):
    """As on a machine without a resolv.conf."""

    def _dns(self) -> NoReturn:
        raise dns.resolver.NoResolverConfiguration


def test_what_only_the_system_knows_is_found_through_getaddrinfo() -> None:
    async def work() -> None:
        reports = Reports()
        resolver = WithoutDns(reports, hosts=Path("/dev/null"))
        # No literal by the rules of today; libc has known this form for ever, and no file or server is needed for it.
        resolver.set_names(["127.1", "no-such-name.invalid."], 30, 3600)
        await reports.until(lambda: bool(reports.seen))
        resolver.close()
        assert reports.seen == [{"127.1": ("127.0.0.1",)}]

    on_uvloop(work())


def test_closing_stops_all_work() -> None:
    async def work() -> None:
        async with resolving(1) as (resolver, reports):
            resolver.set_names(["a.test"], 30, 3600)
            resolver.close()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert reports.seen == []

    on_uvloop(work())


def test_a_hosts_file_is_read_as_the_system_reads_it() -> None:
    text = (
        "# comment\n\n127.0.0.1\tlocalhost  Alias # more\n::1 localhost\n192.0.2.1\n"
        "not-an-address name\n192.0.2.2 other.example. \n0300.1 old\n"
    )

    assert parse_hosts(text) == {
        "localhost": ("127.0.0.1", "::1"),
        "alias": ("127.0.0.1",),
        "other.example": ("192.0.2.2",),
    }


@pytest.mark.parametrize("text", ["", "#", "\0", " \n\t\n", "127.0.0.1", pytest.param("\udcff \udcff", id="no text")])
def test_a_hosts_file_without_names_is_empty(text: str) -> None:
    assert parse_hosts(text) == {}


def test_addresses_are_sorted_by_number_and_each_is_there_once() -> None:
    assert sorted_addresses(["::1", "10.0.0.2", "9.0.0.1", "0:0::1", "fe80::1%eth1", "10.0.0.2"]) == (
        "9.0.0.1",
        "10.0.0.2",
        "::1",
        "fe80::1%eth1",
    )


V4 = Found(OK, ("192.0.2.1",), 60)
V6 = Found(OK, ("2001:db8::1",), 20)
KNOWN = ("192.0.2.9", "2001:db8::9")


@pytest.mark.parametrize(
    ("v4", "v6", "expected"),
    [
        (V4, V6, Found(OK, ("192.0.2.1", "2001:db8::1"), 20)),
        (V4, Found(NODATA), Found(OK, ("192.0.2.1",), 60)),
        (V4, Found(NXDOMAIN), Found(OK, ("192.0.2.1",), 60)),
        (V4, Found(TIMEOUT), Found(OK, ("192.0.2.1", "2001:db8::9"), 60)),
        (Found(SERVFAIL), V6, Found(OK, ("192.0.2.9", "2001:db8::1"), 20)),
        (Found(TIMEOUT), Found(NXDOMAIN), Found(TIMEOUT)),
        (Found(NODATA), Found(SERVFAIL), Found(SERVFAIL)),
        (Found(NXDOMAIN), Found(NODATA), Found(NODATA)),
        (Found(NXDOMAIN), Found(NXDOMAIN), Found(NXDOMAIN)),
    ],
)
def test_a_family_that_could_not_be_asked_about_keeps_its_addresses(v4: Found, v6: Found, expected: Found) -> None:
    assert merge_families(v4, v6, KNOWN) == expected
