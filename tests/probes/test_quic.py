"""Invariant: for any datagrams, the probe returns a verdict. It never raises."""

from __future__ import annotations

import itertools
import random

import pytest
from aioquic.quic.packet import encode_quic_retry
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.probes.quic import QuicProbe
from rpxy_l4.probes.quic_packets import read_long_header
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict
from tests.support.quic_packets import (
    ACK,
    ACK_ECN,
    CONNECTION_CLOSE,
    FULL_DATAGRAM,
    INITIAL,
    PADDING,
    PING,
    RETRY,
    V1,
    VERSIONS,
    Sender,
    aioquic_client,
    client_hello,
    crypto,
    first_flight,
    pieces,
    post_quantum_hello,
)
from tests.support.quic_vectors import CLIENT_HELLO, INITIAL_V1, INITIAL_V2, SERVER_INITIAL_V1

FOUND = Match(Protocol.QUIC, "www.example.org", (b"h3", b"h3-29"))
HELLO = client_hello("www.example.org", "h3", "h3-29")
LONG_HELLO = post_quantum_hello("www.example.org", "h3", "h3-29")


def verdicts(*datagrams: bytes) -> list[Verdict]:
    """What one probe says to each in turn."""
    probe = QuicProbe()
    return [probe.feed(datagram) for datagram in datagrams]


def is_undecided(verdict: Verdict) -> bool:
    return isinstance(verdict, NeedMore)


def long_flight(version: int = V1) -> list[bytes]:
    """Three datagrams that carry a post-quantum hello."""
    sender = Sender(version)
    frames = pieces(LONG_HELLO, 500, 1000)
    return [sender.initial(frame, size=FULL_DATAGRAM, number=number) for number, frame in enumerate(frames)]


@pytest.mark.parametrize("datagram", [INITIAL_V1, INITIAL_V2], ids=["rfc 9001", "rfc 9369"])
def test_the_client_initial_of_the_rfcs_appendix_is_recognised(datagram: bytes) -> None:
    assert verdicts(datagram) == [Match(Protocol.QUIC, "example.com", (b"alpn",))]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_first_datagram_of_a_real_client_is_recognised(version: int) -> None:
    flight = first_flight(aioquic_client("www.example.org", "h3", "h3-29", version=version))

    assert verdicts(*flight) == [FOUND]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_clients_hello_in_several_datagrams_is_recognised_in_every_order(version: int) -> None:
    names = [f"protocol-{number:03}" for number in range(150)]
    flight = first_flight(aioquic_client("www.example.org", *names, version=version))
    assert len(flight) == 3

    for order in itertools.permutations(flight):
        *early, last = verdicts(*order)
        assert all(map(is_undecided, early))
        assert last == Match(Protocol.QUIC, "www.example.org", tuple(name.encode() for name in names))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_post_quantum_hello_is_recognised_in_every_order_and_with_every_datagram_twice(version: int) -> None:
    flight = long_flight(version)

    for order in itertools.permutations(flight):
        for once in range(3):
            arriving = [*order[: once + 1], order[once], *order[once + 1 :]]
            told = verdicts(*arriving)
            decided = [verdict for verdict in told if not is_undecided(verdict)]
            assert decided[0] == FOUND
            assert told.index(FOUND) == (3 if once < 2 else 2)


def test_crypto_frames_may_overlap_within_and_between_datagrams() -> None:
    sender = Sender()
    first = crypto(0, LONG_HELLO[:700]) + crypto(300, LONG_HELLO[300:800]) + crypto(0, LONG_HELLO[:10])
    second = crypto(200, LONG_HELLO[200:900]) + crypto(600, LONG_HELLO[600:1000])
    third = crypto(900, LONG_HELLO[900:])

    datagrams = [sender.initial(frames, size=FULL_DATAGRAM) for frames in (first, third, second)]

    assert [is_undecided(verdict) for verdict in verdicts(*datagrams)[:2]] == [True, True]
    assert verdicts(*datagrams)[2] == FOUND


def test_crypto_frames_that_contradict_each_other_are_no_match() -> None:
    sender = Sender()
    first = sender.initial(crypto(0, HELLO[:50]), size=FULL_DATAGRAM)
    second = sender.initial(crypto(40, bytes(50)), size=FULL_DATAGRAM)

    told = verdicts(first, second)

    assert is_undecided(told[0])
    assert told[1] is NO_MATCH


def test_a_hello_shuffled_into_small_pieces_among_other_frames_is_recognised() -> None:
    chance = random.Random(7)
    frames = pieces(HELLO, *range(1, len(HELLO), 9))
    frames += [PING, ACK, ACK_ECN, CONNECTION_CLOSE, PADDING * 30, PING * 3]
    chance.shuffle(frames)

    assert verdicts(Sender().initial(b"".join(frames), size=FULL_DATAGRAM)) == [FOUND]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hello_cut_across_two_coalesced_initials_is_recognised(version: int) -> None:
    sender = Sender(version)
    first, second = pieces(HELLO, 100)
    one = sender.initial(first, number_length=4)
    other = sender.initial(second, number=1, number_length=1, size=FULL_DATAGRAM - len(one))

    assert verdicts(one + other) == [FOUND]


@pytest.mark.parametrize("version", VERSIONS)
def test_other_packets_coalesced_beside_the_initial_are_passed_over(version: int) -> None:
    sender = Sender(version)
    initial = sender.initial(crypto(0, HELLO), size=900)

    assert verdicts(initial + sender.zero_rtt(400)) == [FOUND]
    assert verdicts(sender.zero_rtt(400) + initial) == [FOUND]
    assert verdicts(sender.handshake(400) + initial) == [FOUND]
    assert verdicts(initial + b"\x40" + bytes(400)) == [FOUND]
    assert verdicts(initial + bytes(400)) == [FOUND]


@pytest.mark.parametrize("version", VERSIONS)
def test_early_data_that_arrives_before_the_initial_is_held(version: int) -> None:
    sender = Sender(version)
    initial = sender.initial(crypto(0, HELLO), size=FULL_DATAGRAM)

    told = verdicts(sender.zero_rtt(1000), sender.zero_rtt(50), initial)

    assert [is_undecided(verdict) for verdict in told[:2]] == [True, True]
    assert told[2] == FOUND


def test_early_data_between_the_datagrams_of_a_hello_is_held() -> None:
    first, second, third = long_flight()

    told = verdicts(first, Sender().zero_rtt(800), third, second)

    assert all(map(is_undecided, told[:3]))
    assert told[3] == FOUND


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("length", [0, 1, 7, 8, 20])
def test_the_initial_after_a_retry_is_recognised_whatever_the_length_of_its_id(version: int, length: int) -> None:
    sender = Sender(version, destination_id=bytes(range(length)))

    assert verdicts(sender.initial(crypto(0, HELLO), token=b"a token" * 9, size=FULL_DATAGRAM)) == [FOUND]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_client_that_was_told_to_retry_is_recognised(version: int) -> None:
    client = aioquic_client("www.example.org", *[f"protocol-{number:03}" for number in range(150)], version=version)
    first, *_ = first_flight(client)
    header = read_long_header(first, 0)
    assert header is not None
    source_at = 6 + len(header.destination_id)
    source_id = first[source_at + 1 : source_at + 1 + first[source_at]]
    retry = encode_quic_retry(version, b"retry-id", source_id, header.destination_id, b"token")
    client.receive_datagram(retry, ("192.0.2.1", 443), now=0.1)
    again = first_flight(client)

    alone, behind_the_first = verdicts(*again), verdicts(first, *again)

    assert isinstance(alone[-1], Match)
    assert isinstance(behind_the_first[-1], Match)
    assert alone[-1].server_name == behind_the_first[-1].server_name == "www.example.org"


def test_two_attempts_from_one_port_do_not_disturb_each_other() -> None:
    one, other = Sender(), Sender(destination_id=b"another id")
    second = pieces(post_quantum_hello("second.example", "h3"), 600)
    first = pieces(LONG_HELLO, 600)

    told = verdicts(
        one.initial(first[0], size=FULL_DATAGRAM),
        other.initial(second[1], size=FULL_DATAGRAM),
        other.initial(second[0], size=FULL_DATAGRAM),
    )

    assert all(map(is_undecided, told[:2]))
    assert told[2] == Match(Protocol.QUIC, "second.example", (b"h3",))


def test_a_coalesced_initial_of_another_connection_is_ignored() -> None:
    one, other = Sender(), Sender(destination_id=b"another id")
    frames = pieces(HELLO, 100)

    told = verdicts(one.initial(frames[0], size=700) + other.initial(crypto(0, HELLO), size=700))

    assert is_undecided(told[0])


def test_what_follows_an_authentic_initial_is_passed_over_if_it_is_no_initial_itself() -> None:
    first, second, third = long_flight()
    strangers = [b"", b"\x40" + bytes(50), bytes(1200), second[:1000], second[:-1] + b"?", SERVER_INITIAL_V1]

    told = verdicts(first, *strangers, second, third)

    assert all(map(is_undecided, told[:-1]))
    assert told[-1] == FOUND


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1199, 1200])
def test_a_datagram_with_an_initial_has_1200_bytes(version: int, size: int) -> None:
    told = verdicts(Sender(version).initial(crypto(0, HELLO), size=size))

    assert told == [FOUND if size == 1200 else NO_MATCH]


def test_an_unknown_version_is_recognised_without_its_hello() -> None:
    datagram = b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x00" + bytes(1185)

    assert verdicts(datagram) == [Match(Protocol.QUIC)]
    assert verdicts(datagram[:-1]) == [NO_MATCH]


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x40" + bytes(1300),
        b"\x80\x00\x00\x00\x00\x08" + bytes(1194),
        SERVER_INITIAL_V1.ljust(1200, b"\x00"),
        INITIAL_V1[:-1] + b"?",
        Sender().handshake(1300),
        bytes([RETRY[V1]]) + Sender().initial(b"", size=1200)[1:],
        b"GET / HTTP/1.1\r\n" * 80,
    ],
    ids=["empty", "short", "negotiation", "server", "damaged", "handshake", "retry", "other protocol"],
)
def test_anything_else_is_no_match(datagram: bytes) -> None:
    assert verdicts(datagram) == [NO_MATCH]


def test_ten_bytes_of_an_initial_without_room_for_a_sample_are_no_match() -> None:
    datagram = bytes.fromhex("c000000001000000 0100")

    assert verdicts(datagram) == [NO_MATCH]
    assert verdicts(datagram.ljust(1200, b"\x00")) == [NO_MATCH]


def test_initials_of_random_bytes_are_no_match() -> None:
    chance = random.Random(2)
    for low in range(64):
        first = INITIAL[V1] | low % 16
        header = bytes([first]) + V1.to_bytes(4, "big") + b"\x08" + chance.randbytes(8) + b"\x00\x00"
        datagram = header + (1200 | 0x4000).to_bytes(2, "big") + chance.randbytes(1200)

        assert verdicts(datagram) == [NO_MATCH]


@pytest.mark.parametrize("frames", [b"\x06", b"\x02", b"\x06\x00", b"\x02\x05", b"\x1c", b"\x08"])
def test_an_authentic_initial_with_a_cut_or_foreign_frame_is_no_match(frames: bytes) -> None:
    sender = Sender()
    alone = sender.initial(frames, number_length=3)
    last = sender.initial(b"\x00" * (1200 - len(alone)) + frames)

    assert verdicts(alone.ljust(1200, b"\x00")) == [NO_MATCH]
    assert verdicts(last) == [NO_MATCH]


@pytest.mark.parametrize(
    "message",
    [
        b"\x02" + HELLO[1:],
        b"\x01\x00\x40\x00" + HELLO[4:],
        b"\x01\x00\x00\x00",
        HELLO[:1] + (len(HELLO) - 5).to_bytes(3, "big") + HELLO[4:],
    ],
    ids=["other message", "too long", "empty", "cut off"],
)
def test_a_message_that_is_no_client_hello_is_no_match(message: bytes) -> None:
    assert verdicts(Sender().initial(crypto(0, message), size=FULL_DATAGRAM)) == [NO_MATCH]


def test_all_attempts_of_a_flow_share_one_bound_of_crypto_data() -> None:
    far = [Sender(destination_id=bytes([name]) * 8).initial(crypto(9000, b"x"), size=FULL_DATAGRAM) for name in (1, 2)]

    told = verdicts(*far)

    assert is_undecided(told[0])
    assert told[1] is NO_MATCH
    assert verdicts(Sender().initial(crypto(16_384, b"x"), size=FULL_DATAGRAM)) == [NO_MATCH]


def test_all_packets_of_a_flow_share_one_bound_of_frames() -> None:
    sender = Sender()
    many = sender.initial(crypto(0, b"") * 200, size=FULL_DATAGRAM)
    tiny = b"".join(sender.initial(PING * 3, number=number) for number in range(30)).ljust(FULL_DATAGRAM, b"\x00")

    told = verdicts(many, many)
    assert is_undecided(told[0])
    assert told[1] is NO_MATCH
    told = verdicts(*[tiny] * 10)
    assert is_undecided(told[0])
    assert told[-1] is NO_MATCH


@pytest.mark.parametrize("cut", range(1, len(CLIENT_HELLO), 10))
def test_the_verdict_does_not_depend_on_where_the_hello_is_cut(cut: int) -> None:
    sender = Sender()
    first, second = (sender.initial(frame, size=FULL_DATAGRAM) for frame in pieces(CLIENT_HELLO, cut))
    found = Match(Protocol.QUIC, "example.com", (b"alpn",))

    for order in ((first, second), (second, first)):
        told = verdicts(*order)
        assert is_undecided(told[0])
        assert told[1] == found


DATAGRAMS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([INITIAL_V1, INITIAL_V2, *long_flight(), Sender().zero_rtt()]),
    st.builds(
        lambda packet, at, change: packet[:at] + change + packet[at + len(change) :],
        st.sampled_from([INITIAL_V1, INITIAL_V2, Sender().zero_rtt()]),
        st.integers(0, 60),
        st.binary(min_size=1, max_size=8),
    ),
    st.builds(
        lambda frames, version: Sender(version).initial(frames, size=FULL_DATAGRAM),
        st.lists(
            st.one_of(
                st.sampled_from([PING, PADDING, ACK, ACK_ECN]),
                st.builds(crypto, st.integers(0, 400), st.binary(max_size=9)),
                st.binary(max_size=9),
            )
        ).map(b"".join),
        st.sampled_from(VERSIONS),
    ),
)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(DATAGRAMS, max_size=5))
def test_no_datagrams_raise(datagrams: list[bytes]) -> None:
    for verdict in verdicts(*datagrams):
        assert isinstance(verdict, Match | NeedMore) or verdict is NO_MATCH
