"""Invariant: for any bytes, the probe returns a verdict; one that saw a part before answers like a fresh one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.tls import FIRST_BYTES, TlsProbe, probe_tls
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict
from tests.support.hellos import (
    RECORD_HEADER,
    alpn,
    body,
    extension,
    flight,
    key_share,
    message,
    openssl_hello,
    record,
    records,
    sni,
)
from tests.support.prefixes import at_every_length, decided_at, mutated, pieces

OPENSSL = openssl_hello("www.example.org", ["h2", "http/1.1"])
OPENSSL_MATCH = Match(Protocol.TLS, "www.example.org", (b"h2", b"http/1.1"))
SMALL = message(body(sni(b"a.example")))
SMALL_MATCH = Match(Protocol.TLS, "a.example")
CCS = record(b"\x01", kind=20)
# An ECH extension of no bytes and a record version of TLS 1.0.
EMPTY_ECH = bytes.fromhex(
    "160301003a010000360303" + bytes(range(32)).hex() + "0000021301" + "0100" + "000b" + "fe0d0000" + "002b0003020304"
)


def test_openssl_is_recognised_by_its_whole_hello_and_not_before() -> None:
    verdicts = at_every_length(probe_tls, OPENSSL)

    assert decided_at(verdicts) == len(OPENSSL)
    assert verdicts[-1] == OPENSSL_MATCH


def test_a_hello_in_one_record_is_asked_for_in_few_steps() -> None:
    steps = [0]
    while isinstance(verdict := probe_tls(OPENSSL[: steps[-1]], False), NeedMore):
        steps.append(verdict.total)

    assert steps == [0, 1, 2, 3, 4, 5, 6, 9, len(OPENSSL)]


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (4,), (5,), (1, 5, 1000), (30, 7), (16_384,)])
def test_the_cut_into_records_does_not_matter(sizes: tuple[int, ...]) -> None:
    data = records(SMALL, *sizes)

    verdicts = at_every_length(probe_tls, data)

    assert decided_at(verdicts) == len(data)
    assert verdicts[-1] == SMALL_MATCH


def test_a_real_hello_in_records_of_one_five_and_the_rest_is_recognised() -> None:
    assert probe_tls(records(OPENSSL[RECORD_HEADER:], 1, 5, 16_384), False) == OPENSSL_MATCH


def test_a_real_hello_in_records_of_one_byte_is_recognised() -> None:
    assert probe_tls(records(OPENSSL[RECORD_HEADER:], 1), False) == OPENSSL_MATCH


@pytest.mark.parametrize("size", [1216, 1568 + 64, 4096])
def test_post_quantum_key_shares_fit(size: int) -> None:
    data = flight(key_share(size), sni(b"pq.example"), alpn(b"h2"))

    verdicts = at_every_length(probe_tls, data)

    assert decided_at(verdicts) == len(data)
    assert verdicts[-1] == Match(Protocol.TLS, "pq.example", (b"h2",))


def test_what_follows_the_hello_is_not_looked_at() -> None:
    early_data = record(bytes(50), kind=23, version=0x0303)

    verdicts = at_every_length(probe_tls, record(SMALL) + CCS + early_data + b"anything")

    assert decided_at(verdicts) == len(record(SMALL))
    assert verdicts[-1] == SMALL_MATCH


def test_what_follows_the_hello_in_its_record_is_not_looked_at() -> None:
    assert probe_tls(record(SMALL + b"\x0bmore"), False) == SMALL_MATCH


def test_change_cipher_spec_between_the_pieces_is_skipped() -> None:
    data = record(SMALL[:20]) + CCS + CCS + record(SMALL[20:])

    verdicts = at_every_length(probe_tls, data)

    assert decided_at(verdicts) == len(data)
    assert verdicts[-1] == SMALL_MATCH


def test_a_hello_with_an_empty_ech_extension_is_tls() -> None:
    assert at_every_length(probe_tls, EMPTY_ECH)[-1] == Match(Protocol.TLS)


@pytest.mark.parametrize("hello", [body(has_extensions=False), body(), body(version=0x0301), body(sni(b"a.example."))])
def test_a_hello_without_a_name_to_route_by_is_tls(hello: bytes) -> None:
    assert at_every_length(probe_tls, record(message(hello)))[-1] == Match(Protocol.TLS)


def test_a_hello_of_128_kib_is_understood_when_all_of_it_is_there() -> None:
    hello = body(sni(b"a.example"), extension(21, bytes(65_000)), ciphers=bytes(65_534))

    assert probe_tls(records(message(hello), 16_384), False) == SMALL_MATCH


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"GET / HTTP/1.1\r\n", 1),
        (b"\x80\x2e\x01\x00\x02", 1),
        (CCS + record(SMALL), 1),
        (b"\x16\xfe\xff", 2),
        (b"\x16\x03\x05", 3),
        (b"\x16\x03\x01\x00\x00", 5),
        (b"\x16\x03\x01\x40\x01", 5),
        (record(b"\x02" + SMALL[1:]), 6),
        (record(b"\x01\x00\x00\x28"), 9),
        (record(b"\x01\x02\x01\x45"), 9),
        (record(message(body(sni(b"a.example")) + b"\0")), len(record(SMALL)) + 1),
        (record(SMALL[:20]) + record(b"\x01", kind=23), 26),
        (record(SMALL[:20]) + record(b"\x02\x28", kind=21), 26),
        (record(SMALL[:20]) + record(b"\x01\x01", kind=20), 30),
        (record(SMALL[:20]) + record(b""), 30),
    ],
)
def test_something_else_is_refused_as_soon_as_it_shows(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_tls, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] is NO_MATCH


def test_only_the_first_bytes_listed_are_not_refused() -> None:
    assert [n for n in range(256) if probe_tls(bytes([n]), False) != NO_MATCH] == list(FIRST_BYTES)


def ask_in_pieces(parts: list[bytes]) -> list[Verdict]:
    probe, data = TlsProbe(), b""
    verdicts = []
    for part in parts:
        data += part
        verdicts.append(probe(data, False))
    return verdicts


@settings(max_examples=50)
@given(st.data())
def test_a_probe_that_saw_a_part_before_answers_like_a_fresh_one(draw: st.DataObject) -> None:
    good = records(SMALL, 7, 1, 2, 30) + CCS
    data = draw.draw(st.just(good) | mutated([good, record(SMALL[:9]) + CCS + record(SMALL[9:])]))
    parts = draw.draw(pieces(data))

    fresh = [probe_tls(b"".join(parts[: n + 1]), False) for n in range(len(parts))]

    assert ask_in_pieces(parts) == fresh


def test_records_that_were_whole_are_not_walked_again() -> None:
    data = records(SMALL, 1)
    probe = TlsProbe()
    probe(data[:60], False)
    unreadable = bytes(60) + data[60:]

    assert probe(unreadable, False) == SMALL_MATCH


@given(st.binary(max_size=200) | st.binary(max_size=100).map(record) | mutated([OPENSSL, EMPTY_ECH, records(SMALL, 9)]))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    verdict = probe_tls(data, False)

    assert isinstance(verdict, NeedMore) is (verdict != probe_tls(data, True))
    if isinstance(verdict, NeedMore):
        assert verdict.total > len(data)
