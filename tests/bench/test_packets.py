from __future__ import annotations

from pathlib import Path

import pytest

from bench import packets
from rpxy_l4.detect.udp import UdpDetector
from rpxy_l4.verdict import Match, Protocol


def test_every_initial_is_recognised_with_its_server_name() -> None:
    names = set()
    made = packets.initials("bench.example", 3)
    for start in range(0, len(made), packets.INITIAL_BYTES):
        datagram = made[start : start + packets.INITIAL_BYTES]
        verdict = UdpDetector(frozenset({Protocol.QUIC})).feed(datagram)
        assert isinstance(verdict, Match)
        assert verdict.server_name == "bench.example"
        assert verdict.alpn == (b"h3",)
        names.add(datagram[6:14])

    assert len(names) == 3


def test_the_source_id_is_the_one_in_the_hello() -> None:
    # RFC 9000 7.3: a server closes the connection otherwise.
    hello, source = packets.quic_hello("bench.example")

    assert b"\x0f" + bytes([len(source)]) + source in hello


def test_the_hello_of_openssl_asks_for_the_name() -> None:
    assert b"bench.example" in packets.client_hello("bench.example")


def test_packets_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "INITIALS", 2)
    path = tmp_path / "new" / "initials.bin"

    packets.write_initials(path, "bench.example")
    first = path.read_bytes()
    packets.write_initials(path, "other.example")

    assert len(first) == 2 * packets.INITIAL_BYTES
    assert path.read_bytes() == first
