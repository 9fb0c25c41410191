"""Reading the access log: whole lines, each once, and what they say."""

from __future__ import annotations

from pathlib import Path

from rpxy_l4.demo import sessions
from rpxy_l4.demo.sessions import Tail
from rpxy_l4.verdict import Transport

SESSION = sessions.parse(
    "ts=2026-01-01T00:00:00.000Z event=session client=127.0.0.1:5 listener=:8448 transport=tcp detected=tls"
    " sni=site.example alpn=h2,http/1.1 route=site target=127.0.0.1:9 bytes_in=10 bytes_out=20 duration_ms=1.5"
    " reason=client_eof worker=0"
)


def test_a_tail_begins_at_the_present_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    assert tail.read() == []
    with path.open("a") as file:
        file.write("new\n")
    assert tail.read() == ["new"]
    assert tail.read() == []


def test_a_tail_waits_for_the_file_and_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text("one\ntw")
    assert tail.read() == ["one"]
    path.write_text("one\ntwo\n")
    assert tail.read() == ["two"]


def test_a_tail_begins_again_with_a_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a long line\n")
    tail = Tail(path)
    path.write_text("new\n")
    assert tail.read() == ["new"]


def test_a_session_is_known_by_transport_and_client() -> None:
    assert sessions.key_of(SESSION) == sessions.key(Transport.TCP, ("127.0.0.1", 5))
    assert sessions.key_of(SESSION) != sessions.key(Transport.UDP, ("127.0.0.1", 5))


def test_what_was_recognised_names_what_the_client_asked_for() -> None:
    assert sessions.recognised(SESSION) == "tls site.example h2,http/1.1"
    assert sessions.recognised({"detected": "ssh"}) == "ssh"
    assert sessions.recognised({}) == ""


def test_the_summary_is_for_a_person() -> None:
    assert sessions.summary(SESSION) == (
        "tls site.example h2,http/1.1 -> site 127.0.0.1:9  10 bytes in, 20 out, 1.5 ms, client_eof"
    )
    refused = sessions.parse("event=refused transport=udp detected=unknown reason=no_route")
    assert sessions.summary(refused) == "unknown: refused, no_route"


def test_a_line_that_is_no_session_is_no_trouble() -> None:
    assert sessions.parse("") == {}
    assert sessions.key_of(sessions.parse("what is this")) == ("", "")
