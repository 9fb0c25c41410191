"""Invariant: for any bytes, the frames are read or refused; never an exception, never a byte beyond the payload."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.quic_frames import MAX_FRAMES, Frames, read_frames
from tests.support.quic_packets import ACK, ACK_ECN, CONNECTION_CLOSE, PADDING, PING, crypto
from tests.support.quic_vectors import CLIENT_HELLO, CRYPTO_FRAME, PAYLOAD

OTHERS = (PADDING, PING, ACK, ACK_ECN, CONNECTION_CLOSE)


def test_the_payload_of_the_rfcs_appendix_holds_the_client_hello() -> None:
    assert read_frames(CRYPTO_FRAME) == Frames([(0, CLIENT_HELLO)], 1)
    assert read_frames(PAYLOAD) == Frames([(0, CLIENT_HELLO)], 1)


def test_crypto_frames_are_found_between_all_frames_that_an_initial_may_carry() -> None:
    payload = b"".join(other + crypto(number * 70, bytes([number]) * 70) for number, other in enumerate(OTHERS))

    assert read_frames(payload) == Frames([(at * 70, bytes([at]) * 70) for at in range(len(OTHERS))], len(OTHERS) + 3)


def test_zeros_at_the_end_of_crypto_data_are_not_padding() -> None:
    assert read_frames(crypto(0, b"a" + bytes(9)) + PADDING * 3) == Frames([(0, b"a" + bytes(9))], 1)


@pytest.mark.parametrize("filler", [PADDING, PING, PADDING * 9 + PING, PING + PADDING * 9, (PADDING + PING) * 9])
def test_padding_and_pings_in_any_mixture_are_skipped_before_between_and_behind_frames(filler: bytes) -> None:
    payload = filler + crypto(0, b"\x00\x01") + filler + crypto(2, b"\x01\x00") + filler

    assert read_frames(payload) == Frames([(0, b"\x00\x01"), (2, b"\x01\x00")], 2)


def test_a_payload_without_crypto_frames_holds_none() -> None:
    assert read_frames(b"") == Frames([], 0)
    assert read_frames(b"".join(OTHERS)) == Frames([], 3)


def test_an_empty_crypto_frame_is_legal() -> None:
    assert read_frames(crypto(5, b"")) == Frames([(5, b"")], 1)


@pytest.mark.parametrize("frame", [crypto(70_000, b"abc"), ACK, ACK_ECN, CONNECTION_CLOSE])
def test_a_frame_cut_off_anywhere_is_refused(frame: bytes) -> None:
    for length in range(1, len(frame)):
        assert read_frames(PING + frame[:length]) is None
    assert read_frames(PING + frame) is not None


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {0x00, 0x01, 0x02, 0x03, 0x06, 0x1C}))
def test_a_frame_that_an_initial_must_not_carry_is_refused(kind: int) -> None:
    assert read_frames(crypto(0, b"x") + bytes([kind]) + bytes(30)) is None


@pytest.mark.parametrize(
    "start", [b"\x06\x00", b"\x02\x05\x0a", b"\x03\x05\x0a", b"\x1c\x0a\x06"], ids=lambda start: start.hex()
)
def test_a_huge_length_or_count_is_refused(start: bytes) -> None:
    assert read_frames(start + b"\xff" * 8 + bytes(1000)) is None


def test_more_frames_than_any_client_makes_are_refused() -> None:
    frame = crypto(0, b"")

    assert read_frames(PADDING + frame * MAX_FRAMES + PING) == Frames([(0, b"")] * MAX_FRAMES, MAX_FRAMES)
    assert read_frames(frame * (MAX_FRAMES + 1)) is None
    assert read_frames((PADDING + PING) * 5000) == Frames([], 0)


@pytest.mark.parametrize(("ranges", "total"), [(2, 1), (3, None)])
def test_an_ack_of_more_ranges_than_can_be_is_refused(ranges: int, total: int | None) -> None:
    frames = read_frames(b"\x02\x05\x0a" + bytes([ranges]) + bytes(1 + 2 * ranges))

    assert (frames.total if frames else None) == total


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(OTHERS),
            st.builds(crypto, st.integers(0, 2**62 - 1), st.binary(max_size=10)),
            st.binary(max_size=10),
        )
    ).map(b"".join)
)
def test_no_bytes_raise_or_are_read_beyond_the_end(payload: bytes) -> None:
    frames = read_frames(payload)

    assert frames is None or sum(len(piece) for _, piece in frames.crypto) <= len(payload)
