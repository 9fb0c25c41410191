"""Routing is compared with the rule in words, and ``unreachable`` with what the router really finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.router import Router, unreachable
from rpxy_l4.snapshot import Route, Side, Target
from rpxy_l4.verdict import TRANSPORT_OF, Match, Protocol, Transport

DEFAULT = Route(
    name="default", transport=Transport.TCP, protocol=None, targets=(Target("127.0.0.1:1", "127.0.0.1", 1, False),)
)
NAMES = ("a.example", "b.example")
ALPN = (b"h2", b"http/1.1")


def entry(
    name: str, protocol: Protocol = Protocol.TLS, names: tuple[str, ...] = (), alpn: tuple[bytes, ...] = ()
) -> Route:
    return Route(
        name=name,
        transport=TRANSPORT_OF[protocol],
        protocol=protocol,
        targets=DEFAULT.targets,
        server_names=frozenset(names),
        alpn=frozenset(alpn),
    )


def router(*routes: Route, default: Route | None = DEFAULT) -> Router:
    return Router(Side(transport=Transport.TCP, routes=routes, default=default, series=0, max_sessions=1))


def tls(server_name: str | None = None, *alpn: bytes) -> Match:
    return Match(Protocol.TLS, server_name, alpn)


CATCH_ALL = entry("catch_all")
H2 = entry("h2", alpn=(b"h2",))
NAME = entry("name", names=("a.example",))
BOTH = entry("both", names=("a.example",), alpn=(b"h2",))


def test_traffic_that_is_not_recognised_takes_the_default() -> None:
    assert router(CATCH_ALL).find(None) is DEFAULT
    assert router(CATCH_ALL, default=None).find(None) is None


@pytest.mark.parametrize("protocol", Protocol)
def test_a_protocol_takes_its_own_entry(protocol: Protocol) -> None:
    routes = [entry(other.value, other) for other in Protocol]

    found = router(*routes).find(Match(protocol))

    assert found is not None
    assert found.protocol is protocol


def test_a_protocol_without_an_entry_takes_the_default() -> None:
    assert router(CATCH_ALL).find(Match(Protocol.SSH)) is DEFAULT
    assert router(CATCH_ALL, default=None).find(Match(Protocol.SSH)) is None


def test_of_two_entries_of_a_protocol_without_filters_the_first_takes_all() -> None:
    first, second = entry("first", Protocol.SSH), entry("second", Protocol.SSH)

    assert router(first, second).find(Match(Protocol.SSH)) is first
    assert router(second, first).find(Match(Protocol.SSH)) is second


def test_the_more_specific_entry_goes_first_wherever_it_stands() -> None:
    routes = router(CATCH_ALL, H2, NAME, BOTH)

    assert routes.find(tls("a.example", b"h2")) is BOTH
    assert routes.find(tls("a.example", b"http/1.1")) is NAME
    assert routes.find(tls("a.example")) is NAME
    assert routes.find(tls("b.example", b"http/1.1", b"h2")) is H2
    assert routes.find(tls(None, b"h2")) is H2
    assert routes.find(tls("b.example")) is CATCH_ALL
    assert routes.find(tls()) is CATCH_ALL


def test_both_filters_must_hold() -> None:
    routes = router(BOTH)

    assert routes.find(tls("a.example")) is DEFAULT
    assert routes.find(tls("a.example", b"http/1.1")) is DEFAULT
    assert routes.find(tls(None, b"h2")) is DEFAULT
    assert routes.find(tls("b.example", b"h2")) is DEFAULT


def test_tls_that_no_entry_matches_takes_the_default() -> None:
    assert router(NAME).find(tls("b.example")) is DEFAULT
    assert router(NAME, default=None).find(tls("b.example")) is None


def test_among_equals_the_first_in_the_file_wins_not_the_first_offered() -> None:
    http1, h2 = entry("http1", alpn=(b"http/1.1",)), entry("h2", alpn=(b"h2",))

    assert router(http1, h2).find(tls(None, b"h2", b"http/1.1")) is http1
    assert router(h2, http1).find(tls(None, b"http/1.1", b"h2")) is h2


def test_two_catch_all_entries_are_tried_in_file_order() -> None:
    first, second = entry("first"), entry("second")

    assert router(first, second).find(tls("a.example")) is first
    assert router(second, first).find(tls("a.example")) is second


def test_alpn_is_compared_in_lower_case() -> None:
    assert router(H2).find(tls(None, b"H2")) is H2


def test_quic_and_tls_entries_are_apart() -> None:
    quic = entry("quic", Protocol.QUIC, names=("a.example",))

    assert router(NAME, quic).find(Match(Protocol.QUIC, "a.example")) is quic
    assert router(NAME, quic).find(tls("a.example")) is NAME


def test_thousands_of_names_are_found() -> None:
    many = [entry(f"r{n}", names=tuple(f"n{n}x{m}.example" for m in range(10))) for n in range(300)]
    routes = router(*many, CATCH_ALL)

    assert routes.find(tls("n299x9.example")) is many[299]
    assert routes.find(tls("n300x0.example")) is CATCH_ALL


def test_entries_that_all_get_traffic_are_not_reported() -> None:
    assert unreachable([CATCH_ALL, H2, NAME, BOTH, entry("ssh", Protocol.SSH), entry("quic", Protocol.QUIC)]) == []


def test_a_second_catch_all_is_unreachable() -> None:
    first, second = entry("first"), entry("second")

    assert unreachable([NAME, first, second]) == [(second, first)]


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.SSH, Protocol.SOCKS5, Protocol.WIREGUARD])
def test_each_further_entry_of_a_protocol_without_filters_is_unreachable(protocol: Protocol) -> None:
    first, second, third = (entry(name, protocol) for name in ("first", "second", "third"))

    assert unreachable([first, CATCH_ALL, second, third]) == [(second, first), (third, first)]


def test_an_entry_of_which_one_name_is_left_is_reachable() -> None:
    assert unreachable([NAME, entry("more", names=NAMES)]) == []
    assert unreachable([BOTH, entry("more", names=("a.example",), alpn=ALPN)]) == []


def test_names_taken_by_several_entries_together_make_an_entry_unreachable() -> None:
    a, bc = entry("a", names=("a.example",)), entry("bc", names=("b.example", "c.example"))
    all_three = entry("all", names=("a.example", "b.example", "c.example"))

    assert unreachable([a, bc, all_three]) == [(all_three, bc)]


def test_the_entry_that_takes_all_is_named_rather_than_one_before_it_that_takes_a_part() -> None:
    wide = entry("wide", alpn=ALPN)
    narrow = entry("narrow", alpn=(b"http/1.1",))

    assert unreachable([H2, wide, narrow]) == [(narrow, wide)]


ENTRIES = st.lists(
    st.builds(
        entry,
        name=st.just("x"),
        protocol=st.sampled_from([Protocol.TLS, Protocol.QUIC, Protocol.SSH]),
        names=st.lists(st.sampled_from(NAMES)).map(tuple),
        alpn=st.lists(st.sampled_from(ALPN)).map(tuple),
    ),
    max_size=6,
)
MATCHES = [
    Match(protocol, name, offered)
    for protocol in (Protocol.TLS, Protocol.QUIC, Protocol.SSH)
    for name in (None, *NAMES, "c.example")
    for offered in ((), (b"h2",), (b"http/1.1",), ALPN, ALPN[::-1], (b"h3",))
]


def in_words(routes: list[Route], match: Match) -> Route | None:
    """The rule as the documentation has it."""
    holding = [
        (-2 * bool(route.server_names) - bool(route.alpn), index)
        for index, route in enumerate(routes)
        if route.protocol is match.protocol
        and (
            match.protocol is Protocol.SSH
            or (
                (not route.server_names or match.server_name in route.server_names)
                and (not route.alpn or not route.alpn.isdisjoint(match.alpn))
            )
        )
    ]
    if match.protocol is Protocol.SSH:
        holding = [(0, index) for _, index in holding]
    return routes[min(holding)[1]] if holding else DEFAULT


@settings(max_examples=30)
@given(ENTRIES)
def test_the_route_found_is_the_one_of_the_rule(routes: list[Route]) -> None:
    table = router(*routes)

    for match in MATCHES:
        assert table.find(match) is in_words(routes, match)


@settings(max_examples=30)
@given(ENTRIES)
def test_unreachable_are_exactly_the_entries_that_are_never_found(routes: list[Route]) -> None:
    table = router(*routes)
    reached = {id(table.find(match)) for match in MATCHES}

    assert [id(route) for route, _ in unreachable(routes)] == [id(r) for r in routes if id(r) not in reached]
    for route, taker in unreachable(routes):
        assert taker.protocol is route.protocol
