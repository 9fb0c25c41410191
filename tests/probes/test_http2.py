"""Invariant: for any bytes, the probe returns a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.probes.http2 import FIRST_BYTES, probe_http2
from rpxy_l4.verdict import NO_MATCH, Match, Protocol
from tests.support.prefixes import at_every_length, decided_at, mutated

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000012 04 00 00000000 000300000064 000400a00000 000200000000")


def test_the_preface_is_recognised_whatever_follows() -> None:
    verdicts = at_every_length(probe_http2, PREFACE + SETTINGS)

    assert decided_at(verdicts) == len(PREFACE) == 24
    assert verdicts[-1] == Match(Protocol.HTTP)


@pytest.mark.parametrize(
    ("data", "length"), [(b"GET", 1), (b"POST / HTTP/1.1", 2), (b"PRI * HTTP/1.1\r\n", 12), (PREFACE[:23] + b"x", 24)]
)
def test_something_else_is_refused_at_the_first_wrong_byte(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_http2, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] is NO_MATCH


def test_only_the_first_bytes_listed_are_not_refused() -> None:
    assert [n for n in range(256) if probe_http2(bytes([n]), False) != NO_MATCH] == list(FIRST_BYTES)


@given(st.binary(max_size=30) | mutated([PREFACE]))
def test_any_bytes_are_judged_alike_at_every_length(data: bytes) -> None:
    at_every_length(probe_http2, data)
