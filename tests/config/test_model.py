from __future__ import annotations

import math
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from rpxy_l4.addresses import parse_endpoint
from rpxy_l4.config.model import Admin, Config, Entry, contains_all
from rpxy_l4.snapshot import AtLimit, KernelPath, LoadBalance, OnRouteRemoved, OnSupervisorLoss, ProxyVersion
from rpxy_l4.verdict import Protocol


def config(**keys: Any) -> Config:
    return Config.model_validate({"listen_port": 8448, **keys})


def entry(**keys: Any) -> Entry:
    return Entry.model_validate({"protocol": "tls", "target": ["a:1"], **keys})


def test_every_key_but_the_port_has_a_default() -> None:
    assert config().model_dump() == {
        "listen_port": 8448,
        "listen_address_v4": ("0.0.0.0",),
        "listen_address_v6": (),
        "listen_ipv6": False,
        "tcp_backlog": 1024,
        "tcp_max_connections": 1024,
        "tcp_max_new_per_second": 0,
        "tcp_at_limit": AtLimit.RESET,
        "tcp_balance_workers": False,
        "udp_max_connections": 2048,
        "udp_max_new_per_second": 0,
        "tcp_target": (),
        "udp_target": (),
        "tcp_load_balance": LoadBalance.NONE,
        "udp_load_balance": LoadBalance.NONE,
        "udp_idle_lifetime": 30.0,
        "dns_cache_min_ttl": 30.0,
        "dns_cache_max_ttl": 3600.0,
        "tcp_send_proxy_protocol": None,
        "tcp_recv_proxy_protocol": False,
        "tcp_trusted_proxies": (),
        "tcp_detect_timeout": 3.0,
        "tcp_connect_timeout": 5.0,
        "drain_timeout": 30.0,
        "kernel_path": KernelPath.AUTO,
        "on_route_removed": OnRouteRemoved.KEEP,
        "on_supervisor_loss": OnSupervisorLoss.DRAIN,
        "workers": "auto",
        "slots": "auto",
        "watch": True,
        "access_log": True,
        "admin": {
            "listen": {"text": "127.0.0.1:9448", "host": "127.0.0.1", "port": 9448, "is_name": False},
            "control": "",
        },
        "protocols": {},
        "protocol": {},
    }
    assert entry().model_dump(exclude={"target"}) == {
        "protocol": Protocol.TLS,
        "load_balance": LoadBalance.NONE,
        "idle_lifetime": 30.0,
        "server_names": (),
        "alpn": (),
        "alpns": (),
        "send_proxy_protocol": None,
        "kernel_path": None,
    }


def test_an_address_to_listen_on_is_a_string_or_an_array() -> None:
    assert config(listen_address_v4="127.0.0.1").listen_address_v4 == ("127.0.0.1",)
    assert config(listen_address_v4=["127.0.0.1", "192.0.2.1"]).listen_address_v4 == ("127.0.0.1", "192.0.2.1")
    assert config(listen_address_v6="[::1]").listen_address_v6 == ("::1",)
    assert config(listen_address_v6=["::1", "[2001:DB8::1]"]).listen_address_v6 == ("::1", "2001:db8::1")


def test_an_address_given_twice_counts_once() -> None:
    assert config(listen_address_v4=["127.0.0.1", "127.0.0.1"]).listen_address_v4 == ("127.0.0.1",)
    assert config(listen_address_v4=["0.0.0.0", "0.0.0.0"]).listen_address_v4 == ("0.0.0.0",)
    assert config(listen_address_v6=["::1", "[0::1]"]).listen_address_v6 == ("::1",)


def test_ipv6_is_listened_on_where_an_address_or_the_flag_says_so() -> None:
    assert config().addresses == ("0.0.0.0",)
    assert config(listen_ipv6=True).addresses == ("0.0.0.0", "::")
    assert config(listen_address_v6="::1").addresses == ("0.0.0.0", "::1")
    assert config(listen_address_v6="::1", listen_ipv6=False).addresses == ("0.0.0.0", "::1")
    assert config(listen_address_v6="::1", listen_ipv6=True).addresses == ("0.0.0.0", "::1")


def test_the_wildcards_are_known() -> None:
    assert [contains_all(address) for address in ("0.0.0.0", "::", "127.0.0.1", "::1")] == [True, True, False, False]


def test_both_spellings_of_the_table_of_routes_are_read() -> None:
    one, two = {"protocol": "ssh", "target": ["a:1"]}, {"protocol": "http", "target": ["b:1"]}

    assert list(config(protocols={"one": one, "two": two}).entries) == ["one", "two"]
    assert list(config(protocol={"one": one, "two": two}).entries) == ["one", "two"]
    assert list(config(protocol={"one": one}, protocols={"two": two}).entries) == ["two", "one"]


def test_both_spellings_of_the_alpn_filter_are_read() -> None:
    assert entry(alpn=["h2", "HTTP/1.1"]).alpn_filter == {b"h2", b"http/1.1"}
    assert entry(alpns=["h2"]).alpn_filter == {b"h2"}
    assert entry(alpn=[]).alpn_filter == frozenset()
    assert entry().alpn_filter == frozenset()


def test_server_names_are_lower_case() -> None:
    assert entry(server_names=["WWW.Example.com"]).server_names == ("www.example.com",)


@pytest.mark.parametrize(
    ("written", "version"),
    [("none", None), ("v1", "v1"), ("V2", "v2"), ("1", "v1"), ("2", "v2"), ("NONE", None)],
)
def test_a_proxy_protocol_version_has_two_spellings_and_any_case(written: str, version: str | None) -> None:
    expected = ProxyVersion(version) if version else None

    assert config(tcp_send_proxy_protocol=written).tcp_send_proxy_protocol is expected
    assert entry(send_proxy_protocol=written).send_proxy_protocol is expected


def test_an_idle_lifetime_of_zero_is_for_ever() -> None:
    assert config(udp_idle_lifetime=0).udp_idle_lifetime == math.inf
    assert entry(idle_lifetime="0s").idle_lifetime == math.inf
    assert entry(idle_lifetime=90).idle_lifetime == 90.0
    assert entry(idle_lifetime="2min").idle_lifetime == 120.0


def test_trusted_proxies_are_networks_or_addresses() -> None:
    proxies = config(tcp_trusted_proxies=["10.0.0.0/8", "::1", "10.1.1.1/16"]).tcp_trusted_proxies

    assert proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"), ip_network("10.1.0.0/16"))


def test_workers_are_a_number_or_auto() -> None:
    assert config(workers=1).workers == 1
    assert config(workers=256).workers == 256
    assert config(workers="auto").workers == "auto"


def test_an_empty_admin_address_turns_it_off() -> None:
    assert config(admin={"listen": ""}).admin.listen is None
    assert config(admin={}).admin.listen == parse_endpoint("127.0.0.1:9448")
    assert config(admin={"listen": "[::1]:80"}).admin.listen == parse_endpoint("[::1]:80")


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().listen_port = 1  # type: ignore[misc]


def test_every_key_says_what_it_means() -> None:
    for table in (Config, Entry, Admin):
        for name, field in table.model_fields.items():
            assert field.description, name
