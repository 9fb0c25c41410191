"""Invariant: for any datagrams, the detector returns a verdict. It never raises, and it decides by the eighth."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import dns.flags
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.detect.udp import MAX_BYTES, MAX_DATAGRAMS, UdpDetector, may_begin, may_continue, preload
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict
from tests.support.quic_packets import (
    FULL_DATAGRAM,
    PING,
    VERSIONS,
    Sender,
    client_session,
    crypto,
    pieces,
    post_quantum_hello,
)
from tests.support.quic_vectors import CLIENT_HELLO, INITIAL_V1
from tests.support.tls_files import TlsFiles, make_tls_files

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


# The middle of a session


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder: Path = tmp_path_factory.mktemp("tls")
    return make_tls_files(folder, "www.example.org")


@pytest.fixture(scope="module", params=VERSIONS)
def quic_session(request: pytest.FixtureRequest, tls: TlsFiles) -> list[bytes]:
    return client_session(tls, request.param)


WIREGUARD_MESSAGES = (
    INITIATION,
    b"\x02\x00\x00\x00" + bytes(88),
    b"\x03\x00\x00\x00" + bytes(60),
    b"\x04\x00\x00\x00" + bytes(28),
    b"\x04\x00\x00\x00" + bytes(1448),  # a full packet of a tunnel with an MTU of 1420, which is not padded
)


def queries() -> list[bytes]:
    """DNS queries with identifiers all over their range, as stub resolvers and iterative ones send them."""
    names = [".", "a.example", "www.example.org", "an-unusually-long-label-that-fills-the-query.www.example.org"]
    found = []
    for identifier in [*range(0, 65_536, 251), 0x0400, 0x0100, 0xC000]:
        message = dns.message.make_query(names[identifier % len(names)], "AAAA", use_edns=identifier % 2 == 1)
        message.id = identifier
        for flags in (dns.flags.RD, dns.flags.RD | dns.flags.AD, dns.flags.CD, 0):
            message.flags = dns.flags.Flag(flags)
            found.append(message.to_wire())
    return found


def test_every_datagram_of_a_quic_session_may_continue_it(quic_session: list[bytes]) -> None:
    short = [datagram for datagram in quic_session if datagram[0] < 0x80]

    assert len(short) > 5
    assert len(quic_session) - len(short) > 1
    assert all(may_continue(Protocol.QUIC, datagram) for datagram in quic_session)
    assert not any(may_continue(Protocol.WIREGUARD, datagram) for datagram in quic_session)


def test_a_quic_session_goes_on_where_the_client_clears_the_fixed_bit(quic_session: list[bytes]) -> None:
    assert all(may_continue(Protocol.QUIC, bytes([each[0] & ~0x40]) + each[1:]) for each in quic_session)


def test_early_data_handshakes_and_initials_to_a_short_id_may_continue_a_quic_session() -> None:
    for version in VERSIONS:
        sender = Sender(version, destination_id=b"four")
        for datagram in (sender.zero_rtt(), sender.handshake(), sender.initial(PING, size=FULL_DATAGRAM)):
            assert may_continue(Protocol.QUIC, datagram)


@pytest.mark.parametrize("message", WIREGUARD_MESSAGES, ids=len)
def test_every_wireguard_message_may_continue_a_wireguard_session(message: bytes) -> None:
    assert may_continue(Protocol.WIREGUARD, message)


def test_anything_may_continue_a_flow_that_was_not_recognised() -> None:
    for datagram in (b"", b"?", INITIAL_V1, *WIREGUARD_MESSAGES, *queries()):
        assert may_continue(None, datagram)


@pytest.mark.parametrize("protocol", sorted(BOTH))
def test_no_dns_query_continues_a_session_of_a_protocol(protocol: Protocol) -> None:
    assert [query for query in queries() if may_continue(protocol, query)] == []


def test_a_dns_response_is_told_from_wireguard_but_not_always_from_quic() -> None:
    response = dns.message.make_response(dns.message.make_query("www.example.org", "AAAA"))
    response.id = 0x5678
    datagram = response.to_wire()

    assert may_continue(Protocol.QUIC, datagram)
    assert not may_continue(Protocol.WIREGUARD, datagram)


def test_few_datagrams_with_the_uppermost_bit_continue_quic_by_chance() -> None:
    chance = random.Random(1)
    found = sum(
        may_continue(Protocol.QUIC, bytes([0x80 | number % 128]) + chance.randbytes(99)) for number in range(20_000)
    )

    assert 100 < found < 170


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.TLS, Protocol.SSH, Protocol.SOCKS5])
def test_nothing_continues_a_protocol_of_tcp(protocol: Protocol) -> None:
    assert not any(may_continue(protocol, datagram) for datagram in (INITIAL_V1, *WIREGUARD_MESSAGES))


def test_the_first_datagram_of_a_session_may_begin_one(quic_session: list[bytes]) -> None:
    assert may_begin(quic_session[0]) is Protocol.QUIC
    assert may_begin(INITIATION) is Protocol.WIREGUARD


def test_most_of_what_follows_does_not(quic_session: list[bytes]) -> None:
    assert [may_begin(message) for message in WIREGUARD_MESSAGES[1:]] == [None] * 4
    assert {may_begin(datagram) for datagram in quic_session if datagram[0] < 0x80} == {None}
    assert {may_begin(query) for query in queries()} == {None}


def test_only_a_detector_tells_a_clients_later_initial_from_its_first(quic_session: list[bytes]) -> None:
    first, *rest = quic_session
    later = [datagram for datagram in rest if may_begin(datagram) is Protocol.QUIC]

    assert later
    assert isinstance(verdicts(first)[0], Match)
    assert {verdicts(datagram)[0] for datagram in later} == {NO_MATCH}


def test_an_initial_in_a_datagram_too_short_or_of_another_version_begins_nothing() -> None:
    sender = Sender()

    assert may_begin(sender.initial(PING, size=FULL_DATAGRAM - 1)) is None
    assert may_begin(sender.zero_rtt(FULL_DATAGRAM)) is None
    assert may_begin(INITIAL_V1[:1] + b"\x1a\x2a\x3a\x4a" + INITIAL_V1[5:]) is None
    assert all(may_begin(INITIAL_V1[:length]) is None for length in range(len(INITIAL_V1)))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(lambda rest: b"\xc0\x00\x00\x00\x01" + rest + bytes(1200), st.binary(max_size=60)),
        st.builds(bytes.__add__, st.sampled_from([message[:4] for message in WIREGUARD_MESSAGES]), st.binary()),
    )
)
def test_what_may_begin_a_session_may_continue_one_and_no_bytes_raise(datagram: bytes) -> None:
    protocol = may_begin(datagram)

    for each in Protocol:
        continues = may_continue(each, datagram)
        assert continues or protocol is not each
