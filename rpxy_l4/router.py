"""Which route recognised traffic takes.

Among the entries of the protocol whose filters hold, the more specific goes first (server name and ALPN, then server
name, then ALPN, then no filter), and among equals the one that stands first in the file. A filter holds when it is
empty, or when it contains the client's server name, or one of the ALPN names that the client offers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from rpxy_l4.snapshot import Route, Side
from rpxy_l4.verdict import Match, Protocol

_FILTERED: Final = frozenset({Protocol.TLS, Protocol.QUIC})

_Key = tuple[Protocol | None, str | None, bytes | None]
"""Protocol, server name, ALPN name; None: no filter."""


class Router:
    """The routes of one side of a listener, in a table: the cost does not grow with the number of routes."""

    __slots__ = ("_default", "_filters_alpn", "_routes", "_table")

    def __init__(self, side: Side) -> None:
        """Index the entries of the side."""
        self._routes = side.routes
        self._default = side.default
        self._filters_alpn = any(route.alpn for route in side.routes)
        self._table: dict[_Key, int] = {}
        for index, route in enumerate(side.routes):
            for key in _keys(route):
                self._table.setdefault(key, index)

    def find(self, match: Match | None) -> Route | None:
        """Return the entry for the traffic; the default where there is none, or ``match`` is None (not recognised).

        None: neither, the traffic is to be dropped.
        """
        if match is None:
            return self._default
        protocol = match.protocol
        offered = [name.lower() for name in match.alpn] if self._filters_alpn else ()
        for server_name in (match.server_name, None):
            index = None
            if offered:
                found = [self._table.get((protocol, server_name, name)) for name in offered]
                index = min((index for index in found if index is not None), default=None)
            if index is None:
                index = self._table.get((protocol, server_name, None))
            if index is not None:
                return self._routes[index]
        return self._default


def unreachable(routes: Sequence[Route]) -> list[tuple[Route, Route]]:
    """Return the entries that never get traffic, each with an earlier one that takes it.

    Where several earlier entries take the traffic together, the one that takes most of it is named. Only entries of the
    same protocol and with the same kinds of filter can do so: a more specific entry never takes all that a less
    specific one accepts.
    """
    found = []
    taken: set[_Key] = set()
    for index, route in enumerate(routes):
        keys = set(_keys(route))
        if keys <= taken:
            taker = max(routes[:index], key=lambda earlier: len(keys.intersection(_keys(earlier))))
            found.append((route, taker))
        taken |= keys
    return found


def _keys(route: Route) -> Iterator[_Key]:
    """Yield what the entry is found by: no filter counts as a value of its own."""
    if route.protocol in _FILTERED:
        return itertools.product((route.protocol,), route.server_names or (None,), route.alpn or (None,))
    return iter([(route.protocol, None, None)])
