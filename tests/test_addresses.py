from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.addresses import Endpoint, is_host_name, parse_endpoint, parse_ip, parse_network, parse_server_name


@pytest.mark.parametrize(
    ("text", "host", "port", "is_name"),
    [
        ("1.2.3.4:80", "1.2.3.4", 80, False),
        ("[::1]:80", "::1", 80, False),
        ("[2001:DB8:0::1]:65535", "2001:db8::1", 65535, False),
        ("example.com:1", "example.com", 1, True),
        ("Example.COM:1", "example.com", 1, True),
        ("my_app:80", "my_app", 80, True),
        ("_sip._udp.example.com:80", "_sip._udp.example.com", 80, True),
        ("localhost:80", "localhost", 80, True),
        ("example.com.:80", "example.com.", 80, True),
        ("4chan.org:080", "4chan.org", 80, True),
        ("a--b.x:80", "a--b.x", 80, True),
    ],
)
def test_an_endpoint_is_an_address_or_a_name_with_a_port(text: str, host: str, port: int, *, is_name: bool) -> None:
    assert parse_endpoint(text) == Endpoint(text, host, port, is_name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no port"),
        ("example.com", "has no port"),
        ("1.2.3.4", "has no port"),
        (":80", "has no host"),
        ("::1:80", "in brackets"),
        ("::1", "in brackets"),
        ("http://example.com:80", "in brackets"),
        ("[::1]", "no legal port"),
        ("example.com:", "no legal port"),
        ("example.com:0", "no legal port"),
        ("example.com:65536", "no legal port"),
        ("example.com:-1", "no legal port"),
        ("example.com:+1", "no legal port"),
        ("example.com:8o", "no legal port"),
        ("example.com:٨", "no legal port"),
        ("example.com:" + "9" * 5000, "no legal port"),
        ("[::1:80", "not an IPv6 address"),
        ("[1.2.3.4]:80", "is an IPv4 address"),
        ("[example.com]:80", "not an IPv6 address"),
        ("[fe80::1%eth0]:80", "zone id"),
        ("256.1.1.1:80", "not an IPv4 address"),
        ("1.2.3:80", "not an IPv4 address"),
        ("8080:80", "not an IPv4 address"),
        ("01.2.3.4:80", "not an IPv4 address"),
        ("a b:80", "no legal host"),
        ("-a:80", "no legal host"),
        ("a-:80", "no legal host"),
        (".a:80", "no legal host"),
        ("a..b:80", "no legal host"),
        ("a..:80", "no legal host"),
        (".:80", "no legal host"),
        ("a\n:80", "no legal host"),
        ("*.a:80", "no legal host"),
        ("x" * 64 + ":80", "no legal host"),
        (".".join(["x" * 63] * 4) + ":80", "no legal host"),
        ("bücher.example:80", 'did you mean "xn--bcher-kva.example"'),
    ],
)
def test_a_wrong_endpoint_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_endpoint(text)


def test_an_ip_literal_is_brought_into_canonical_form() -> None:
    assert parse_ip("127.0.0.1") == "127.0.0.1"
    assert parse_ip("0:0::1") == "::1"
    assert parse_ip("[::1]", 6) == "::1"
    assert parse_ip("1.2.3.4", 4) == "1.2.3.4"


@pytest.mark.parametrize(
    ("text", "version", "message"),
    [
        ("::1", 4, "is an IPv6 address, expected IPv4"),
        ("1.2.3.4", 6, "is an IPv4 address, expected IPv6"),
        ("[1.2.3.4]", 4, "is not an IPv4 address"),
        ("localhost", None, "is not an IP address"),
        ("", 4, "is not an IPv4 address"),
        ("[]", 6, "is not an IPv6 address"),
        ("[[::1]]", 6, "is not an IPv6 address"),
        ("::1/128", 6, "is not an IPv6 address"),
        ("fe80::1%1", 6, "zone id"),
        (" 1.2.3.4", 4, "is not an IPv4 address"),
    ],
)
def test_a_wrong_ip_literal_is_refused(text: str, version: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_ip(text, version)


def test_a_network_is_a_prefix_or_a_single_address() -> None:
    assert parse_network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert parse_network("10.1.2.3/8") == ipaddress.ip_network("10.0.0.0/8")
    assert parse_network("192.0.2.7") == ipaddress.ip_network("192.0.2.7/32")
    assert parse_network("2001:db8::/32") == ipaddress.ip_network("2001:db8::/32")
    assert parse_network("::1") == ipaddress.ip_network("::1/128")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/-1",
        "a/8",
        "10/8",
        "fe80::%1/64",
        "1.2.3.4/8/8",
    ],
)
def test_a_wrong_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network"):
        parse_network(text)


def test_a_server_name_is_a_host_name_in_lower_case() -> None:
    assert parse_server_name("Shop.Example.COM") == "shop.example.com"
    assert parse_server_name("localhost") == "localhost"
    assert parse_server_name("a_b.example.com") == "a_b.example.com"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*.example.com", "wildcard"),
        ("example.com.", 'did you mean "example.com"'),
        ("192.0.2.1", "is an IP address"),
        ("::1", "is an IP address"),
        ("bücher.example", 'did you mean "xn--bcher-kva.example"'),
        ("", "not a legal host name"),
        (" ", "not a legal host name"),
        ("example.com:443", "not a legal host name"),
        ("a..b", "not a legal host name"),
        ("1.2.3", "not a legal host name"),
    ],
)
def test_a_wrong_server_name_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_server_name(text)


def test_host_names_have_bounds() -> None:
    longest = ".".join(["x" * 63] * 3 + ["x" * 61])

    assert len(longest) == 253
    assert is_host_name(longest)
    assert not is_host_name(longest + "x")
    assert not is_host_name("x" * 64)
    assert not is_host_name("")


@given(st.one_of(st.text(), st.text(alphabet="0123456789abcdef.:[]%/-_*", max_size=40)))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for read in (parse_endpoint, parse_ip, parse_network, parse_server_name):
        with contextlib.suppress(ValueError):
            read(text)


@given(st.ip_addresses(), st.integers(min_value=1, max_value=65535))
def test_every_ip_address_with_a_port_is_an_endpoint(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    text = f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"

    assert parse_endpoint(text) == Endpoint(text, str(address), port, is_name=False)
