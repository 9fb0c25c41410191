"""Invariant: the verdict depends on the bytes and on the end of the client's direction, never on how TCP cut them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.detect.tcp import DETECT_LIMIT, TcpDetector
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict
from tests.support.hellos import (
    RECORD_HEADER,
    alpn,
    body,
    extension,
    flight,
    key_share,
    message,
    openssl_hello,
    record,
    records,
    sni,
)
from tests.support.prefixes import at_every_length, mutated, pieces

ALL = frozenset({Protocol.HTTP, Protocol.TLS, Protocol.SSH, Protocol.SOCKS5})
OPENSSL = openssl_hello("www.example.org", ["h2"])
TLS = Match(Protocol.TLS, "www.example.org", (b"h2",))
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"
GREETING = b"\5\2\0\2"
SMALL_HELLO = flight(sni(b"a.example"))
BEGINNINGS = [REQUEST, b"\r\n" + REQUEST, PREFACE, BANNER, GREETING, SMALL_HELLO, records(SMALL_HELLO[5:], 9, 1, 40)]


def whole(data: bytes | bytearray, eof: bool = False, wanted: frozenset[Protocol] = ALL) -> Verdict:
    return TcpDetector(wanted).feed(data, eof)


def in_parts(detector: TcpDetector, parts: list[bytes], eof: bool) -> Verdict:
    """What a worker does: add to one buffer, stop at a decision."""
    data = bytearray()
    verdict: Verdict = NO_MATCH
    for number, part in enumerate(parts, 1):
        data += part
        verdict = detector.feed(data, eof and number == len(parts))
        if not isinstance(verdict, NeedMore):
            break
    return verdict


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (REQUEST, Match(Protocol.HTTP)),
        (PREFACE, Match(Protocol.HTTP)),
        (BANNER, Match(Protocol.SSH)),
        (GREETING, Match(Protocol.SOCKS5)),
        (OPENSSL, TLS),
        (b"PROPFIND / HTTP/1.1\r\n", Match(Protocol.HTTP)),
        (b"SEARCH / HTTP/1.1\r\n", Match(Protocol.HTTP)),
        (b"SSH-FETCH / HTTP/1.1\r\n", Match(Protocol.HTTP)),
        (b"PRI * HTTP/1.1\r\n", Match(Protocol.HTTP)),
        (b"OPTIONS rtsp://a RTSP/1.0\r\n", NO_MATCH),
        (b"\0\1\2\3", NO_MATCH),
    ],
)
def test_each_protocol_is_recognised_at_every_length(data: bytes, verdict: Verdict) -> None:
    assert at_every_length(whole, data)[-1] == verdict


def test_only_wanted_protocols_are_recognised() -> None:
    samples = {
        Protocol.HTTP: REQUEST,
        Protocol.TLS: OPENSSL,
        Protocol.SSH: BANNER,
        Protocol.SOCKS5: GREETING,
    }
    for wanted, (protocol, data) in itertools.product(samples, samples.items()):
        verdict = whole(data, wanted=frozenset({wanted}))
        assert isinstance(verdict, Match) is (protocol is wanted)


def test_a_protocol_that_is_not_wanted_is_refused_at_its_first_byte() -> None:
    assert whole(b"S", wanted=frozenset({Protocol.TLS})) is NO_MATCH


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({Protocol.QUIC, Protocol.WIREGUARD})])
def test_where_nothing_of_tcp_is_wanted_no_byte_is_awaited(wanted: frozenset[Protocol]) -> None:
    assert whole(b"", wanted=wanted) is NO_MATCH


def test_before_the_first_byte_one_byte_is_asked_for() -> None:
    assert whole(b"") == NeedMore(1)


def test_an_end_without_a_byte_is_no_match() -> None:
    assert whole(b"", eof=True) is NO_MATCH


def test_three_bytes_and_the_end_are_no_match() -> None:
    detector = TcpDetector(ALL)

    assert detector.feed(b"GET", eof=False) == NeedMore(4)
    assert detector.feed(b"GET", eof=True) is NO_MATCH


def test_a_verdict_stays_when_asked_for_again() -> None:
    detector = TcpDetector(ALL)

    assert [detector.feed(REQUEST + extra, eof=False) for extra in (b"", b"x")] == [Match(Protocol.HTTP)] * 2
    assert [TcpDetector(ALL).feed(b"\0" + extra, eof=False) for extra in (b"", b"x")] == [NO_MATCH] * 2


@settings(max_examples=60)
@given(st.data())
def test_the_verdict_is_the_same_for_every_cut(draw: st.DataObject) -> None:
    data = draw.draw(st.sampled_from(BEGINNINGS) | mutated(BEGINNINGS) | st.binary(min_size=1, max_size=40))
    wanted = draw.draw(st.frozensets(st.sampled_from(sorted(ALL))))
    eof = draw.draw(st.booleans())
    limit = draw.draw(st.sampled_from([DETECT_LIMIT, 8, 30, 70]))
    parts = draw.draw(pieces(data))

    assert in_parts(TcpDetector(wanted, limit), parts, eof) == TcpDetector(wanted, limit).feed(data, eof)


@given(st.sampled_from(BEGINNINGS).flatmap(pieces), st.binary(max_size=20))
def test_what_follows_changes_no_match(parts: list[bytes], rest: bytes) -> None:
    verdict = in_parts(TcpDetector(ALL), parts, eof=False)

    assert isinstance(verdict, Match)
    assert whole(b"".join(parts) + rest) == verdict


@pytest.mark.parametrize("data", [OPENSSL, records(OPENSSL[RECORD_HEADER:], 1, 5, 16_384), SMALL_HELLO])
def test_a_hello_in_segments_of_one_byte_is_recognised(data: bytes) -> None:
    parts = [data[n : n + 1] for n in range(len(data))]

    assert in_parts(TcpDetector(ALL), parts, eof=False) == whole(data)
    assert isinstance(whole(data), Match)


def test_a_hello_with_all_that_may_follow_in_its_segment_is_recognised() -> None:
    data = OPENSSL + record(b"\1", kind=20) + record(bytes(300), kind=23)

    assert whole(data) == TLS


def test_the_letters_of_http_in_a_server_name_do_not_mislead() -> None:
    assert whole(flight(sni(b"HTTP.example"))) == Match(Protocol.TLS, "http.example")


def test_a_hello_of_no_extensions_but_an_empty_ech_is_tls() -> None:
    hello = "16 0301 003a 01 000036 0303" + "5a" * 32 + "00 0002 1301 01 00 000b fe0d0000 002b0003020304"

    assert whole(bytes.fromhex(hello)) == Match(Protocol.TLS)


def test_a_post_quantum_hello_fits_in_small_records() -> None:
    hello = message(body(key_share(1216), sni(b"pq.example"), alpn(b"h2"), extension(21, bytes(400))))

    assert whole(records(hello, 1)) == Match(Protocol.TLS, "pq.example", (b"h2",))


def test_the_greatest_record_fits() -> None:
    filler = 16_384 - len(message(body(sni(b"a.example"), extension(21, b""))))
    data = flight(sni(b"a.example"), extension(21, bytes(filler)))

    assert len(data) == DETECT_LIMIT
    assert whole(data) == Match(Protocol.TLS, "a.example")


def test_a_request_line_of_sixteen_kib_is_recognised() -> None:
    line = b"GET /".ljust(16_384 - len(b" HTTP/1.1\r\n"), b"a") + b" HTTP/1.1\r\n"

    assert whole(line) == Match(Protocol.HTTP)


def test_what_is_undecided_at_the_limit_is_no_match_however_much_is_there() -> None:
    line = b"GET /" + b"a" * 100 + b" HTTP/1.1\r\n"
    detector = TcpDetector(ALL, limit=100)

    assert detector.feed(line[:99], eof=False) == NeedMore(100)
    assert detector.feed(line[:100], eof=False) is NO_MATCH
    assert TcpDetector(ALL, limit=100).feed(line, eof=False) is NO_MATCH
    assert TcpDetector(ALL, limit=len(line)).feed(line + b"Host:", eof=False) == Match(Protocol.HTTP)


def test_a_hello_that_cannot_fit_is_refused_when_it_says_so() -> None:
    data = records(message(body(extension(21, bytes(20_000)))), 16_384)

    assert whole(data[:8]) == NeedMore(9)
    assert whole(data[:9]) is NO_MATCH
    assert whole(data) is NO_MATCH


def test_below_what_was_asked_for_nothing_is_probed_again() -> None:
    detector = TcpDetector(ALL)
    asked = detector.feed(OPENSSL[:20], eof=False)

    assert asked == NeedMore(len(OPENSSL))
    assert detector.feed(bytes(len(OPENSSL) - 1), eof=False) is asked


@given(st.binary(max_size=64), st.booleans())
def test_no_bytes_make_it_raise(data: bytes, eof: bool) -> None:
    verdict = whole(data, eof)

    assert not (eof and isinstance(verdict, NeedMore))
