from __future__ import annotations

import pytest

from rpxy_l4.probes.wireguard import may_be_in_session, probe_wireguard
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


@pytest.mark.parametrize(("kind", "length"), [(1, 148), (2, 92), (3, 64)])
def test_a_handshake_message_amid_a_session_has_its_one_length(kind: int, length: int) -> None:
    message = bytes([kind, 0, 0, 0]) + bytes(range(200))

    assert [size for size in range(len(message)) if may_be_in_session(message[:size])] == [length]


def test_data_have_any_length_from_that_of_an_empty_message_on() -> None:
    message = b"\x04\x00\x00\x00" + bytes(range(200))

    assert [size for size in range(len(message)) if may_be_in_session(message[:size])] == list(range(32, 204))


@pytest.mark.parametrize("kind", range(256))
def test_no_other_type_is_of_a_session(kind: int) -> None:
    assert any(may_be_in_session(bytes([kind]) + bytes(size - 1)) for size in (32, 64, 92, 148)) == (1 <= kind <= 4)


@pytest.mark.parametrize("at", range(1, 4))
def test_the_reserved_bytes_of_every_message_are_zeros(at: int) -> None:
    for kind, length in ((1, 148), (2, 92), (3, 64), (4, 32)):
        message = bytes([kind]) + bytes(length - 1)
        assert may_be_in_session(message)
        assert not may_be_in_session(message[:at] + b"\x01" + message[at + 1 :])
