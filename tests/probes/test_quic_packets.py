"""Invariant: for any bytes, a header is read or refused; never an exception, never a byte beyond the datagram."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.quic_packets import (
    Kind,
    LongHeader,
    asks_for_unknown_version,
    may_be_in_session,
    read_long_header,
    read_varint,
)
from tests.support.quic_packets import RETRY, V1, V2, VERSIONS, Sender
from tests.support.quic_vectors import DESTINATION_ID, INITIAL_V1, INITIAL_V2


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_the_sample_integers_of_rfc_9000_a_1_are_read(data: str, value: int) -> None:
    raw = bytes.fromhex(data)

    assert read_varint(raw, 0) == (value, len(raw))
    assert read_varint(b"??" + raw + b"?", 2) == (value, 2 + len(raw))
    assert all(read_varint(raw[:length], 0) is None for length in range(len(raw)))


@pytest.mark.parametrize(("packet", "version"), [(INITIAL_V1, V1), (INITIAL_V2, V2)])
def test_the_header_of_the_sample_initials_is_read(packet: bytes, version: int) -> None:
    assert read_long_header(packet, 0) == LongHeader(Kind.INITIAL, version, DESTINATION_ID, 18, 1200)


@pytest.mark.parametrize("version", VERSIONS)
def test_coalesced_packets_are_read_one_behind_the_other(version: int) -> None:
    sender = Sender(version)
    parts = [sender.zero_rtt(30), sender.initial(b"", size=300, token=b"token"), sender.handshake(70)]
    datagram = b"".join(parts)
    at = 0
    kinds = []

    for part in parts:
        header = read_long_header(datagram, at)
        assert header is not None
        at += len(part)
        assert header.end == at
        kinds.append(header.kind)

    assert kinds == [Kind.ZERO_RTT, Kind.INITIAL, Kind.HANDSHAKE]
    assert read_long_header(datagram, at) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_no_prefix_of_a_packet_is_taken_for_a_packet(version: int) -> None:
    sender = Sender(version)
    for packet in (sender.initial(b"", size=100, token=b"t" * 10), sender.zero_rtt(), sender.handshake()):
        assert all(read_long_header(packet[:length], 0) is None for length in range(len(packet)))
        assert read_long_header(packet, 0) is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_retry_a_short_header_and_version_negotiation_are_refused(version: int) -> None:
    packet = Sender(version).initial(b"", size=100)

    assert read_long_header(bytes([RETRY[version]]) + packet[1:], 0) is None
    assert read_long_header(b"\x40" + packet[1:], 0) is None
    assert read_long_header(packet[:1] + bytes(4) + packet[5:], 0) is None


def test_the_fixed_bit_may_be_cleared() -> None:
    packet = INITIAL_V1

    assert read_long_header(bytes([packet[0] & ~0x40]) + packet[1:], 0) == read_long_header(packet, 0)


@pytest.mark.parametrize("length", range(21))
def test_without_a_token_the_destination_id_has_at_least_eight_bytes(length: int) -> None:
    sender = Sender(destination_id=bytes(length))

    assert (read_long_header(sender.initial(b"", size=100), 0) is not None) == (length >= 8)
    assert read_long_header(sender.initial(b"", size=100, token=b"retry"), 0) is not None


def test_ids_of_more_than_twenty_bytes_are_refused() -> None:
    assert read_long_header(Sender(destination_id=bytes(21)).initial(b"", size=100), 0) is None
    assert read_long_header(Sender(source_id=bytes(20)).initial(b"", size=100), 0) is not None
    assert read_long_header(Sender(source_id=bytes(21)).initial(b"", size=100), 0) is None


@pytest.mark.parametrize("huge", ["ffffffffffffffff", "bfffffff", "7fff"])
def test_a_huge_token_or_packet_length_is_refused(huge: str) -> None:
    start = Sender().initial(b"", size=100)[: 6 + 8 + 1 + 6]

    assert read_long_header(start + bytes.fromhex(huge) + bytes(1200), 0) is None
    assert read_long_header(start + b"\x00" + bytes.fromhex(huge) + bytes(1200), 0) is None


@pytest.mark.parametrize("version", [0x1A2A3A4A, 0xFF00001D, 0x00000002])
def test_a_plausible_first_datagram_of_an_unknown_version_is_seen(version: int) -> None:
    datagram = b"\x80" + version.to_bytes(4, "big") + b"\x08" + bytes(8) + b"\x14" + bytes(20) + bytes(1165)

    assert len(datagram) == 1200
    assert asks_for_unknown_version(datagram)
    assert read_long_header(datagram, 0) is None


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x80\x1a\x2a\x3a\x4a\x08" + bytes(1193),
        b"\x40\x1a\x2a\x3a\x4a\x08" + bytes(1194),
        b"\x80\x1a\x2a\x3a\x4a\x07" + bytes(1194),
        b"\x80\x1a\x2a\x3a\x4a\x15" + bytes(1194),
        b"\x80\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x15" + bytes(1185),
        b"\x80\x00\x00\x00\x00\x08" + bytes(1194),
        INITIAL_V1,
        INITIAL_V2,
    ],
    ids=[
        "too short",
        "short header",
        "id too short",
        "id too long",
        "source id",
        "negotiation",
        "version 1",
        "version 2",
    ],
)
def test_anything_else_is_not_taken_for_an_unknown_version(datagram: bytes) -> None:
    assert not asks_for_unknown_version(datagram)


@pytest.mark.parametrize("first", range(0x80))
def test_every_short_header_may_be_in_a_session_from_21_bytes_on(first: int) -> None:
    packet = bytes([first]) + bytes(range(1, 60))

    assert [size for size in range(len(packet)) if may_be_in_session(packet[:size])] == list(range(21, 60))


@pytest.mark.parametrize("version", [*VERSIONS, 0x1A2A3A4A])
@pytest.mark.parametrize("first", [0x80, 0xC0, 0xD3, 0xE5, 0xFF])
def test_a_long_header_amid_a_session_has_a_version_and_two_short_ids(first: int, version: int) -> None:
    for ids in (b"\x00\x00", b"\x04abcd\x00", b"\x14" + bytes(20) + b"\x14" + bytes(20)):
        packet = bytes([first]) + version.to_bytes(4, "big") + ids + bytes(30)
        assert may_be_in_session(packet)
        negotiation = packet[:1] + bytes(4) + packet[5:]
        assert not may_be_in_session(negotiation)
    for ids in (
        b"\x15" + bytes(21) + b"\x00",
        b"\x00\x15" + bytes(21),
        b"\x14" + bytes(15),
        b"\x08" + bytes(8) + b"\x09",
    ):
        assert not may_be_in_session(bytes([first]) + version.to_bytes(4, "big") + ids)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sampled_from([0, *VERSIONS, 0x1A2A3A4A]), st.integers(0, 255), st.binary(max_size=80), st.integers(0, 90))
def test_no_bytes_raise_or_are_read_beyond_the_end(version: int, first: int, rest: bytes, at: int) -> None:
    datagram = bytes([first]) + version.to_bytes(4, "big") + rest
    asks_for_unknown_version(datagram)
    may_be_in_session(datagram)

    for start in (0, at):
        header = read_long_header(datagram, start)
        if header is not None:
            assert start < header.number_at <= header.end <= len(datagram)
