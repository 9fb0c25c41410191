from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.quic_keys import InitialKeys
from rpxy_l4.probes.quic_packets import read_long_header
from tests.support.quic_packets import PING, V1, V2, VERSIONS, Sender
from tests.support.quic_vectors import DESTINATION_ID, INITIAL_V1, INITIAL_V2, PAYLOAD, SERVER_INITIAL_V1


def opened(packet: bytes, *, at: int = 0, keys: InitialKeys | None = None) -> bytes | None:
    header = read_long_header(packet, at)
    assert header is not None
    keys = keys or InitialKeys(header.version, header.destination_id)
    return keys.open(packet, at, header)


@pytest.mark.parametrize(("packet", "version"), [(INITIAL_V1, V1), (INITIAL_V2, V2)])
def test_the_client_initial_of_the_rfcs_appendix_opens(packet: bytes, version: int) -> None:
    assert opened(packet, keys=InitialKeys(version, DESTINATION_ID)) == PAYLOAD


def test_the_server_initial_of_the_rfcs_appendix_does_not_open_with_a_clients_keys() -> None:
    padded = SERVER_INITIAL_V1[:5] + b"\x08" + DESTINATION_ID + SERVER_INITIAL_V1[6:]

    assert opened(padded, keys=InitialKeys(V1, DESTINATION_ID)) is None


@pytest.mark.parametrize(("packet", "other"), [(INITIAL_V1, V2), (INITIAL_V2, V1)])
def test_the_keys_of_the_other_version_do_not_open_a_packet(packet: bytes, other: int) -> None:
    assert opened(packet, keys=InitialKeys(other, DESTINATION_ID)) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("number", "length"), [(0, 1), (255, 1), (300, 2), (70_000, 3), (0xFFFF_FFFF, 4)])
def test_packet_numbers_of_every_length_are_understood(version: int, number: int, length: int) -> None:
    packet = Sender(version).initial(PING, size=100, number=number, number_length=length)

    payload = opened(packet)

    assert payload is not None
    assert payload.startswith(PING)


def test_the_same_keys_open_one_packet_after_another() -> None:
    sender = Sender()
    keys = InitialKeys(sender.version, sender.destination_id)

    for number in range(5):
        assert opened(sender.initial(bytes([number]) * 80, number=number), keys=keys) == bytes([number]) * 80


def test_a_coalesced_packet_is_opened_with_its_own_first_byte_and_header() -> None:
    sender = Sender()
    first, second = sender.initial(b"a" * 60, number_length=4), sender.initial(b"b" * 60, number=1, number_length=1)

    assert opened(first + second) == b"a" * 60
    assert opened(first + second, at=len(first)) == b"b" * 60


def test_a_packet_too_short_for_the_sample_is_refused_though_the_datagram_goes_on() -> None:
    sender = Sender()
    whole = sender.initial(b"abc", number_length=1)
    assert opened(whole) == b"abc"
    header = read_long_header(whole, 0)
    assert header is not None
    keys = InitialKeys(sender.version, sender.destination_id)

    for end in range(header.number_at, header.end):
        assert keys.open(whole + bytes(50), 0, header._replace(end=end)) is None


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(0, len(INITIAL_V1) - 1), st.integers(1, 255))
def test_a_packet_with_any_byte_changed_does_not_open(at: int, change: int) -> None:
    packet = INITIAL_V1[:at] + bytes([INITIAL_V1[at] ^ change]) + INITIAL_V1[at + 1 :]
    header = read_long_header(INITIAL_V1, 0)
    assert header is not None

    assert InitialKeys(V1, DESTINATION_ID).open(packet, 0, header) is None
