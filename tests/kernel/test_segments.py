"""The program on TCP, run by the kernel (BPF_PROG_TEST_RUN): what becomes of each packet of a connection."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from rpxy_l4.balance import bucket_of
from rpxy_l4.endings import Reason
from rpxy_l4.kernel import connections as module
from rpxy_l4.kernel import path
from rpxy_l4.kernel.bpf import Map
from rpxy_l4.kernel.clients import Clients
from rpxy_l4.kernel.connections import Connections, Plan
from rpxy_l4.kernel.layout import (
    BEGUN_PART,
    DIRECTION_BYTES,
    FLOW_BYTES,
    MAPS,
    TARGET_BYTES,
    TARGETS,
    Choosing,
    End,
    Remote,
    Total,
    Why,
    address,
    client_key,
    flow_key,
    is_from_client,
    number_of,
    number_value,
    other_number,
    place_key,
)
from rpxy_l4.kernel.path import KernelPath
from rpxy_l4.kernel.routes import Passage, Routes
from tests.kernel.test_packets import ELSEWHERE, ETHERNET, LEFT, LOOPBACK, PASSED, REDIRECTED, mutated, total
from tests.support.kernel_path import needs_kernel_path, take_all, try_program

DROPPED: Final = 2
"""TC_ACT_SHOT."""
MTU: Final = 1400
SERIES: Final = 5
FIN, SYN, RST, ACK = 1, 2, 4, 16
TIME: Final = b"\x01\x01\x08\x0a" + bytes(8)


@dataclass(frozen=True)
class Segment:
    """A TCP segment, and how to write it."""

    source: tuple[str, int]
    destination: tuple[str, int]
    flags: int = ACK
    sequence: int = 1001
    acknowledged: int = 5001
    payload: bytes = b""
    hop_limit: int = 64
    options: bytes = b""
    """Of TCP, in words of four bytes."""
    ip_options: bytes = b""
    fragment: int = 0x4000

    def packet(self) -> bytes:
        source, destination = (address(*end).packed for end in (self.source, self.destination))
        words = 5 + len(self.options) // 4
        length = 4 * words + len(self.payload)
        tcp = struct.pack(
            "!HHIIBBHHH", self.source[1], self.destination[1], self.sequence, self.acknowledged, words << 4,
            self.flags, 500, 0, 0,
        )  # fmt: skip
        tcp += self.options + self.payload
        checksum = ~total(source + destination + struct.pack("!HH", 6, length) + tcp) & 0xFFFF
        tcp = tcp[:16] + struct.pack("!H", checksum) + tcp[18:]
        if len(source) == 4:
            header = 5 + len(self.ip_options) // 4
            ip = struct.pack("!BBHHHBBH", 0x40 | header, 0, 4 * header + length, 7, self.fragment, self.hop_limit, 6, 0)
            ip += source + destination + self.ip_options
            ip = ip[:10] + struct.pack("!H", ~total(ip) & 0xFFFF) + ip[12:]
            return ETHERNET + b"\x08\x00" + ip + tcp
        ip = struct.pack("!IHBB", 6 << 28, length, 6, self.hop_limit)
        return ETHERNET + b"\x86\xdd" + ip + source + destination + tcp

    def answer(self, **changes: object) -> Segment:
        """One that goes the other way."""
        turned = replace(self, source=self.destination, destination=self.source, options=b"", payload=b"")
        return replace(turned, **changes)  # type: ignore[arg-type]  # as the test says


def size_option(size: int) -> bytes:
    return struct.pack("!BBH", 2, 4, size)


CLIENT: Final = {4: ("192.0.2.1", 20_000), 6: ("2001:db8::1", 20_000)}
LOCAL: Final = {4: ("192.0.2.2", 443), 6: ("2001:db8::2", 443)}
TARGET: Final = {4: ("10.0.0.2", 80), 6: ("2001:db8:ff::2", 80)}
SOURCE: Final = {4: "10.0.0.1", 6: "2001:db8:ff::1"}


class Bench:
    """A program that has one target, of either family."""

    def __init__(self) -> None:
        self.path = KernelPath(8, 64)
        self.connections = Connections(self.path.maps)
        self.passage = Passage(ELSEWHERE, MTU, is_local=False)
        clients, settings = (os.dup(self.path.maps[name]) for name in ("clients", "settings"))
        self.clients = Clients(clients, settings, lambda _destination, _source: self.passage)
        for family in (6, 4):
            self.follow(family)
            self.prove(family)

    def close(self) -> None:
        self.clients.close()
        self.connections.close()
        self.path.close()

    def follow(self, family: int = 4, *, tells: bool = True, is_local: bool = False) -> None:
        remote = Remote(
            address(*TARGET[family]), address(SOURCE[family], 0).packed, LOOPBACK if is_local else ELSEWHERE, MTU,
            is_local, SERIES,
        )  # fmt: skip
        assert self.connections.follow(Plan(Choosing.ANY, [remote], [0], tells)) is None
        self.connections.allow(50)
        self.family = family

    def prove(self, family: int = 4) -> None:
        """Let the target answer a socket's SYN, and user space see the client."""
        answer = Segment(TARGET[family], (SOURCE[family], 40_000), SYN | ACK).packet()
        assert self.give(answer) == (LEFT, answer)
        self.clients.admit(CLIENT[family], LOCAL[family], 0, time.monotonic() + 100.0 * family)

    def give(self, packet: bytes) -> tuple[int, bytes]:
        return try_program(self.path.program("ethernet"), packet)

    def age(self, port: int) -> None:
        """Have a connection begun three seconds ago."""
        number = self.numbers()[flow_key(address(CLIENT[4][0], port), address(*LOCAL[4]), 6)]
        begun, at = time.monotonic_ns() - 3_000_000_000, number * DIRECTION_BYTES + BEGUN_PART.start
        places = Map(self.path.maps["open"], MAPS["open"])
        for each in (number, other_number(number)):
            if places.remove(place_key(each, *struct.unpack_from("=Q", self.connections._directions, at))):
                places.insert(place_key(each, begun), number_value(number))
        struct.pack_into("=Q", self.connections._directions, at, begun)
        for number in range(TARGETS):  # and no target have answered since
            struct.pack_into("=Q", self.connections._targets, (number + 1) * TARGET_BYTES - 8, 0)

    def numbers(self) -> dict[bytes, int]:
        """Return the directions that there are, by their keys."""
        entries = Map(self.path.maps["connections"], MAPS["connections"]).items()
        return {key: number_of(value) for key, value in entries}

    def are_places_right(self) -> bool:
        """Whether each place is either vacant or that of a connection, once. None is vacant afterwards."""
        in_use = {number & ~1 for number in self.numbers().values()}
        open_ = {number_of(place[:4]) for place, _ in Map(self.path.maps["open"], MAPS["open"]).items()}
        vacant = take_all(self.path.maps["vacant"])
        assert {number for number in open_ if is_from_client(number)} == in_use
        assert {number & ~1 for number in open_} == in_use
        return sorted([*vacant, *in_use]) == [*range(0, 2 * (64 + path._SPARE), 2)]

    @staticmethod
    def key_of_target(port: int) -> bytes:
        return flow_key(address(*TARGET[4]), address(SOURCE[4], port), 6)

    def left(self) -> dict[str, int]:
        return {why.name: count for why, count in self.path.left().items() if count}

    def counted(self) -> dict[Total, int]:
        """What is told to be new."""
        found = dict.fromkeys(Total, 0)
        for series, change in self.connections.news():
            assert series == SERIES
            for word in Total:
                found[word] += change[word]
        return found

    def ends(self) -> list[End]:
        return [end for _, end in self.connections.ends(100)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    needs_kernel_path()
    with closing(Bench()) as made:
        yield made


def syn(family: int = 4, port: int = 20_000, **changes: object) -> Segment:
    made = Segment((CLIENT[family][0], port), LOCAL[family], SYN, 1000, 0, options=size_option(1200))
    return replace(made, **changes)  # type: ignore[arg-type]  # as the test says


class Narrow(Routes):
    """Routes of which each leads to another interface, by shorter packets."""

    def find(self, _destination: bytes, _source: bytes) -> Passage:
        return Passage(ELSEWHERE + 1, 600, is_local=False)


def port_of(packet: bytes, family: int = 4) -> int:
    start = 34 if family == 4 else 54
    found: int = struct.unpack_from("!H", packet, start)[0]
    return found


class Connection:
    """One that is established, and what its packets become."""

    def __init__(self, bench: Bench, family: int = 4, port: int = 20_000, *, established: bool = True) -> None:
        self.bench, self.family = bench, family
        self.client = replace(syn(family, port), flags=ACK, sequence=1001, acknowledged=5001, options=b"")
        if family != bench.family:
            bench.follow(family)
        verdict, packet = bench.give(syn(family, port).packet())
        assert verdict == REDIRECTED, bench.left()
        self.port = port_of(packet, family)
        self.target = Segment(TARGET[family], (SOURCE[family], self.port), ACK, 5001, 1001)
        expected = replace(self.target.answer(flags=SYN, sequence=1000, acknowledged=0), options=size_option(1200))
        assert packet == replace(expected, hop_limit=63).packet()
        if established:
            self.target_says(flags=SYN | ACK, sequence=5000)
            self.client_says()

    def client_says(self, **changes: object) -> None:
        """The client sends something, and the target gets it."""
        sent = replace(self.client, **changes)  # type: ignore[arg-type]  # as the test says
        got = replace(sent, source=self.target.destination, destination=self.target.source, hop_limit=63)
        assert self.bench.give(sent.packet()) == (REDIRECTED, got.packet())

    def target_says(self, **changes: object) -> None:
        """The target sends something, and the client gets it."""
        sent = replace(self.target, **changes)  # type: ignore[arg-type]  # as the test says
        got = replace(sent, source=self.client.destination, destination=self.client.source, hop_limit=63)
        assert self.bench.give(sent.packet()) == (REDIRECTED, got.packet())

    def is_known(self) -> bool:
        sent = replace(self.client, sequence=1, acknowledged=1).packet()
        verdict, packet = self.bench.give(sent)
        return (verdict, packet) != (LEFT, sent)


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_from_its_first_packet_to_its_last(bench: Bench, family: int) -> None:
    made = Connection(bench, family)
    assert bench.connections.live == 1
    made.client_says(payload=b"question")
    made.client_says(payload=b"question")  # sent again
    made.target_says(payload=b"an answer", acknowledged=1009)
    made.client_says(flags=FIN | ACK, sequence=1009, acknowledged=5010, payload=b"bye")
    made.target_says(sequence=5010, acknowledged=1013)
    made.target_says(sequence=5010, acknowledged=1013, payload=b"more")
    assert bench.ends() == []
    made.target_says(flags=FIN | ACK, sequence=5014, acknowledged=1013)
    assert made.is_known()
    assert bench.connections.live == 1, "the last word is missing"
    made.client_says(sequence=1013, acknowledged=5015)
    (end,) = bench.ends()
    assert (end.client, end.reason, end.bytes_in, end.bytes_out) == (CLIENT[family], Reason.CLIENT_EOF, 11, 13)
    assert end.begun <= end.connected <= end.ended <= time.monotonic_ns()
    assert not made.is_known()
    assert bench.connections.live == 0
    counted = bench.counted()
    assert (counted[Total.OPENED], counted[Total.BYTES_IN], counted[Total.BYTES_OUT]) == (1, 11, 13)
    assert counted[Total.CLOSED] == 1
    assert bench.counted() == dict.fromkeys(Total, 0), "told once"
    assert bench.connections.uncounted() == (1, 1)
    assert bench.connections.uncounted() == (0, 0)


def test_a_target_that_ends_first_keeps_its_port_for_the_same_client(bench: Bench) -> None:
    made = Connection(bench)
    made.target_says(flags=FIN | ACK)
    made.client_says(flags=FIN | ACK, acknowledged=5002)
    made.target_says(sequence=5002, acknowledged=1002)
    assert [end.reason for end in bench.ends()] == [Reason.TARGET_EOF]
    assert not made.is_known()
    assert Connection(bench).port == made.port
    # The next port of the same client would have been this one, if it were free.
    bench.clients.admit(("192.0.2.77", 1), LOCAL[4], 0, time.monotonic() + 1000.0)


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_reset_in_its_place_ends_a_connection(bench: Bench, first: str) -> None:
    made = Connection(bench)
    if first == "client":
        made.client_says(flags=RST, acknowledged=0)
    else:
        made.target_says(flags=RST | ACK)
    assert [end.reason for end in bench.ends()] == [Reason(f"{first}_reset")]
    assert not made.is_known()
    assert bench.connections.live == 0


def test_a_reset_that_answers_what_was_acknowledged_long_ago_ends_a_connection(bench: Bench) -> None:
    """A socket that is gone answers with what it is asked with."""
    made = Connection(bench)
    made.target_says(payload=b"x" * 100)
    made.client_says(acknowledged=5051)
    made.target_says(flags=RST, sequence=5051)
    assert [end.reason for end in bench.ends()] == [Reason.TARGET_RESET]


def test_a_reset_out_of_its_place_ends_nothing(bench: Bench) -> None:
    made = Connection(bench)
    made.client_says(flags=RST, sequence=1234)
    made.target_says(flags=RST, sequence=6000)
    made.client_says(payload=b"still here")
    assert bench.ends() == []
    assert bench.connections.live == 1


def test_a_refusal_is_kept_from_the_client_whose_next_attempt_goes_elsewhere(bench: Bench) -> None:
    made = Connection(bench, established=False)
    refusal = replace(made.target, flags=RST | ACK, sequence=0).packet()
    assert bench.give(refusal)[0] == DROPPED
    assert bench.connections.live == 0
    again = syn().packet()
    assert bench.give(again) == (LEFT, again)
    assert bench.left() == {"REFUSED": 1, "TARGET": 1}
    assert bench.counted()[Total.REFUSED] == 1
    bench.prove()
    Connection(bench)


def test_silence_is_taken_for_a_refusal_at_the_third_syn_after_three_seconds(bench: Bench) -> None:
    Connection(bench, established=False)
    first = syn().packet()
    for _ in range(5):
        assert bench.give(first)[0] == REDIRECTED
    bench.age(20_000)
    assert bench.give(first) == (LEFT, first)
    assert bench.counted()[Total.UNANSWERED] == 1
    bench.prove()  # too early: it is not believed at once
    other = syn(port=20_001).packet()
    assert bench.give(other) == (LEFT, other)


def test_many_without_an_answer_at_the_same_time_are_one_failure(bench: Bench) -> None:
    ports = range(20_000, 20_010)
    for port in ports:
        Connection(bench, port=port, established=False)
        assert bench.give(syn(port=port).packet())[0] == REDIRECTED
        bench.age(port)
    for port in ports:
        assert bench.give(syn(port=port).packet())[0] == LEFT
    assert bench.counted()[Total.UNANSWERED] == 10
    time.sleep(1.1)  # noqa: TID251  it is the program's own clock that has to pass
    bench.prove()
    Connection(bench)


def test_who_answers_is_not_silent_whoever_does_not_hear_it(bench: Bench) -> None:
    made = Connection(bench, established=False)
    made.target_says(flags=SYN | ACK, sequence=5000)
    bench.age(20_000)
    for _ in range(4):
        assert bench.give(syn().packet())[0] == REDIRECTED
        made.target_says(flags=SYN | ACK, sequence=5000)
    made.client_says()
    assert bench.connections.live == 1


def test_a_client_that_tries_again_from_its_port_begins_anew(bench: Bench) -> None:
    Connection(bench, established=False)
    verdict, packet = bench.give(syn(sequence=777_000).packet())
    assert verdict == REDIRECTED
    assert struct.unpack_from("!I", packet, 38) == (777_000,)
    assert bench.connections.pending == 1


def test_a_client_that_has_given_up_begins_anew(bench: Bench) -> None:
    made = Connection(bench, established=False)
    made.target_says(flags=SYN | ACK, sequence=5000)
    made.client_says(flags=RST, sequence=1001, acknowledged=0)
    assert not made.is_known()
    assert bench.connections.pending == 0
    # And where its word was lost.
    for sequence in (7000, 9000):
        verdict, packet = bench.give(syn(sequence=sequence).packet())
        assert (verdict, port_of(packet)) == (REDIRECTED, made.port)
        made.target_says(flags=SYN | ACK, sequence=sequence, acknowledged=sequence + 1)
    made.client_says(sequence=9001, acknowledged=9001, payload=b"data")
    assert (bench.connections.live, bench.counted()[Total.BYTES_IN]) == (1, 4)


def test_a_target_may_answer_once_more_and_otherwise(bench: Bench) -> None:
    """Whose answer was lost, and who remembers nothing (SYN cookies)."""
    made = Connection(bench, established=False)
    for sequence in (5000, 8000):
        made.target_says(flags=SYN | ACK, sequence=sequence)
    made.client_says(acknowledged=8001, payload=b"data")
    assert (bench.connections.live, bench.counted()[Total.BYTES_IN]) == (1, 4)


def test_a_syn_in_a_connection_that_has_nearly_ended_is_its_ends_to_judge(bench: Bench) -> None:
    made = Connection(bench)
    made.client_says(flags=FIN | ACK)
    made.target_says(flags=FIN | ACK, payload=b"data", acknowledged=1001)
    assert bench.give(syn(sequence=777_000).packet())[0] == REDIRECTED
    assert bench.connections.live == 1
    # The target has forgotten the connection, and has a new one. That shall be counted.
    answer = replace(made.target, flags=SYN | ACK, sequence=9000, acknowledged=777_001)
    assert bench.give(answer.packet())[0] == DROPPED
    assert [end.reason for end in bench.ends()] == [Reason.CLIENT_EOF]
    assert bench.connections.pending == 0
    assert bench.give(syn(sequence=777_000).packet())[0] == REDIRECTED
    assert bench.connections.pending == 1


def test_who_has_answered_others_meanwhile_is_not_silent(bench: Bench) -> None:
    """Anybody can send SYNs that no target answers, with wrong checksums or too few hops."""
    Connection(bench, established=False)
    assert bench.give(syn().packet())[0] == REDIRECTED
    bench.age(20_000)
    Connection(bench, port=20_001)
    assert bench.give(syn().packet())[0] == LEFT
    assert bench.counted()[Total.UNANSWERED] == 1
    Connection(bench, port=20_002)


def test_ends_that_cross_are_not_the_last_word(bench: Bench) -> None:
    """What a target has sent before its end may have to be sent again."""
    made = Connection(bench)
    made.target_says(payload=b"data")
    made.target_says(flags=FIN | ACK, sequence=5005)
    made.client_says(flags=FIN | ACK)
    made.target_says(sequence=5006, acknowledged=1002)
    assert made.is_known()
    made.client_says(sequence=1002, acknowledged=5001)
    made.target_says(payload=b"data", acknowledged=1002)
    made.client_says(sequence=1002, acknowledged=5006)
    assert not made.is_known()
    (end,) = bench.ends()
    assert (end.reason, end.bytes_out) == (Reason.TARGET_EOF, 4)


def test_a_refusal_after_an_answer_is_no_fault_of_the_target(bench: Bench) -> None:
    """The client had acknowledged something else."""
    made = Connection(bench, established=False)
    made.target_says(flags=SYN | ACK, sequence=5000)
    made.client_says(acknowledged=77)
    made.target_says(flags=RST, sequence=77)
    Connection(bench, port=20_001)


def test_an_acknowledgement_that_overtakes_an_end_counts_nothing(bench: Bench) -> None:
    made = Connection(bench)
    made.client_says(payload=b"data")
    made.client_says(sequence=1006)
    made.client_says(flags=FIN | ACK, sequence=1005)
    made.target_says(flags=FIN | ACK, acknowledged=1006)
    made.client_says(sequence=1006, acknowledged=5002)
    assert [(end.reason, end.bytes_in) for end in bench.ends()] == [(Reason.CLIENT_EOF, 4)]
    assert bench.counted()[Total.BYTES_IN] == 4


def test_a_wild_sequence_number_counts_for_nothing(bench: Bench) -> None:
    made = Connection(bench)
    made.client_says(sequence=3_000_000_000, payload=b"x")
    made.client_says(sequence=1_500_000_000, payload=b"x")
    made.client_says(payload=b"hello")
    assert bench.counted()[Total.BYTES_IN] == 5


def test_who_knows_no_sequence_numbers_ends_nothing(bench: Bench) -> None:
    """An attacker who knows addresses and ports: each of these is passed on, for the end to judge, and not believed."""
    made, random = Connection(bench), Random(9)
    for _ in range(300):
        wild = (1001 + random.randrange(1 << 20, (1 << 32) - (1 << 20))) % (1 << 32)
        made.client_says(sequence=wild)
        made.client_says(flags=RST, sequence=wild)
        made.client_says(flags=FIN | ACK, sequence=wild)
        made.target_says(sequence=5001, acknowledged=wild)
        made.client_says(flags=RST | ACK, sequence=wild, acknowledged=wild)
    made.client_says(payload=b"question")
    made.target_says(payload=b"answer", acknowledged=1009)
    assert bench.ends() == []
    assert bench.counted()[Total.BYTES_IN] == 8
    made.client_says(flags=RST, sequence=1009)
    assert [end.reason for end in bench.ends()] == [Reason.CLIENT_RESET]


def test_windows_are_scaled_as_both_ends_have_agreed(bench: Bench) -> None:
    """A segment far ahead is believed where the window says so."""
    scale = b"\1\3\3\x0a"
    for port, options, counted in ((20_001, scale, 1 + 400_000), (20_002, b"", 0)):
        sent = syn(port=port, options=scale)
        own = port_of(bench.give(sent.packet())[1])
        answer = Segment(TARGET[4], (SOURCE[4], own), SYN | ACK, 5000, 1001, options=options)
        assert bench.give(answer.packet())[0] == REDIRECTED
        client = replace(sent, flags=ACK, sequence=1001, acknowledged=5001, options=b"")
        assert bench.give(client.packet())[0] == REDIRECTED
        # 500, scaled by 1024.
        assert bench.give(replace(answer, flags=ACK, sequence=5001, options=b"").packet())[0] == REDIRECTED
        bench.counted()
        assert bench.give(replace(client, sequence=401_001, payload=b"x").packet())[0] == REDIRECTED
        assert bench.counted()[Total.BYTES_IN] == counted


def test_what_is_another_connections_by_now_is_no_way_for_a_packet(bench: Bench) -> None:
    """Whoever takes a connection out removes one key after the other; the second may be left."""
    made, other = Connection(bench), Connection(bench, port=20_001)
    key, number = bench.key_of_target(made.port), bench.numbers()[bench.key_of_target(other.port)]
    Map(bench.path.maps["connections"], MAPS["connections"]).replace(key, number_value(number))
    assert bench.give(made.target.packet())[0] == DROPPED
    assert bench.left() == {"FAULT": 1}

    for _ in range(2):  # a round begins with the next call
        assert [*bench.connections.sweep(100)] == []
    assert key not in bench.numbers()
    assert other.is_known()


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_reset_in_place_of_the_last_word_changes_no_reason(bench: Bench, first: str) -> None:
    made = Connection(bench)
    if first == "client":
        made.client_says(flags=FIN | ACK)
        made.target_says(flags=FIN | ACK, acknowledged=1002)
        made.client_says(flags=RST, sequence=1002, acknowledged=0)
    else:
        made.target_says(flags=FIN | ACK)
        made.client_says(flags=FIN | ACK, acknowledged=5002)
        made.target_says(flags=RST, sequence=5002, acknowledged=0)
    assert [end.reason for end in bench.ends()] == [Reason.CLIENT_EOF if first == "client" else Reason.TARGET_EOF]
    assert not made.is_known()


@pytest.mark.parametrize("more", [FIN, RST, ACK])
def test_a_syn_with_something_else_begins_nothing(bench: Bench, more: int) -> None:
    Connection(bench, established=False)
    bench.give(syn(flags=SYN | more, sequence=99_999).packet())
    assert bench.connections.pending == 1
    bench.give(syn(sequence=99_999).packet())
    assert bench.connections.pending == 1, "another attempt takes the place of the first"


def test_ends_by_user_space_are_those_of_connections_as_they_are_now(bench: Bench) -> None:
    known = [Connection(bench, port=20_000 + number, established=False) for number in range(3)]
    ending = bench.connections.end_all(None, Reason.DRAIN)
    gone = next(ending)
    assert gone.end is None
    left = [made for made in known if made.is_known()]
    for made in left:  # after all have been looked at, and before they are taken out
        made.target_says(flags=SYN | ACK, sequence=5000)
        made.client_says(payload=b"data")
    other = left.pop()
    other.client_says(flags=RST, sequence=1005)
    again = Connection(bench, port=other.client.source[1])
    (lost,) = ending
    assert lost.end is not None
    assert (lost.end.client, lost.end.bytes_in) == (left[0].client.source, 4)
    assert again.is_known(), "it had not begun when the others were to end"
    assert bench.connections.live == 1
    assert bench.connections.uncounted() == (3, 2)


def test_a_way_that_gets_narrower_limits_segments_of_what_begins(bench: Bench) -> None:
    made = Connection(bench, established=False)
    with closing(Narrow()) as routes:
        bench.connections.lead_anew(routes)
    answer = replace(made.target, flags=SYN | ACK, sequence=5000, options=size_option(1460))
    verdict, packet = bench.give(answer.packet())
    assert verdict == REDIRECTED
    assert packet[54:58] == size_option(560)


def test_a_syn_that_is_sent_again_is_the_same_connection(bench: Bench) -> None:
    made = Connection(bench, established=False)
    verdict, packet = bench.give(syn().packet())
    assert (verdict, port_of(packet)) == (REDIRECTED, made.port)
    made.target_says(flags=SYN | ACK, sequence=5000)
    assert bench.connections.live == 0, "not before its client has answered"
    made.client_says()
    assert bench.connections.live == 1


def test_a_client_may_begin_with_data_or_with_its_end(bench: Bench) -> None:
    """What it had acknowledged before was lost."""
    for port, changes in ((20_001, {"payload": b"data"}), (20_002, {"flags": FIN | ACK, "payload": b"data"})):
        made = Connection(bench, port=port, established=False)
        made.target_says(flags=SYN | ACK, sequence=5000)
        made.client_says(**changes)
    assert bench.connections.live == 2
    assert bench.counted()[Total.BYTES_IN] == 8


def test_an_acknowledgement_of_something_else_establishes_nothing(bench: Bench) -> None:
    made = Connection(bench, established=False)
    made.client_says()
    made.target_says(flags=SYN | ACK, sequence=5000)
    made.client_says(acknowledged=77)
    assert bench.connections.live == 0


@pytest.mark.parametrize("family", [4, 6])
def test_segments_are_limited_to_what_both_ways_take(bench: Bench, family: int) -> None:
    most, port = MTU - (40 if family == 4 else 60), 21_000
    bench.follow(family)
    for options, expected in (
        (size_option(9000), size_option(most)),
        (size_option(most), size_option(most)),
        (size_option(536), size_option(536)),
        (TIME + b"\1\1" + size_option(1460) + b"\1\1", TIME + b"\1\1" + size_option(most) + b"\1\1"),
        (b"\1" + size_option(1460) + b"\1\1\1", b"\1" + size_option(most) + b"\1\1\1"),
        (b"\4\2\1\1", b"\4\2\1\1"),
        (b"\0\0\0\0" + size_option(9000), b"\0\0\0\0" + size_option(9000)),
        (b"", b""),
        (b"\4\2\2\4", b"\4\2\2\4"),
    ):
        port += 1
        sent = syn(family, port, options=options)
        verdict, packet = bench.give(sent.packet())
        own = port_of(packet, family)
        got = replace(sent, source=(SOURCE[family], own), destination=TARGET[family], options=expected, hop_limit=63)
        assert (verdict, packet) == (REDIRECTED, got.packet())
        answer = Segment(TARGET[family], (SOURCE[family], own), SYN | ACK, 5000, 1001, options=options)
        back = replace(answer, source=sent.destination, destination=sent.source, options=expected, hop_limit=63)
        assert bench.give(answer.packet()) == (REDIRECTED, back.packet())


def test_what_is_for_this_machine_goes_there(bench: Bench) -> None:
    bench.follow(is_local=True)
    bench.prove()
    sent = syn(hop_limit=1)
    verdict, packet = bench.give(sent.packet())
    got = replace(sent, source=(SOURCE[4], port_of(packet)), destination=TARGET[4])
    assert (verdict, packet) == (PASSED, got.packet())


UNUSUAL: Final[dict[Why, Any]] = {
    Why.OPTIONS: {"ip_options": b"\1\1\1\1"},
    Why.FRAGMENT: {"fragment": 0x2000},
    Why.HOP_LIMIT: {"hop_limit": 1},
}


@pytest.mark.parametrize("why", UNUSUAL)
def test_what_cannot_be_forwarded_of_a_connection_is_dropped_and_counted(bench: Bench, why: Why) -> None:
    """There is no socket for it, and the host would answer with a reset."""
    made = Connection(bench)
    assert bench.give(replace(made.client, **UNUSUAL[why]).packet())[0] == DROPPED
    assert bench.left() == {why.name: 1}


@pytest.mark.parametrize("changes", [{"ip_options": b"\1\1\1\1"}, {"fragment": 0x2000}, {"hop_limit": 1}])
def test_an_unusual_first_packet_is_left_to_the_sockets(bench: Bench, changes: dict[str, Any]) -> None:
    packet = syn(**changes).packet()
    assert bench.give(packet) == (LEFT, packet)
    assert bench.connections.live == 0


def left_as_it_is(bench: Bench, segment: Segment) -> bool:
    packet = segment.packet()
    return bench.give(packet) == (LEFT, packet) and bench.connections.live == 0


def test_a_stranger_is_left_to_the_sockets(bench: Bench) -> None:
    assert left_as_it_is(bench, replace(syn(), source=("192.0.2.9", 20_000)))
    assert left_as_it_is(bench, replace(syn(), destination=("192.0.2.2", 444)))
    assert left_as_it_is(bench, replace(syn(), destination=("192.0.2.3", 443)))
    assert left_as_it_is(bench, replace(syn(), flags=ACK))
    assert left_as_it_is(bench, replace(syn(), flags=SYN | FIN))
    assert left_as_it_is(bench, replace(syn(), flags=RST))


def test_a_client_is_to_be_seen_again_after_a_reload_and_after_a_minute(bench: Bench) -> None:
    bench.connections.begin_epoch(7)
    assert left_as_it_is(bench, syn())
    bench.clients.admit(CLIENT[4], LOCAL[4], 6, time.monotonic() + 1000.0)
    assert left_as_it_is(bench, syn())
    bench.clients.admit(CLIENT[4], LOCAL[4], 7, time.monotonic() + 2000.0)
    Connection(bench)
    key, clients = client_key(address(*CLIENT[4]), address(*LOCAL[4])), Map(bench.path.maps["clients"], MAPS["clients"])
    value = clients.find(key)
    assert value is not None
    clients.replace(key, value[:8] + struct.pack("=Q", time.monotonic_ns() - 1) + value[16:])
    packet = syn(port=20_001).packet()
    assert bench.give(packet) == (LEFT, packet)
    assert bench.left() == {"CLIENT": 1}


def test_nothing_begins_when_nothing_is_to_begin(bench: Bench) -> None:
    made = Connection(bench)
    bench.connections.pause()
    packet = syn(port=20_001).packet()
    assert bench.give(packet) == (LEFT, packet)
    made.client_says(payload=b"but this goes on")


def test_no_more_than_are_allowed_are_open(bench: Bench) -> None:
    bench.connections.allow(2)
    first, _ = Connection(bench, port=20_001), Connection(bench, port=20_002)
    packet = syn(port=20_003).packet()
    assert bench.give(packet) == (LEFT, packet)
    assert bench.left() == {"LIMIT": 1}
    first.client_says(flags=RST)
    Connection(bench, port=20_003)


def test_ports_that_are_in_use_are_given_to_nobody_else(bench: Bench) -> None:
    ports = {Connection(bench, port=20_000 + number).port for number in range(40)}
    assert len(ports) == 40
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
    assert all(not low <= port <= high for port in ports)


def test_ports_that_another_kernel_path_has_are_avoided(bench: Bench) -> None:
    made = [Connection(bench, port=20_000 + number) for number in range(20)]
    with closing(Bench()) as other:
        other.connections.avoid(bench.connections, 10.0)
        ports = {Connection(other, port=20_000 + number).port for number in range(20)}
        assert not ports & {each.port for each in made}


def test_what_is_acknowledged_has_been_sent(bench: Bench) -> None:
    """Of two segments at the same moment, on two processors, the first may be noted last."""
    made = Connection(bench)
    made.client_says(flags=FIN | ACK, payload=b"question")
    number = bench.numbers()[flow_key(address(*CLIENT[4]), address(*LOCAL[4]), 6)]
    struct.pack_into("=I", bench.connections._directions, number * DIRECTION_BYTES + FLOW_BYTES + 4, 1009)
    made.target_says(flags=FIN | ACK, acknowledged=1010, payload=b"answer")
    made.client_says(sequence=1010, acknowledged=5008)
    assert [(end.reason, end.bytes_in, end.bytes_out) for end in bench.ends()] == [(Reason.CLIENT_EOF, 8, 6)]
    assert bench.numbers() == {}


def side_by_side(bench: Bench, *packets: list[bytes]) -> bool:
    """Give packets to the program in a process for each list, again and again; whether all came to their end."""
    children = []
    for each in packets:
        pid = os.fork()
        if not pid:
            try:
                for _ in range(8000 // len(each)):
                    for packet in each:
                        bench.give(packet)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    return all(os.waitpid(pid, 0)[1] == 0 for pid in children)


def test_places_of_connections_that_have_ended_are_given_out_again(bench: Bench) -> None:
    """Whoever ends them."""
    bench.connections.allow(64)
    for _ in range(3):
        made = [Connection(bench, port=20_000 + number) for number in range(64)]
        for each in made[::2]:
            each.client_says(flags=RST)
        assert len([*bench.connections.end_all(None, Reason.DRAIN)]) == 32
        assert bench.numbers() == {}
    assert bench.left() == {}
    assert bench.are_places_right()


def test_a_client_that_begins_anew_meanwhile_keeps_its_new_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is the same: user space looks, then comes a SYN, then user space takes out what it has seen."""
    Connection(bench, established=False)
    original, again = Connections._pair, syn(sequence=777_000)

    def pair(self: Connections, number: int) -> tuple[bytes, bytes]:
        found = original(self, number)
        monkeypatch.undo()
        assert bench.give(again.packet())[0] == REDIRECTED
        return found

    monkeypatch.setattr(Connections, "_pair", pair)
    assert [*bench.connections.end_all(None, Reason.DRAIN)] == []
    assert bench.give(again.packet())[0] == REDIRECTED
    assert (len(bench.numbers()), bench.connections.pending) == (2, 1)
    assert bench.are_places_right()


def test_what_is_left_of_a_connection_ends_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's key is removed after the client's, which may have another connection then."""
    made = Connection(bench)
    key = bench.key_of_target(made.port)
    number = bench.numbers()[key]
    made.client_says(flags=RST)
    entries = Map(bench.path.maps["connections"], MAPS["connections"])
    entries.replace(key, number_value(number))
    again = Connection(bench)
    assert again.port != made.port
    assert bench.give(replace(made.target, flags=RST).packet())[0] == DROPPED
    assert again.is_known()
    assert bench.connections.live == 1

    monkeypatch.setattr(module, "UNANSWERED_SECONDS", 0)
    for _ in range(2):  # a round begins with the next call
        assert [*bench.connections.sweep(100)] == []
    assert key not in bench.numbers()
    assert bench.are_places_right()


def test_processors_that_end_and_begin_the_same_connection_agree(bench: Bench) -> None:
    """Each SYN with another sequence number ends what there is and begins a new one: same client, same port."""
    packets = [[syn(sequence=100_000 * child + 7 * number).packet() for number in range(64)] for child in range(1, 4)]
    assert side_by_side(bench, *packets)
    assert len(bench.numbers()) == 2 * bench.connections.pending <= 2
    assert bench.are_places_right()


def test_processors_that_establish_and_end_a_connection_count_it_once(bench: Bench) -> None:
    made = Connection(bench, established=False)
    first = [
        syn(),
        replace(made.target, flags=SYN | ACK, sequence=5000),
        made.client,
        replace(made.client, payload=b"x"),
    ]
    assert side_by_side(
        bench,
        [each.packet() for each in first],
        [replace(made.client, payload=b"xy").packet(), replace(made.client, flags=RST, acknowledged=0).packet()],
        [replace(made.client, flags=RST, sequence=1002, acknowledged=0).packet(), made.client.packet()],
    )
    assert bench.connections.live <= bench.connections.pending <= 1
    [*bench.connections.end_all(None, Reason.DRAIN)]
    assert (bench.connections.live, bench.connections.pending) == (0, 0)
    opened, closed = bench.connections.uncounted()
    assert opened == closed > 0
    assert bench.are_places_right()


def test_a_full_table_leaves_the_rest_to_the_sockets(bench: Bench) -> None:
    bench.connections.allow(1000)
    verdicts = [bench.give(syn(port=20_000 + number).packet())[0] for number in range(100)]
    assert verdicts.count(REDIRECTED) == 64
    assert verdicts.count(LEFT) == 36
    assert bench.left() == {"LIMIT": 36}


def test_ends_that_nobody_wants_to_know_are_counted_only(bench: Bench) -> None:
    bench.follow(tells=False)
    bench.prove()
    Connection(bench).client_says(flags=RST)
    assert bench.ends() == []
    assert bench.connections.live == 0
    assert bench.counted()[Total.CLOSED] == 0, "of those, the word behind the next"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("choosing", [Choosing.BY_ADDRESS, Choosing.BY_SOCKET])
def test_the_bucket_is_that_of_user_space(bench: Bench, family: int, choosing: Choosing) -> None:
    """Of two targets, one of the other family: what goes through says which was chosen."""
    here = Remote(address(*TARGET[family]), address(SOURCE[family], 0).packed, ELSEWHERE, MTU, False, SERIES)
    rng = Random(family)
    choices = [rng.randrange(2) for _ in range(4096)]
    assert bench.connections.follow(Plan(choosing, [here, None], choices, tells=False)) is None
    bench.prove(family)
    for number in range(60):
        host = f"192.0.2.{number}" if family == 4 else str(address_of(rng))
        bench.clients.admit((host, 1), LOCAL[family], 0, time.monotonic() + 5000.0)
        port = 20_000 + rng.randrange(1000)
        packet = replace(syn(family, port), source=(host, port)).packet()
        bucket = bucket_of(host, port) if choosing is Choosing.BY_SOCKET else bucket_of(host)
        assert (bench.give(packet)[0] == REDIRECTED) == (choices[bucket] == 0), host
        for _ in bench.connections.end_all(None, Reason.DRAIN):
            pass


def address_of(rng: Random) -> str:
    return "2001:db8:" + ":".join(f"{rng.randrange(1, 1 << 16):x}" for _ in range(6))


def too_big(original: bytes, mtu: int, family: int) -> bytes:
    """What a router says of a packet; of the original, it returns the first bytes."""
    inner = original[14:][: 28 if family == 4 else 60]
    if family == 4:
        body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + inner
        body = body[:2] + struct.pack("!H", ~total(body) & 0xFFFF) + body[4:]
        ends = address("10.0.0.254", 0).packed + inner[12:16]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 60, 1, 0) + ends
        ip = ip[:10] + struct.pack("!H", ~total(ip) & 0xFFFF) + ip[12:]
        return ETHERNET + b"\x08\x00" + ip + body
    body = struct.pack("!BBHI", 2, 0, 0, mtu) + inner
    ends = address("2001:db8:ff::fe", 0).packed + inner[8:24]
    checksum = ~total(ends + struct.pack("!II", len(body), 58) + body) & 0xFFFF
    body = body[:2] + struct.pack("!H", checksum) + body[4:]
    return ETHERNET + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(body), 58, 60) + ends + body


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("side", ["client", "target"])
def test_a_routers_word_reaches_the_end_that_it_means(bench: Bench, family: int, side: str) -> None:
    made = Connection(bench, family)
    # What the target got from us, or the client: a router on the way to it returns that.
    sender, got = (
        (made.client, replace(made.client, source=made.target.destination, destination=made.target.source))
        if side == "target"
        else (made.target, replace(made.target, source=made.client.destination, destination=made.client.source))
    )
    verdict, packet = bench.give(too_big(replace(got, payload=bytes(1000)).packet(), 1200, family))
    assert verdict == REDIRECTED
    start = 14 + (20 if family == 4 else 40)
    ends = packet[26:34] if family == 4 else packet[22:54]
    assert ends == address(*sender.destination).packed + address(*sender.source).packed
    body = packet[start:]
    pseudo = ends + struct.pack("!II", len(body), 58) if family == 6 else b""
    assert total(pseudo + body) == 0xFFFF
    assert family == 6 or total(packet[14:34]) == 0xFFFF
    original = replace(sender, payload=bytes(1000)).packet()
    inner = bytearray(original[14:][: 28 if family == 4 else 60])
    said = bytearray(body[8:])
    if family == 4:
        assert total(bytes(said[:20])) == 0xFFFF
    elif len(said) > 56:
        said[56:58] = inner[56:58] = bytes(2)
    assert bytes(said) == bytes(inner)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("side", ["client", "target"])
def test_the_sender_of_what_is_too_long_for_the_way_is_told(bench: Bench, family: int, side: str) -> None:
    made, rng = Connection(bench, family), Random(9)
    header = 20 if family == 4 else 40
    sender = made.client if side == "client" else made.target
    fits = replace(sender, payload=bytes(MTU - header - 20))
    assert bench.give(fits.packet())[0] == REDIRECTED
    for number in range(1, 200):
        original = replace(
            fits, payload=rng.randbytes(len(fits.payload) + number), options=TIME if number % 2 else b"",
        ).packet()  # fmt: skip
        verdict, packet = bench.give(original)
        assert verdict == REDIRECTED
        assert_says_too_long(packet, original)
    assert bench.left() == {"TOO_BIG": 199}


@pytest.mark.parametrize("changes", [{"sequence": 9_000_000}, {"acknowledged": 9_000_000}])
def test_nobody_is_told_what_a_stranger_has_sent_that_is_too_long(bench: Bench, changes: dict[str, int]) -> None:
    for begun in (Connection(bench, established=False), Connection(bench, port=20_001)):
        long = replace(begun.client, payload=bytes(MTU))
        assert bench.give(replace(long, **changes).packet())[0] == DROPPED  # type: ignore[arg-type]  # as the test says
    assert bench.give(long.packet())[0] == REDIRECTED


def assert_says_too_long(packet: bytes, original: bytes) -> None:
    """It tells the sender of the original, in the name of the receiver, what ``MTU`` is."""
    header = 20 if original[12] == 8 else 40
    ip, icmp, returned = packet[14 : 14 + header], packet[14 + header :], packet[22 + header :]
    assert len(returned) == header + 20
    if header == 20:
        assert ip[:2] + ip[8:10] + ip[12:] == b"\x45\0\x40\1" + original[30:34] + original[26:30]
        assert struct.unpack("!H", ip[2:4])[0] == len(packet) - 14
        assert total(ip) == total(icmp) == 0xFFFF
        assert icmp[:2] + icmp[4:8] == struct.pack("!BBHH", 3, 4, 0, MTU)
    else:
        assert ip == struct.pack("!IHBB", 6 << 28, len(icmp), 58, 64) + original[38:54] + original[22:38]
        assert total(ip[8:] + struct.pack("!II", len(icmp), 58) + icmp) == 0xFFFF
        assert icmp[:2] + icmp[4:8] == struct.pack("!BBI", 2, 0, MTU)
    at = header + 16
    assert returned[:at] + returned[at + 2 :] == original[14:][:at] + original[14:][at + 2 : header + 20]
    # A device may be going to finish what it takes for the checksum of the original.
    (checksum,) = struct.unpack("!H", returned[at : at + 2])
    assert ~total(returned[header:]) & 0xFFFF in {checksum, 0 if checksum == 0xFFFF else checksum}


def test_a_routers_word_about_strangers_is_left_as_it_is(bench: Bench) -> None:
    Connection(bench)
    for family in (4, 6):
        packet = too_big(Segment((SOURCE[family], 1), TARGET[family]).packet(), 1200, family)
        assert bench.give(packet) == (LEFT, packet)


def test_what_nobody_ends_is_taken_out_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    established, half, doubtful = (Connection(bench, port=20_000 + number) for number in range(3))
    Connection(bench, port=20_003, established=False)
    half.client_says(flags=FIN | ACK)
    doubtful.client_says(flags=RST, sequence=77)

    def swept() -> list[Reason | None]:
        found = [lost for _ in range(2) for lost in bench.connections.sweep(100)]  # a round begins with the next call
        return [None if lost.end is None else lost.end.reason for lost in found]

    assert swept() == []
    monkeypatch.setattr(module, "UNANSWERED_SECONDS", 0)
    assert swept() == [None]
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0)
    assert swept() == [Reason.CLIENT_RESET]
    assert bench.connections.live == 2
    monkeypatch.setattr(module, "SILENT_SECONDS", 0)
    assert swept() == [Reason.IDLE, Reason.IDLE]
    assert bench.connections.live == 0
    assert not established.is_known()
    assert bench.connections.uncounted() == (3, 3)
    assert list(Map(bench.path.maps["connections"], MAPS["connections"]).items()) == []


def test_connections_of_a_target_are_ended(bench: Bench) -> None:
    made = Connection(bench)
    made.client_says(payload=b"x" * 10)
    assert list(bench.connections.end_all(frozenset({SERIES + 1}), Reason.DRAIN)) == []
    (lost,) = bench.connections.end_all(frozenset({SERIES}), Reason.DRAIN)
    assert lost.series == SERIES
    assert lost.end is not None
    assert (lost.end.client, lost.end.reason, lost.end.bytes_in) == (CLIENT[4], Reason.DRAIN, 10)
    assert not made.is_known()


def test_what_is_known_survives_whoever_looks_after_it(bench: Bench) -> None:
    """An upgrade: other Python objects, the same maps."""
    made = Connection(bench)
    made.client_says(payload=b"before")
    assert bench.counted()[Total.BYTES_IN] == 6
    with closing(Connections(bench.path.maps)) as later:
        assert later.live == 1
        assert list(later.news()) == []
        made.client_says(payload=b"after", sequence=1007)
        made.client_says(flags=RST, sequence=1012)
        ((series, change),) = later.news()
        assert (series, change[Total.BYTES_IN]) == (SERIES, 5)
        ((_, end),) = later.ends(10)
        assert end.bytes_in == 11
        assert later.live == 0


def checksum_errors(packet: bytes) -> list[int]:
    """How far off the checksums of a packet without options are."""
    ip = packet[14:]
    header, ends = (20, ip[12:20]) if packet[12] == 8 else (40, ip[8:40])
    length = (struct.unpack("!H", ip[2:4])[0] - 20) if header == 20 else struct.unpack("!H", ip[4:6])[0]
    tcp = ip[header : header + length]
    errors = [total(ends + struct.pack("!HH", 6, len(tcp)) + tcp) % 0xFFFF]
    return [*errors, total(ip[:20]) % 0xFFFF] if header == 20 else errors


def test_no_packet_is_rewritten_wrongly_and_none_of_others_is_dropped(bench: Bench) -> None:
    random = Random(7)
    made = {family: Connection(bench, family) for family in (4, 6)}
    bench.connections.pause()
    rewritten = too_long = 0
    for _ in range(20_000):
        family = random.choice((4, 6))
        way = random.choice((made[family].client, made[family].target))
        payload = random.randbytes(random.choice((0, 1, 3, 40, 1340, 1400)))
        whole = replace(
            way,
            payload=payload,
            flags=random.choice((ACK, ACK, ACK | 8, 0, SYN, SYN | ACK, RST | 1)),
            sequence=way.sequence if len(payload) == 1400 else random.randrange(1 << 32),
            options=random.choice((b"", TIME, size_option(1460))),
            hop_limit=random.choice((0, 1, 2, 64, 255)),
            fragment=random.choice((0, 0, 0x2000, 0x4000, 0x0001)),
            ip_options=random.choice((b"", b"", b"\1" * 8)) if family == 4 else b"",
        ).packet()
        packet = mutated(random, whole)
        is_ours = concerns(packet, made)
        if is_ours and packet[47 + 4 * (packet[14] & 15) - 20 if packet[12] == 8 else 67] & FIN:
            continue  # after that of both ends, a SYN is one of another connection
        verdict, then = bench.give(packet)
        if verdict == LEFT:
            assert then == packet
            assert not is_ours, packet.hex()
        elif verdict == DROPPED:
            assert is_ours, packet.hex()
        elif len(then) != len(packet):
            assert is_ours, packet.hex()
            assert len(packet) > MTU, packet.hex()
            assert_says_too_long(then, packet)
            too_long += 1
        else:
            assert is_ours, packet.hex()
            rewritten += 1
            assert checksum_errors(then) == checksum_errors(packet), packet.hex()
            assert then[12:14] == packet[12:14]
            header = 20 if packet[12] == 8 else 40
            assert then[14 + header + 4 : 14 + header + 16] == packet[14 + header + 4 : 14 + header + 16]
    assert rewritten > 1000
    assert too_long > 100
    assert bench.connections.live == 2, "nothing of it was an end"


def concerns(packet: bytes, made: dict[int, Connection]) -> bool:
    """Whether the addresses and ports are those of a connection."""
    kind, ip = packet[12:14], packet[14:]
    if packet[:6] != bytes(6):
        return False
    if kind == b"\x08\x00":
        header, family = 4 * (ip[0] & 15), 4
        if len(ip) < 20 or ip[0] >> 4 != 4 or ip[9] != 6 or struct.unpack("!H", ip[6:8])[0] & 0x1FFF:
            return False
        ends = ip[12:16], ip[16:20]
    elif kind == b"\x86\xdd":
        header, family = 40, 6
        if len(ip) < 40 or ip[0] >> 4 != 6 or ip[6] != 6:
            return False
        ends = ip[8:24], ip[24:40]
    else:
        return False
    if len(ip) < header + 20:
        return False
    ports = struct.unpack("!HH", ip[header : header + 4])
    return any(
        (ends[0], ports[0], ends[1], ports[1])
        == (address(*way.source).packed, way.source[1], address(*way.destination).packed, way.destination[1])
        for way in (made[family].client, made[family].target)
    )
