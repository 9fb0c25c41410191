from __future__ import annotations

from typing import Any

import pytest

from rpxy_l4.config.checks import check
from rpxy_l4.config.model import Config
from rpxy_l4.config.positions import Path


def entry(protocol: str, *targets: str, **keys: Any) -> dict[str, Any]:
    return {"protocol": protocol, "target": list(targets) or ["a:1"], **keys}


def findings(*broken: Path, **keys: Any) -> list[tuple[Path, str]]:
    return list(check(Config.model_validate({"listen_port": 8448, **keys}), frozenset(broken)))


NOTHING = ((), "nothing to forward to; give tcp_target, udp_target or a [protocols.NAME] table")


@pytest.mark.parametrize("keys", [{"tcp_target": ["a:1"]}, {"udp_target": ["a:1"]}, {"protocol": {"x": entry("ssh")}}])
def test_one_target_is_enough(keys: dict[str, Any]) -> None:
    assert findings(**keys) == []


def test_there_must_be_something_to_forward_to() -> None:
    assert findings() == [NOTHING]


@pytest.mark.parametrize("broken", [("tcp_target",), ("protocols", "x"), ("protocl",)])
def test_nothing_to_forward_to_is_not_said_while_a_target_may_only_be_misspelled(broken: Path) -> None:
    assert findings(broken) == []


def test_filters_are_for_tls_and_quic() -> None:
    for protocol in ("tls", "quic"):
        assert findings(protocols={"x": entry(protocol, server_names=["a"], alpn=["h2"])}) == []
    for protocol in ("http", "ssh", "socks5", "wireguard"):
        message = f'only "tls" and "quic" can be told apart by this, not "{protocol}"'
        assert findings(protocols={"x": entry(protocol, server_names=[], alpn=[])}) == []
        assert findings(protocols={"x": entry(protocol, server_names=["a"], alpns=["h2"])}) == [
            (("protocols", "x", "server_names"), message),
            (("protocols", "x", "alpns"), message),
        ]


def test_an_entry_has_one_spelling_of_alpn() -> None:
    assert findings(protocols={"x": entry("tls", alpn=["h2"], alpns=["h2"])}) == [
        (("protocols", "x", "alpns"), 'this is another spelling of "alpn", which is given too; keep one of them')
    ]


def test_keys_of_udp_on_tcp_and_of_tcp_on_udp_are_without_effect() -> None:
    assert findings(protocols={"x": entry("ssh", idle_lifetime=5), "y": entry("quic", send_proxy_protocol="v1")}) == []


def test_what_is_recognised_in_tcp_cannot_be_made_to_stay_in_the_kernel() -> None:
    assert findings(protocols={"x": entry("ssh", kernel_path="auto"), "y": entry("quic", kernel_path="on")}) == []
    assert findings(protocols={"x": entry("ssh", kernel_path="on")}) == [
        (("protocols", "x", "kernel_path"), '"ssh" is recognised in user space, and stays there')
    ]


def test_a_name_stands_for_one_entry() -> None:
    found = findings(protocols={"x": entry("ssh")}, protocol={"x": entry("http")})

    assert found == [(("protocol", "x"), "there is an entry of this name under protocols too")]


def test_a_name_in_both_tables_is_pointed_at_once_even_when_nothing_can_reach_it() -> None:
    assert len(findings(protocols={"x": entry("ssh")}, protocol={"x": entry("ssh")})) == 1


def test_ttls_are_in_order() -> None:
    assert findings(tcp_target=["a:1"], dns_cache_min_ttl="30s", dns_cache_max_ttl="30s") == []
    assert findings(tcp_target=["a:1"], dns_cache_min_ttl="2h") == []
    assert findings(tcp_target=["a:1"], dns_cache_max_ttl="1s") == []
    assert findings(tcp_target=["a:1"], dns_cache_min_ttl="31s", dns_cache_max_ttl="30s") == [
        (("dns_cache_min_ttl",), "must not be greater than dns_cache_max_ttl")
    ]


def test_proxy_headers_are_believed_of_somebody() -> None:
    keys: dict[str, Any] = {"tcp_target": ["a:1"], "tcp_recv_proxy_protocol": True}

    assert findings(**keys, tcp_trusted_proxies=["10.0.0.0/8"]) == []
    assert findings(tcp_target=["a:1"], tcp_trusted_proxies=[]) == []
    assert findings(**keys, tcp_trusted_proxies=[]) == [
        (("tcp_trusted_proxies",), "must not be empty while tcp_recv_proxy_protocol is on")
    ]
    assert findings(**keys) == [
        (("tcp_recv_proxy_protocol",), "needs tcp_trusted_proxies: whose headers are to be believed?")
    ]
    assert findings(("tcp_trusted_proxies", 0), **keys) == []


@pytest.mark.parametrize("protocol", ["http", "ssh", "socks5", "wireguard", "tls", "quic"])
def test_of_two_entries_that_take_the_same_the_second_is_an_error(protocol: str) -> None:
    found = findings(protocols={"x": entry(protocol), "y": entry(protocol)})

    assert found == [(("protocols", "y"), 'no traffic can reach this entry: "x" takes all of it')]


def test_the_entry_that_takes_the_traffic_may_stand_in_the_other_table() -> None:
    found = findings(protocol={"x": entry("ssh")}, protocols={"y": entry("ssh")})

    assert found == [(("protocol", "x"), 'no traffic can reach this entry: "y" takes all of it')]


def test_entries_with_different_filters_are_all_reachable() -> None:
    protocols = {
        "rest": entry("tls"),
        "name": entry("tls", server_names=["a.example"]),
        "alpn": entry("tls", alpn=["h2"]),
        "both": entry("tls", server_names=["a.example"], alpn=["h2"]),
        "quic": entry("quic"),
    }

    assert findings(protocols=protocols) == []


def test_an_entry_with_a_fault_of_its_own_is_not_said_to_take_the_traffic() -> None:
    protocols = {"x": entry("tls"), "y": entry("tls")}

    assert findings(("protocols", "x", "servr_names"), protocols=protocols) == []


def test_the_sockets_of_a_worker_fit_one_message() -> None:
    v4 = [f"10.0.0.{i}" for i in range(100)]
    v6 = [f"2001:db8::{i:x}" for i in range(100)]
    both: dict[str, Any] = {"tcp_target": ["a:1"], "udp_target": ["a:1"]}

    assert findings(listen_address_v4=v4, listen_address_v6=v6, tcp_target=["a:1"]) == []
    assert findings(listen_address_v4=v4, **both) == []
    assert [path for path, _ in findings(listen_address_v4=v4, listen_address_v6=v6, **both)] == [
        ("listen_address_v4",)
    ]


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({}, "127.0.0.1:8448"),
        ({}, "0.0.0.0:8448"),
        ({"listen_address_v4": "192.0.2.1"}, "192.0.2.1:8448"),
        ({"listen_ipv6": True}, "[::1]:8448"),
        ({"listen_address_v6": "2001:db8::1"}, "[2001:db8::1]:8448"),
    ],
)
def test_a_target_that_is_the_proxy_itself_is_an_error(keys: dict[str, Any], target: str) -> None:
    message = f'"{target}" is where the proxy itself listens; it would connect to itself for ever'

    assert findings(**keys, tcp_target=["a:1", target]) == [(("tcp_target", 1), message)]
    assert findings(**keys, udp_target=[target]) == [(("udp_target", 0), message)]
    assert findings(**keys, protocols={"x": entry("quic", target)}) == [(("protocols", "x", "target", 0), message)]


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({}, "127.0.0.1:8449"),
        ({}, "192.0.2.1:8448"),
        ({}, "[::1]:8448"),
        ({}, "localhost:8448"),
        ({"listen_address_v4": "192.0.2.1"}, "127.0.0.1:8448"),
        ({"listen_address_v4": "127.0.0.1"}, "127.0.0.2:8448"),
    ],
)
def test_a_target_that_may_be_somebody_else_is_none(keys: dict[str, Any], target: str) -> None:
    assert findings(**keys, tcp_target=[target]) == []


def test_the_admin_address_is_not_the_listener() -> None:
    admin = {"listen": "127.0.0.1:8448"}

    assert findings(tcp_target=["a:1"], admin=admin) == [
        (("admin", "listen"), "this is where the proxy itself listens")
    ]
    assert findings(udp_target=["a:1"], admin=admin) == []
    assert findings(tcp_target=["a:1"], admin={"listen": ""}) == []
    assert findings(("listen_port",), tcp_target=["a:1"], admin=admin) == []
