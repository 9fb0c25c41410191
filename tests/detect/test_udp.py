"""Invariant: for any datagrams, the detector returns a verdict. It never raises, and it decides by the eighth."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.detect.udp import MAX_BYTES, MAX_DATAGRAMS, UdpDetector, preload
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict
from tests.support.quic_packets import FULL_DATAGRAM, PING, Sender, crypto, pieces, post_quantum_hello
from tests.support.quic_vectors import CLIENT_HELLO, INITIAL_V1

BOTH = frozenset({Protocol.QUIC, Protocol.WIREGUARD})
INITIATION = b"\x01\x00\x00\x00" + bytes(144)
HELLO = post_quantum_hello("www.example.org", "h3")
FOUND = Match(Protocol.QUIC, "www.example.org", (b"h3",))


def verdicts(*datagrams: bytes, wanted: frozenset[Protocol] = BOTH) -> list[Verdict]:
    """What one detector says to each in turn."""
    detector = UdpDetector(wanted)
    return [detector.feed(datagram) for datagram in datagrams]


def is_undecided(verdict: Verdict) -> bool:
    return isinstance(verdict, NeedMore)


def test_each_protocol_is_recognised_by_its_first_datagram() -> None:
    assert verdicts(INITIATION) == [Match(Protocol.WIREGUARD)]
    assert verdicts(INITIAL_V1) == [Match(Protocol.QUIC, "example.com", (b"alpn",))]


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({Protocol.TLS}), frozenset({Protocol.QUIC})])
def test_wireguard_is_not_recognised_where_it_is_not_wanted(wanted: frozenset[Protocol]) -> None:
    assert verdicts(INITIATION, wanted=wanted) == [NO_MATCH]


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({Protocol.TLS}), frozenset({Protocol.WIREGUARD})])
def test_quic_is_not_recognised_where_it_is_not_wanted(wanted: frozenset[Protocol]) -> None:
    assert verdicts(INITIAL_V1, wanted=wanted) == [NO_MATCH]


def test_a_datagram_of_neither_is_no_match_at_once() -> None:
    query = bytes.fromhex("abcd01000001000000000000") + b"\x07example\x03org\x00\x00\x01\x00\x01"

    assert verdicts(query) == [NO_MATCH]
    assert verdicts(b"") == [NO_MATCH]


def test_a_post_quantum_hello_is_recognised_though_copied_and_out_of_order() -> None:
    first, second = (Sender().initial(frame, size=FULL_DATAGRAM) for frame in pieces(HELLO, 700))

    for arriving in ((first, first, second), (second, second, first), (second, first)):
        *early, last = verdicts(*arriving)
        assert all(map(is_undecided, early))
        assert last == FOUND


def test_early_data_and_an_initial_in_any_order_are_one_quic_flow() -> None:
    sender = Sender()
    first, second = (sender.initial(frame, size=FULL_DATAGRAM) for frame in pieces(HELLO, 700))

    for arriving in itertools.permutations((sender.zero_rtt(900), first, second)):
        told = verdicts(*arriving)
        at = told.index(FOUND)
        assert all(map(is_undecided, told[:at]))


def test_a_wireguard_initiation_amid_an_undecided_flow_does_not_turn_it() -> None:
    sender = Sender()
    first, second = (sender.initial(frame, size=FULL_DATAGRAM) for frame in pieces(HELLO, 700))

    told = verdicts(first, INITIATION, second)

    assert is_undecided(told[1])
    assert told[2] == FOUND


def test_the_eighth_datagram_is_still_read_and_the_last_to_be_waited_for() -> None:
    sender = Sender()
    pings = [sender.initial(PING, size=FULL_DATAGRAM, number=number) for number in range(MAX_DATAGRAMS)]
    hello = sender.initial(crypto(0, CLIENT_HELLO), size=FULL_DATAGRAM)

    assert verdicts(*pings[:-1], hello)[-1] == Match(Protocol.QUIC, "example.com", (b"alpn",))
    told = verdicts(*pings)
    assert all(map(is_undecided, told[:-1]))
    assert told[-1] is NO_MATCH


def test_a_flow_of_more_than_16_kib_is_no_match() -> None:
    sender = Sender()
    large = [sender.initial(PING, size=MAX_BYTES // 2, number=number) for number in range(2)]

    told = verdicts(*large, sender.initial(crypto(0, CLIENT_HELLO), size=FULL_DATAGRAM))

    assert all(map(is_undecided, told[:2]))
    assert told[2] is NO_MATCH


def test_no_match_is_final() -> None:
    assert verdicts(b"?", INITIAL_V1, INITIATION) == [NO_MATCH, NO_MATCH, NO_MATCH]


@pytest.mark.parametrize(("protocol", "loaded"), [("QUIC", True), ("WIREGUARD", False)])
def test_cryptography_is_loaded_ahead_for_quic_and_never_without_it(protocol: str, loaded: bool) -> None:
    code = (
        "import sys; from rpxy_l4.detect.udp import UdpDetector, preload; from rpxy_l4.verdict import Protocol;"
        f"wanted = frozenset({{Protocol.{protocol}}}); assert 'cryptography' not in sys.modules; preload(wanted);"
        f"assert ('cryptography' in sys.modules) is {loaded}; UdpDetector(wanted).feed(bytes(1200));"
        f"assert ('cryptography' in sys.modules) is {loaded}"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_preloading_may_be_done_with_every_configuration() -> None:
    for wanted in (BOTH, frozenset[Protocol](), BOTH):
        preload(wanted)

    assert verdicts(INITIATION) == [Match(Protocol.WIREGUARD)]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([INITIATION, Sender().zero_rtt(), Sender().initial(PING, size=FULL_DATAGRAM)]),
            st.builds(lambda rest: b"\xc0\x00\x00\x00\x01" + rest + bytes(1200), st.binary(max_size=60)),
        ),
        min_size=MAX_DATAGRAMS,
        max_size=MAX_DATAGRAMS + 2,
    )
)
def test_any_datagrams_are_decided_by_the_eighth_and_never_raise(datagrams: list[bytes]) -> None:
    detector = UdpDetector(BOTH)
    told = itertools.takewhile(is_undecided, map(detector.feed, datagrams))

    assert len(list(told)) < MAX_DATAGRAMS
