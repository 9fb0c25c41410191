"""Invariant: for any bytes, the probe returns a verdict; one that saw a part before answers like a fresh one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.http1 import FIRST_BYTES, Http1Probe, probe_http1
from rpxy_l4.verdict import NO_MATCH, Match, Protocol
from tests.support.prefixes import at_every_length, decided_at, mutated, pieces

HTTP = Match(Protocol.HTTP)
REQUEST = b"GET /index.html?q=%20 HTTP/1.1\r\nHost: example.org\r\n\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n",
        b"UPDATEREDIRECTREF /a HTTP/1.1\r\n",
        b"M-SEARCH * HTTP/1.1\r\n",
        b"VERSION-CONTROL / HTTP/1.1\r\n",
        b"A" * 24 + b" / HTTP/1.1\r\n",
        b"SSH-2.1 / HTTP/1.1\r\n",
        b"GET /b\xc3\xbccher HTTP/1.1\r\n",
        b"\r\nPOST / HTTP/1.1\r\n",
        b"GET HTTP/1.1 HTTP/1.1\r\n",
    ],
)
def test_a_request_line_is_recognised_at_its_end(line: bytes) -> None:
    verdicts = at_every_length(probe_http1, line + b"Host: example.org\r\n\r\n\0\xff")

    assert decided_at(verdicts) == len(line)
    assert verdicts[-1] == HTTP


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"\x16\x03\x01", 1),
        (b"get / HTTP/1.1", 1),
        (b" GET / HTTP/1.1", 1),
        (b"\rGET / HTTP/1.1", 2),
        (b"\r\n\r\n\0\r\nQUIT\n", 3),
        (b"\r\n GET", 3),
        (b"GET\t/ HTTP/1.1", 4),
        (b"EHLO\r\n", 5),
        (b"GET  / HTTP/1.1", 5),
        (b"GET /\r\n", 6),
        (b"GET /\0 HTTP/1.1", 6),
        (b"GET /\x7f HTTP/1.1", 6),
        (b"A" * 25 + b" / HTTP/1.1", 25),
        (b"USER name 0 * :Real Name\r\n", 11),
        (b"OPTIONS rtsp://example.org/ RTSP/1.0\r\n", 29),
        (b"OPTIONS sip:alice@example.org SIP/2.0\r\n", 31),
        (b"REQMOD icap://example.org/ ICAP/1.0\r\n", 28),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 12),
        (b"GET / HTTP/1.x\r\n", 14),
        (b"GET / HTTP/1.10\r\n", 15),
        (b"GET / HTTP/1.1 \r\n", 15),
        (b"GET / HTTP/1.1\rX", 16),
        (b"GET /a b HTTP/1.1\r\n", 8),
    ],
)
def test_something_else_is_refused_at_the_first_wrong_byte(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_http1, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] is NO_MATCH


def test_only_the_first_bytes_listed_are_not_refused() -> None:
    accepted = [n for n in range(256) if probe_http1(bytes([n]), False) != NO_MATCH]

    assert accepted == sorted(FIRST_BYTES)


@settings(max_examples=50)
@given(st.data())
def test_a_probe_that_saw_a_part_before_answers_like_a_fresh_one(draw: st.DataObject) -> None:
    data = draw.draw(st.just(b"\r\n" + REQUEST) | mutated([REQUEST, b"\r\n" + REQUEST]))
    parts = draw.draw(pieces(data))
    probe = Http1Probe()

    wholes = [b"".join(parts[: n + 1]) for n in range(len(parts))]

    assert [probe(whole, False) for whole in wholes] == [probe_http1(whole, False) for whole in wholes]


def test_the_legal_part_of_a_long_target_is_not_looked_at_again() -> None:
    probe = Http1Probe()
    probe(b"GET /aaaa", False)

    assert probe(b"\0\0\0\0\0\0\0\0\0 HTTP/1.1\r\n", False) == HTTP


@given(st.binary(max_size=60) | mutated([REQUEST, b"\r\n" + REQUEST]))
def test_any_bytes_are_judged_alike_at_every_length(data: bytes) -> None:
    at_every_length(probe_http1, data)
