"""Names of targets to addresses, kept fresh in the background.

One task per name looks it up, waits until the answer is about to expire, and does so again: a name is never asked
for twice at once, and nobody who wants to connect ever waits for an answer. Failure changes nothing: the last good
addresses stay in use until there are new ones.

A name is looked for in the hosts file, then in DNS by the rules of resolv.conf(5), then through getaddrinfo for
whatever else nsswitch.conf(5) knows. Only DNS has a TTL.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from rpxy_l4.control import Resolved

_LOG: Final = logging.getLogger("rpxy_l4.admin")

_LOOKUP_TIMEOUT: Final = 5.0
# Leaves time for getaddrinfo, and for the answer of one family when the other's never comes.
_DNS_TIMEOUT: Final = 4.0
# Some servers never answer AAAA; whoever has IPv4 addresses does not wait longer than this for the others.
_OTHER_FAMILY_TIMEOUT: Final = 1.0
# The supervisor waits up to two seconds for the addresses of new names, so what is known by then must be on its way.
_FIRST_ROUND_TIMEOUT: Final = 1.5
_RETRY: Final = 5.0
# RFC 6761 section 6.3: these names never go to DNS.
_LOOPBACK: Final = ("127.0.0.1", "::1")


class LookupResult(enum.StrEnum):
    """How one lookup of one name ended. Each value is also a metric label."""

    OK = "ok"
    NXDOMAIN = "nxdomain"
    """There is no such name."""
    NODATA = "nodata"
    """The name exists but has no address."""
    SERVFAIL = "servfail"
    """No DNS server gave an answer that can be used."""
    TIMEOUT = "timeout"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Found:
    """Addresses of a name; none unless the result is OK."""

    result: LookupResult
    addresses: tuple[str, ...] = ()
    """IP literals, IPv4 before IPv6, each in the order of their numbers."""
    ttl: float = 0.0
    """Seconds, as the source gave it; 0 where it gives none."""


def sorted_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return each address once, in the order that every machine agrees on."""
    unique = {ip_address(address) for address in addresses}
    return tuple(str(address) for address in sorted(unique, key=lambda a: (a.version, int(a), str(a))))


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Return the addresses of each name of a hosts file (hosts(5)), sorted. Bad lines are passed over."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        with suppress(ValueError):
            literal = str(ip_address(address))
            for name in names:
                found.setdefault(name.lower().rstrip("."), []).append(literal)
    return {name: sorted_addresses(addresses) for name, addresses in found.items()}


class Resolver:
    """The table of addresses of a changing set of names. All methods but the copies for metrics: on the event loop."""

    def __init__(
        self,
        on_change: Callable[[Resolved], None],
        *,
        hosts: Path = Path("/etc/hosts"),
        nameservers: Sequence[tuple[str, int]] = (),
        least_wait: float = 1.0,
    ) -> None:
        """Call ``on_change`` with the whole table when it has changed, and after each :meth:`set_names`.

        ``nameservers``: IP literals and ports to ask instead of those of ``/etc/resolv.conf`` and of the system.
        ``least_wait``: seconds from one lookup of a name to the next, however short the TTL.
        """
        self._on_change = on_change
        self._hosts = hosts
        self._nameservers = tuple(nameservers)
        self._least_wait = least_wait
        self._min_ttl = 0.0
        self._max_ttl = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._table: dict[str, tuple[str, ...]] = {}
        self._reported: dict[str, tuple[str, ...]] = {}
        self._results: dict[str, LookupResult] = {}
        """How the last lookup of each name ended; a name that was not looked up yet is missing."""
        self._round: asyncio.TimerHandle | None = None
        """Runs while names that were just set are looked up for the first time; changes are held back until then."""
        self._lookups: Counter[tuple[str, LookupResult]] = Counter()
        self._expiries: dict[str, float] = {}

    def lookups(self) -> dict[tuple[str, LookupResult], int]:
        """Return how many lookups ended how, of every name ever set. From any thread."""
        return dict(self._lookups)

    def expiries(self) -> dict[str, float]:
        """Return the Unix time at which each name's addresses expire; past it they are stale. From any thread."""
        return dict(self._expiries)

    def set_names(self, names: Collection[str], min_ttl: float, max_ttl: float) -> None:
        """Resolve these names and no others from now on; TTLs are clamped to the two bounds.

        ``on_change`` follows once each new name was looked up, and after 1.5 seconds at the latest, then with what is
        known. It follows in any case, even when nothing changed; where no name is new, before this returns.
        """
        self._min_ttl, self._max_ttl = min_ttl, max_ttl
        for name in self._tasks.keys() - set(names):
            self._tasks.pop(name).cancel()
            for about in (self._table, self._results, self._expiries):
                about.pop(name, None)
        for name in sorted(set(names) - self._tasks.keys()):
            for result in LookupResult:
                self._lookups[name, result] += 0
            self._tasks[name] = asyncio.get_running_loop().create_task(self._keep(name))
        self._end_round()
        if self._tasks.keys() <= self._results.keys():
            self._report()
        else:
            self._round = asyncio.get_running_loop().call_later(_FIRST_ROUND_TIMEOUT, self._report)

    def close(self) -> None:
        """Stop all lookups; ``on_change`` is not called again."""
        self._end_round()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _end_round(self) -> None:
        if self._round is not None:
            self._round.cancel()
            self._round = None

    def _report(self) -> None:
        self._end_round()
        self._reported = dict(self._table)
        self._on_change(self._reported)

    async def _keep(self, name: str) -> None:
        while True:
            found = await self._look_up(name)
            wait = self._take(name, found)
            # Spread, so that many names or many machines do not ask in step for ever.
            await asyncio.sleep(max(wait * random.uniform(0.75, 0.85), self._least_wait))  # noqa: S311  not a secret

    def _take(self, name: str, found: Found) -> float:
        """Enter a lookup's outcome. Return the seconds that it stays fresh."""
        fresh = max(self._min_ttl, min(found.ttl, self._max_ttl))
        self._log_change(name, found)
        self._lookups[name, found.result] += 1
        self._results[name] = found.result
        if found.result is LookupResult.OK:
            self._table[name] = found.addresses
            self._expiries[name] = time.time() + fresh
        else:
            fresh = min(self._min_ttl, _RETRY)
        if self._round is not None:
            if self._tasks.keys() <= self._results.keys():
                self._report()
        elif self._table != self._reported:
            self._report()
        return fresh

    def _log_change(self, name: str, found: Found) -> None:
        before, addresses = self._results.get(name), self._table.get(name)
        if found.result is LookupResult.OK:
            if before not in {None, LookupResult.OK}:
                _LOG.info("%s resolves again", name)
            if addresses not in {None, found.addresses}:
                _LOG.info("%s is now at %s", name, ", ".join(found.addresses))
        elif found.result is not before:
            kept = f"keeping {', '.join(addresses)}" if addresses else "it has no address"
            _LOG.warning("%s does not resolve (%s), %s", name, found.result, kept)

    async def _look_up(self, name: str) -> Found:
        local = name.rstrip(".")
        addresses = self._read_hosts().get(local, ())
        if not addresses and (local == "localhost" or local.endswith(".localhost")):
            addresses = _LOOPBACK
        if addresses:
            return Found(LookupResult.OK, addresses)
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT):
                found = await self._ask_dns(name)
                # A server that does not answer us does not answer getaddrinfo either, which would keep one of
                # the loop's few threads waiting.
                if found.result in {LookupResult.OK, LookupResult.TIMEOUT} or self._nameservers:
                    return found
                addresses = await _ask_system(name)
                return Found(LookupResult.OK, addresses) if addresses else found
        except TimeoutError:
            return Found(LookupResult.TIMEOUT)
        except Exception:  # noqa: BLE001  a fault in a library must not end the upkeep of a name
            _LOG.exception("looking up %s failed", name)
            return Found(LookupResult.OTHER)

    def _read_hosts(self) -> dict[str, tuple[str, ...]]:
        try:
            return parse_hosts(self._hosts.read_text(errors="replace"))
        except OSError:
            return {}

    def _dns(self) -> dns.asyncresolver.Resolver:
        # Made afresh for each lookup, so that a changed resolv.conf counts at once.
        resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self._nameservers]
        return resolver

    async def _ask_dns(self, name: str) -> Found:
        try:
            resolver = self._dns()
        except dns.resolver.NoResolverConfiguration:
            return Found(LookupResult.SERVFAIL)
        queries = [asyncio.ensure_future(_query(resolver, name, kind)) for kind in ("A", "AAAA")]
        try:
            done, _ = await asyncio.wait(queries, timeout=_OTHER_FAMILY_TIMEOUT)
            if not any(query.result().addresses for query in done):
                done, _ = await asyncio.wait(queries)
        finally:
            for query in queries:
                query.cancel()
        late = Found(LookupResult.TIMEOUT)
        v4, v6 = (query.result() if query in done else late for query in queries)
        return merge_families(v4, v6, self._table.get(name, ()))


async def _query(resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> Found:
    """Ask for the addresses of one family. Raises nothing that DNS can cause."""
    try:
        answer = await resolver.resolve(name, kind, lifetime=_DNS_TIMEOUT, search=True)
    except dns.resolver.NXDOMAIN:
        return Found(LookupResult.NXDOMAIN)
    except dns.resolver.NoAnswer:
        return Found(LookupResult.NODATA)
    except (dns.exception.Timeout, TimeoutError):
        return Found(LookupResult.TIMEOUT)
    except (dns.exception.DNSException, OSError):
        return Found(LookupResult.SERVFAIL)
    addresses = sorted_addresses(record.address for record in answer)
    # Of the whole chain of CNAMEs.
    return Found(LookupResult.OK, addresses, answer.chaining_result.minimum_ttl)


def merge_families(v4: Found, v6: Found, known: Collection[str]) -> Found:
    """Make one answer of those for IPv4 and IPv6: OK when either is, else the one that says most.

    A family that could not be asked about keeps the addresses that were known of it.
    """
    by_version = {4: v4, 6: v6}
    good = [family for family in (v4, v6) if family.result is LookupResult.OK]
    if not good:
        order = (LookupResult.TIMEOUT, LookupResult.SERVFAIL, LookupResult.NODATA, LookupResult.NXDOMAIN)
        return Found(min(v4.result, v6.result, key=order.index))
    kept = [
        address
        for address in known
        if by_version[ip_address(address).version].result in {LookupResult.TIMEOUT, LookupResult.SERVFAIL}
    ]
    addresses = sorted_addresses([*v4.addresses, *v6.addresses, *kept])
    return Found(LookupResult.OK, addresses, min(family.ttl for family in good))


async def _ask_system(name: str) -> tuple[str, ...]:
    """Ask getaddrinfo; empty when it knows nothing."""
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return sorted_addresses(str(info[4][0]) for info in infos)
