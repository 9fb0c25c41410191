from __future__ import annotations

from rpxy_l4.snapshot import Bind, Route, Side, Snapshot, Target, covers
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
        max_sessions=1,
    )
    snapshot = Snapshot(generation=1, sha256="", listener=":1", binds=(), tcp=side, udp=None)

    assert snapshot.names == {"a.example", "b.example"}
