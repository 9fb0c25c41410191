"""Invariant: for any bytes, the probe returns a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.probes.socks5 import FIRST_BYTES, probe_socks5
from rpxy_l4.verdict import NO_MATCH, Match, Protocol
from tests.support.prefixes import at_every_length, decided_at, mutated

EVERY_METHOD = bytes([5, 137, *range(10), *range(0x80, 0xFF)])


@pytest.mark.parametrize(
    "greeting",
    [
        b"\5\1\0",
        b"\5\2\0\2",
        b"\5\3\0\1\2",
        b"\5\4\0\1\2\x80",
        b"\5\1\xfe",
        b"\5\x0a" + bytes(range(10)),
        EVERY_METHOD,
    ],
)
def test_a_whole_list_of_methods_is_recognised(greeting: bytes) -> None:
    verdicts = at_every_length(probe_socks5, greeting)

    assert decided_at(verdicts) == len(greeting)
    assert verdicts[-1] == Match(Protocol.SOCKS5)


def test_a_client_that_does_not_wait_for_the_answer_is_recognised() -> None:
    request = b"\5\1\0\1\x7f\0\0\1\0\x50"

    assert decided_at(at_every_length(probe_socks5, b"\5\1\0" + request)) == 3


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"\4\1\0\x50", 1),
        (b"\5\0\0", 2),
        (b"\5\2\0\0", 4),
        (b"\5\2\x0a\0", 3),
        (b"\5\2\x7f\0", 3),
        (b"\5\2\0\xff", 4),
        (b"\5\xff" + bytes(range(255)), 13),
    ],
)
def test_a_list_that_no_client_sends_is_refused(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_socks5, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] is NO_MATCH


def test_only_the_first_bytes_listed_are_not_refused() -> None:
    assert [n for n in range(256) if probe_socks5(bytes([n]), False) != NO_MATCH] == list(FIRST_BYTES)


@given(st.binary(max_size=20) | st.binary(max_size=20).map(lambda rest: b"\5" + rest) | mutated([b"\5\4\0\1\2\x80"]))
def test_any_bytes_are_judged_alike_at_every_length(data: bytes) -> None:
    at_every_length(probe_socks5, data)
