from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.access_log import FLUSH_BYTES, AccessLog, alpn_text, describe, endpoint
from rpxy_l4.endings import Detected
from rpxy_l4.logs import Sink
from rpxy_l4.verdict import Match, Protocol, Transport


def test_an_endpoint_brackets_ipv6() -> None:
    assert endpoint("1.2.3.4", 5) == "1.2.3.4:5"
    assert endpoint("::1", 5) == "[::1]:5"


def test_a_recognised_session_is_described_with_name_and_alpn() -> None:
    match = Match(Protocol.TLS, "a.example", (b"h2", b"http/1.1"))

    assert describe("1.2.3.4:5", ":443", Transport.TCP, Detected.TLS, match, None) == (
        "client=1.2.3.4:5 listener=:443 transport=tcp detected=tls sni=a.example alpn=h2,http/1.1"
    )


@given(st.lists(st.binary(max_size=8)).map(tuple))
def test_whatever_a_client_offers_stays_one_field_of_one_line(names: tuple[bytes, ...]) -> None:
    text = alpn_text(names)

    assert text.isascii()
    assert not set(text) & set(' \n\r\t"=')


def test_lines_are_collected_and_written_whole(tmp_path: Path) -> None:
    pending: list[int] = []
    log = AccessLog(Sink(1, tmp_path / "access.log"), "2", lambda: pending.append(1))
    log.session("client=a")
    log.session("client=b")

    assert len(pending) == 1
    assert (tmp_path / "access.log").read_text() == ""
    log.flush()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "event=session client=a worker=2",
        "event=session client=b worker=2",
    ]


def test_a_full_buffer_is_written_at_once(tmp_path: Path) -> None:
    log = AccessLog(Sink(1, tmp_path / "access.log"), "0", lambda: None)
    log.session("x" * FLUSH_BYTES)

    assert (tmp_path / "access.log").stat().st_size > FLUSH_BYTES


def test_a_flood_of_refusals_is_summed_up(tmp_path: Path) -> None:
    log = AccessLog(Sink(1, tmp_path / "access.log"), "0", lambda: None)
    for _ in range(1000):
        log.refused("reason=no_route", "no_route", 5.0)
    log.refused("reason=no_route", "no_route", 6.5)
    log.flush()

    lines = (tmp_path / "access.log").read_text().splitlines()
    assert len(lines) == 11
    assert "repeated=990" in lines[-1]


def test_a_client_that_offers_kilobytes_of_alpn_does_not_fill_the_log() -> None:
    assert len(alpn_text((b"\x01" * 255,) * 60)) < 1000
    assert alpn_text((b"h2", b"x" * 200, b"h3")) == "h2,..."
