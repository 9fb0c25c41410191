from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.quic_crypto_stream import MAX_CRYPTO, CryptoStream

MESSAGE = bytes(range(1, 201))
CUTS = st.tuples(st.integers(0, len(MESSAGE)), st.integers(0, len(MESSAGE))).map(sorted)


def test_pieces_in_order_are_ready_at_once() -> None:
    stream = CryptoStream()

    assert stream.add(0, b"abc")
    assert (stream.ready, len(stream)) == (3, 3)
    assert stream.add(3, b"de")
    assert (stream.ready, len(stream)) == (5, 5)
    assert stream.read(1, 4) == b"bcd"


def test_a_piece_behind_a_gap_waits_for_it_to_be_filled() -> None:
    stream = CryptoStream()
    stream.add(0, b"ab")
    stream.add(4, b"ef")

    assert (stream.ready, len(stream)) == (2, 6)
    assert stream.add(2, b"cd")
    assert stream.ready == 6
    assert stream.read(0, 6) == b"abcdef"


def test_duplicates_and_overlaps_that_agree_are_taken() -> None:
    stream = CryptoStream()
    for offset, piece in ((2, b"cd"), (2, b"cd"), (3, b"d"), (1, b"bcde"), (0, b"ab"), (0, b"abcdefg")):
        assert stream.add(offset, piece)

    assert stream.read(0, stream.ready) == b"abcdefg"


def test_a_piece_that_contradicts_an_earlier_one_is_refused_without_effect() -> None:
    stream = CryptoStream()
    stream.add(2, b"cd")

    assert not stream.add(0, b"abX")
    assert not stream.add(3, b"Xef")
    assert not stream.add(2, b"XX")
    assert stream.ready == 0
    assert stream.add(0, b"abcdef")
    assert stream.read(0, 6) == b"abcdef"


def test_a_zero_byte_is_as_known_as_any_other() -> None:
    stream = CryptoStream()
    stream.add(1, b"\x00")

    assert not stream.add(1, b"b")
    assert stream.add(0, b"\x00\x00")
    assert stream.ready == 2


def test_an_empty_piece_tells_nothing_wherever_it_stands() -> None:
    stream = CryptoStream()

    assert stream.add(0, b"")
    assert (stream.ready, len(stream)) == (0, 0)
    assert stream.add(2, b"cd")
    assert stream.add(0, b"")
    assert (stream.ready, len(stream)) == (0, 4)
    assert stream.add(0, b"ab")
    assert stream.read(0, stream.ready) == b"abcd"


def test_nothing_is_taken_beyond_the_bound() -> None:
    stream = CryptoStream()

    assert not stream.add(MAX_CRYPTO, b"x")
    assert not stream.add(2**62 - 1, b"")
    assert len(stream) == 0
    assert stream.add(MAX_CRYPTO - 1, b"x")
    assert stream.add(0, bytes(MAX_CRYPTO - 1))
    assert stream.ready == MAX_CRYPTO


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(CUTS, max_size=20))
def test_whatever_the_pieces_and_their_order_the_message_comes_together(cuts: list[list[int]]) -> None:
    stream = CryptoStream()
    known = [False] * len(MESSAGE)

    for start, end in [*cuts, [0, len(MESSAGE)]]:
        assert stream.add(start, MESSAGE[start:end])
        known[start:end] = [True] * (end - start)
        assert stream.ready == [*known, False].index(False)
        assert stream.read(0, stream.ready) == MESSAGE[: stream.ready]
