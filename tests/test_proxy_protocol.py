"""Invariant: for any bytes, parse returns a header, NeedMore or NoMatch; what build makes, parse understands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.proxy_protocol import Header, build, parse
from rpxy_l4.snapshot import ProxyVersion
from rpxy_l4.verdict import NO_MATCH, NeedMore, NoMatch
from tests.support.prefixes import assert_honest, decided_at, mutated

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
SOURCE = ("192.0.2.1", 56_324)
DESTINATION = ("198.51.100.2", 443)
SOURCE6 = ("2001:db8::1", 56_324)
DESTINATION6 = ("2001:db8::2", 443)
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
V2_TCP4 = bytes.fromhex("c0000201 c6336402 dc04 01bb")
V2_TCP6 = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002 dc04 01bb")
TLV = bytes.fromhex("04 0003 000000")


def v2(family: int, rest: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


def at_every_length(data: bytes) -> list[Header | NeedMore | NoMatch]:
    answers = [parse(data[:length]) for length in range(len(data) + 1)]
    assert_honest(answers)
    assert parse(bytearray(data)) == answers[-1]
    return answers


@pytest.mark.parametrize(
    ("header", "source", "destination"),
    [
        (V1, SOURCE, DESTINATION),
        (b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 56324 443\r\n", SOURCE6, DESTINATION6),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 56324 443\r\n", SOURCE, DESTINATION),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", ("0.0.0.0", 0), ("255.255.255.255", 65_535)),
        (b"PROXY UNKNOWN\r\n", None, None),
        (b"PROXY UNKNOWN ffff:f...f:ffff anything 65535 65535\r\n", None, None),
        (v2(0x11, V2_TCP4), SOURCE, DESTINATION),
        (v2(0x12, V2_TCP4), SOURCE, DESTINATION),
        (v2(0x11, V2_TCP4 + TLV), SOURCE, DESTINATION),
        (v2(0x21, V2_TCP6), SOURCE6, DESTINATION6),
        (v2(0x21, V2_TCP6 + TLV), SOURCE6, DESTINATION6),
        (
            v2(0x21, bytes.fromhex("00000000000000000000ffff c0000201" * 2) + bytes(4)),
            ("192.0.2.1", 0),
            ("192.0.2.1", 0),
        ),
        (v2(0x00, b""), None, None),
        (v2(0x00, TLV), None, None),
        (v2(0x31, bytes(216)), None, None),
        (v2(0x00, b"", command=0x20), None, None),
        (v2(0x11, V2_TCP4, command=0x20), None, None),
        (v2(0x11, b"", command=0x20), None, None),
        (v2(0xFF, b"?", command=0x20), None, None),
    ],
)
def test_a_header_is_understood_at_its_end_whatever_follows(
    header: bytes, source: tuple[str, int] | None, destination: tuple[str, int] | None
) -> None:
    answers = at_every_length(header + b"PROXY GET /\r\n")

    assert decided_at(answers) == len(header)
    assert answers[-1] == Header(len(header), source, destination)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"GET / HTTP/1.1\r\n", 1),
        (b"PROPFIND /", 4),
        (b"\r\n\r\n\r\n", 5),
        (b"PROXY TCP5 ", 10),
        (b"PROXY  TCP4", 7),
        (b"PROXY UDP4 ", 8),
        (b"proxy TCP4", 1),
        (V1.replace(b"192.0.2.1", b"192.0.2.256"), len(V1) + 2),
        (V1.replace(b"192.0.2.1", b"192.0.2.01"), len(V1) + 1),
        (V1.replace(b"192.0.2.1", b"2001:db8::1"), len(V1) + 2),
        (V1.replace(b"TCP4", b"TCP6"), len(V1)),
        (V1.replace(b"443", b"65536"), len(V1) + 2),
        (V1.replace(b"443", b"0443"), len(V1) + 1),
        (V1.replace(b"443", b"+443"), len(V1) + 1),
        (V1.replace(b" 443", b""), len(V1) - 4),
        (V1.replace(b" 443", b"  443"), len(V1) + 1),
        (V1.replace(b" 443", b" 443 "), len(V1) + 1),
        (b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", 37),
        (b"PROXY UNKNOWNER\r\n", 17),
        (b"PROXY UNKNOWN " + b"x" * 200, 107),
        (SIGNATURE + b"\x11\x11\0\x0c", 13),
        (SIGNATURE + b"\x22\x11\0\x0c", 13),
        (SIGNATURE + b"\x21\x11\0\x0b", 16),
        (SIGNATURE + b"\x21\x21\0\x23", 16),
        (SIGNATURE + b"\x21\x31\0\xd7", 16),
        (SIGNATURE + b"\x21\x41\0\xd8", 16),
        (SIGNATURE + b"\x21\x13\0\x0c", 16),
        (SIGNATURE + b"\x21\x11\x40\x01", 16),
        (SIGNATURE + b"\x20\0\x40\x01", 16),
    ],
)
def test_something_else_is_refused(data: bytes, length: int) -> None:
    answers = at_every_length(data)

    assert decided_at(answers) == length
    assert answers[-1] is NO_MATCH


def test_the_longest_line_is_understood_and_a_longer_one_refused() -> None:
    longest = b"PROXY UNKNOWN ".ljust(105, b"x")

    assert parse(longest + b"\r\n") == Header(107, None, None)
    assert parse(longest + b"x\r\n") is NO_MATCH


def test_tlvs_may_fill_sixteen_kib() -> None:
    header = v2(0x11, V2_TCP4.ljust(16_384, b"\0"))

    assert parse(header[:16]) == NeedMore(len(header))
    assert parse(header) == Header(len(header), SOURCE, DESTINATION)


@pytest.mark.parametrize(
    ("source", "destination", "v1", "v2_header"),
    [
        (SOURCE, DESTINATION, V1, v2(0x11, V2_TCP4)),
        (("::ffff:192.0.2.1", 56_324), ("::ffff:198.51.100.2", 443), V1, v2(0x11, V2_TCP4)),
        (SOURCE6, DESTINATION6, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", v2(0x21, V2_TCP6)),
        (
            SOURCE,
            DESTINATION6,
            b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443\r\n",
            v2(0x21, bytes(10) + b"\xff\xff" + V2_TCP4[:4] + V2_TCP6[16:]),
        ),
        (
            SOURCE6,
            ("::ffff:198.51.100.2", 443),
            b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.2 56324 443\r\n",
            v2(0x21, V2_TCP6[:16] + bytes(10) + b"\xff\xff" + V2_TCP4[4:8] + V2_TCP6[32:]),
        ),
        (
            ("fe80::1%eth0", 1),
            ("fe80::2%eth0", 2),
            b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n",
            v2(0x21, bytes.fromhex("fe80" + "00" * 13 + "01" + "fe80" + "00" * 13 + "02" + "0001 0002")),
        ),
    ],
)
def test_the_header_for_a_target_is_exact(
    source: tuple[str, int], destination: tuple[str, int], v1: bytes, v2_header: bytes
) -> None:
    assert build(ProxyVersion.V1, source, destination) == v1
    assert build(ProxyVersion.V2, source, destination) == v2_header


def test_the_longest_addresses_fit_a_line() -> None:
    longest = ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65_535)

    header = build(ProxyVersion.V1, longest, longest)

    assert len(header) <= 107
    assert parse(header) == Header(len(header), longest, longest)


ENDPOINTS = st.tuples(st.ip_addresses().map(str), st.integers(0, 65_535))


@settings(max_examples=50)
@given(st.sampled_from(sorted(ProxyVersion)), ENDPOINTS, ENDPOINTS, st.binary(max_size=8))
def test_what_is_built_is_understood(
    version: ProxyVersion, source: tuple[str, int], destination: tuple[str, int], rest: bytes
) -> None:
    header = build(version, source, destination)

    assert parse(header + rest) == Header(len(header), source, destination)


@settings(max_examples=50)
@given(st.binary(max_size=40) | mutated([V1, v2(0x11, V2_TCP4 + TLV), v2(0x21, V2_TCP6)]))
def test_any_bytes_are_judged_alike_at_every_length(data: bytes) -> None:
    for answer in at_every_length(data):
        assert not isinstance(answer, Header) or answer.consumed <= len(data)
