"""Invariant: for any bytes, parse_client_hello returns a hello or None, and never raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.client_hello import MAX_BODY, MIN_BODY, ClientHello, parse_client_hello
from tests.support.hellos import alpn, body, body_of, extension, key_share, openssl_hello, sni
from tests.support.prefixes import mutated

NOTHING = ClientHello(None, ())
FULL = body(
    extension(0x2A2A, b""),
    sni(b"one.example"),
    extension(0xFE0D, b"\0" + bytes(30)),
    alpn(b"h2", b"http/1.1"),
    session_id=bytes(32),
    ciphers=bytes(range(40)),
)


def test_what_openssl_sends_is_understood() -> None:
    hello = parse_client_hello(body_of(openssl_hello("www.example.org", ["h2", "http/1.1"])))

    assert hello == ClientHello("www.example.org", (b"h2", b"http/1.1"))


def test_openssl_without_a_name_and_alpn_has_none() -> None:
    assert parse_client_hello(body_of(openssl_hello())) == NOTHING


def test_a_bytearray_is_read_like_bytes() -> None:
    hello = parse_client_hello(bytearray(FULL))

    assert hello == ClientHello("one.example", (b"h2", b"http/1.1"))
    assert all(type(name) is bytes for name in hello.alpn)


def test_a_hello_may_have_no_extensions_at_all() -> None:
    assert parse_client_hello(body(has_extensions=False)) == NOTHING
    assert len(body(has_extensions=False)) == MIN_BODY


def test_the_list_of_extensions_may_be_empty() -> None:
    assert parse_client_hello(body()) == NOTHING


def test_the_greatest_hello_is_understood() -> None:
    filler = extension(21, bytes(65_535 - 4))
    greatest = body(filler, session_id=bytes(32), ciphers=bytes(65_534), compressions=bytes(255))

    assert len(greatest) == MAX_BODY
    assert parse_client_hello(greatest) == NOTHING


def test_a_post_quantum_key_share_hides_nothing() -> None:
    hello = body(key_share(1216), sni(b"pq.example"), alpn(b"h3"))

    assert parse_client_hello(hello) == ClientHello("pq.example", (b"h3",))


@pytest.mark.parametrize("content", [b"", b"\0", b"\1", b"\xff" * 3, bytes(200)])
def test_an_ech_extension_may_contain_anything(content: bytes) -> None:
    hello = body(extension(0xFE0D, content), sni(b"outer.example"))

    assert parse_client_hello(hello) == ClientHello("outer.example", ())


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        (b"example.org", "example.org"),
        (b"WWW.Example.ORG", "www.example.org"),
        (b"my_app-1", "my_app-1"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
        (b".".join([b"a" * 63] * 3 + [b"a" * 61]), ".".join(["a" * 63] * 3 + ["a" * 61])),
        (b".".join([b"a" * 63] * 3 + [b"a" * 62]), None),
        (b"a" * 64 + b".example", None),
        (b"example.org.", None),
        (b".example.org", None),
        (b"a..b", None),
        (b"exam\0ple.org", None),
        (b"example.org\0", None),
        (b"example.org\n", None),
        (b"exa mple.org", None),
        (b"b\xc3\xbccher.example", None),
        (b"[::1]", None),
        (b"*.example.org", None),
        (b"", None),
    ],
)
def test_a_server_name_is_lower_case_and_only_a_legal_one_counts(sent: bytes, understood: str | None) -> None:
    assert parse_client_hello(body(sni(sent))) == ClientHello(understood, ())


def test_a_name_of_another_type_is_passed_over() -> None:
    assert parse_client_hello(body(sni(b"one.example", kind=1))) == NOTHING


def test_of_two_host_names_neither_counts() -> None:
    assert parse_client_hello(body(sni(b"one.example", b"two.example"))) == NOTHING


def test_alpn_names_keep_their_case_and_order() -> None:
    hello = parse_client_hello(body(alpn(b"\x0a\x0a", b"H2", b"http/1.1")))

    assert hello == ClientHello(None, (b"\x0a\x0a", b"H2", b"http/1.1"))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        body(has_extensions=False)[:-1],
        body(version=0x0300),
        body(session_id=bytes(33)),
        body(ciphers=b""),
        body(ciphers=b"\x13\x01\x13"),
        body(compressions=b""),
        body() + b"\0",
        body()[:-1],
        body(has_extensions=False) + b"\0",
        body(has_extensions=False) + b"\xff\xff" + extension(21, b""),
        body(extension(21, b"")[:-1]),
        body(b"\0\x15\0\x09filler"),
        body(extension(0, b"")),
        body(extension(0, b"\0\0")),
        body(extension(0, b"\0\x05\0\0\x03on")),
        body(extension(0, b"\0\x04\0\0\x02on")),
        body(extension(0, b"\0\x06\0\0\x02on\0")),
        body(sni(b"one.example"), sni(b"one.example")),
        body(extension(16, b"")),
        body(extension(16, b"\0\0")),
        body(extension(16, b"\0\x01\0")),
        body(alpn(b"h2", b"")),
        body(extension(16, b"\0\x03\x03h2")),
        body(extension(16, b"\0\x04\x02h2")),
        body(alpn(b"h2"), alpn(b"h2")),
    ],
)
def test_what_does_not_nest_exactly_is_refused(wrong: bytes) -> None:
    assert parse_client_hello(wrong) is None


def test_every_prefix_but_the_one_before_the_extensions_is_refused() -> None:
    before_extensions = 2 + 32 + 1 + 32 + 2 + 40 + 1 + 1

    assert [n for n in range(len(FULL)) if parse_client_hello(FULL[:n]) is not None] == [before_extensions]


@settings(max_examples=60)
@given(st.binary(max_size=300) | mutated([FULL, body_of(openssl_hello("a.example", ["h2"]))]))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    hello = parse_client_hello(data)

    assert hello is None or all(hello.alpn)
