from __future__ import annotations

import pytest

from rpxy_l4.probes.wireguard import probe_wireguard
from rpxy_l4.verdict import NO_MATCH, Match, Protocol

INITIATION = b"\x01\x00\x00\x00" + bytes(range(144))


def test_a_handshake_initiation_is_recognised_at_once() -> None:
    assert probe_wireguard(INITIATION) == Match(Protocol.WIREGUARD)


def test_an_initiation_of_any_other_length_is_refused() -> None:
    for length in range(400):
        if length != len(INITIATION):
            assert probe_wireguard((INITIATION * 3)[:length]) is NO_MATCH


@pytest.mark.parametrize("at", range(4))
def test_type_and_reserved_bytes_must_be_those_of_an_initiation(at: int) -> None:
    assert probe_wireguard(INITIATION[:at] + b"\x7f" + INITIATION[at + 1 :]) is NO_MATCH


@pytest.mark.parametrize(("kind", "length"), [(2, 92), (3, 64), (4, 32), (4, 148)])
def test_messages_that_cannot_open_a_session_are_refused(kind: int, length: int) -> None:
    assert probe_wireguard(bytes([kind]) + bytes(length - 1)) is NO_MATCH
