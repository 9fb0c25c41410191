"""Invariant: for any bytes, the probe returns a verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.probes.ssh import FIRST_BYTES, probe_ssh
from rpxy_l4.verdict import NO_MATCH, Match, Protocol
from tests.support.prefixes import at_every_length, decided_at, mutated

BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"


@pytest.mark.parametrize(
    ("data", "length"),
    [(BANNER, 8), (b"SSH-1.99-Cisco-1.25\n", 6), (b"SSH-1.5-1.2.27\n", 6), (b"SSH-2.0-Go\r\n\0\0\1\2", 8)],
)
def test_an_identification_is_recognised_by_its_protocol_version(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_ssh, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] == Match(Protocol.SSH)


@pytest.mark.parametrize(
    ("data", "length"),
    [(b"GET", 1), (b"ssh-2.0-x", 1), (b"SEARCH /", 2), (b"SSH ", 4), (b"SSH-FETCH / HTTP/1.1", 5), (b"SSH-2.1-x", 7)],
)
def test_something_else_is_refused_at_the_first_wrong_byte(data: bytes, length: int) -> None:
    verdicts = at_every_length(probe_ssh, data)

    assert decided_at(verdicts) == length
    assert verdicts[-1] is NO_MATCH


def test_only_the_first_bytes_listed_are_not_refused() -> None:
    assert [n for n in range(256) if probe_ssh(bytes([n]), False) != NO_MATCH] == list(FIRST_BYTES)


@given(st.binary(max_size=20) | mutated([BANNER]))
def test_any_bytes_are_judged_alike_at_every_length(data: bytes) -> None:
    at_every_length(probe_ssh, data)
