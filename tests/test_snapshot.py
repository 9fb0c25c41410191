from __future__ import annotations

from dataclasses import replace

import pytest

from rpxy_l4.snapshot import Bind, KernelPath, LoadBalance, ProxyVersion, Route, Side, Snapshot, Target, covers
from rpxy_l4.verdict import Protocol, Transport


def _route(name: str, protocol: Protocol | None, *targets: Target) -> Route:
    return Route(name=name, transport=Transport.TCP, protocol=protocol, targets=targets)


_LITERAL = Target("127.0.0.1:1", "127.0.0.1", 1, is_name=False)
_NAMED = Target("a.example:1", "a.example", 1, is_name=True)
_OTHER = Target("b.example:1", "b.example", 1, is_name=True)


def test_a_bind_reads_as_an_operator_would_write_it() -> None:
    assert str(Bind(Transport.TCP, "127.0.0.1", 8448)) == "tcp 127.0.0.1:8448"
    assert str(Bind(Transport.UDP, "::", 53)) == "udp [::]:53"


def test_a_wildcard_address_covers_the_addresses_of_its_family() -> None:
    def udp(host: str, port: int = 53) -> Bind:
        return Bind(Transport.UDP, host, port)

    assert covers(udp("0.0.0.0"), udp("127.0.0.1"))
    assert covers(udp("127.0.0.1"), udp("127.0.0.1"))
    assert covers(udp("::"), udp("::1"))
    assert not covers(udp("::"), udp("127.0.0.1"))
    assert not covers(udp("127.0.0.1"), udp("0.0.0.0"))
    assert not covers(udp("0.0.0.0"), udp("127.0.0.1", 54))
    assert not covers(udp("0.0.0.0"), Bind(Transport.TCP, "127.0.0.1", 53))


def test_only_what_some_entry_asks_for_is_wanted() -> None:
    default = _route("default", None, _LITERAL)
    entries = (_route("a", Protocol.TLS, _LITERAL), _route("b", Protocol.TLS, _LITERAL))

    assert Side(transport=Transport.TCP, routes=entries, default=default, series=0, max_sessions=1).wanted == {
        Protocol.TLS
    }
    assert not Side(transport=Transport.TCP, routes=(), default=default, series=0, max_sessions=1).wanted


def test_the_names_of_all_routes_and_defaults_are_to_be_resolved() -> None:
    side = Side(
        transport=Transport.TCP,
        routes=(_route("a", Protocol.SSH, _LITERAL, _NAMED),),
        default=_route("default", None, _OTHER),
        series=0,
        max_sessions=1000,
    )
    snapshot = Snapshot(generation=1, sha256="", listener=":1", binds=(), tcp=side, udp=None)

    assert snapshot.names == {"a.example", "b.example"}


_DEFAULT = replace(_route("default", None, _LITERAL), kernel_path=KernelPath.AUTO)
_SIDE = Side(transport=Transport.TCP, routes=(), default=_DEFAULT, series=0, max_sessions=1000)
_WHOLE = Snapshot(generation=1, sha256="", listener=":1", binds=(), tcp=_SIDE, udp=None)
_V6 = Target("[::1]:1", "::1", 1, is_name=False)


def test_tcp_with_nothing_to_detect_may_go_by_the_kernel() -> None:
    assert _WHOLE.why_tcp_stays is None
    assert _WHOLE.kernel_path is KernelPath.AUTO


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (replace(_WHOLE, tcp=None), "there is no default target"),
        (replace(_WHOLE, tcp=replace(_SIDE, default=None)), "there is no default target"),
        (replace(_WHOLE, tcp=replace(_SIDE, routes=(_route("a", Protocol.TLS, _LITERAL),))), "protocols are detected"),
        (replace(_WHOLE, tcp=replace(_SIDE, default=replace(_DEFAULT, kernel_path=KernelPath.OFF))), "turned off"),
        (replace(_WHOLE, recv_proxy_protocol=True), "PROXY headers"),
        (
            replace(_WHOLE, tcp=replace(_SIDE, default=replace(_DEFAULT, proxy_version=ProxyVersion.V1))),
            "PROXY headers",
        ),
        (replace(_WHOLE, tcp=replace(_SIDE, max_new_per_second=1)), "tcp_max_new_per_second"),
        (replace(_WHOLE, tcp=replace(_SIDE, max_sessions=64)), "tcp_max_connections"),
        (replace(_WHOLE, tcp=replace(_SIDE, default=replace(_DEFAULT, targets=(_NAMED,)))), "by name"),
        (
            replace(
                _WHOLE,
                tcp=replace(_SIDE, default=replace(_DEFAULT, targets=(_LITERAL, _V6), load_balance=LoadBalance.RANDOM)),
            ),
            "several kinds",
        ),
    ],
)
def test_what_needs_user_space_keeps_tcp_there(snapshot: Snapshot, why: str) -> None:
    assert why in (snapshot.why_tcp_stays or "")
    assert snapshot.kernel_path is KernelPath.OFF
