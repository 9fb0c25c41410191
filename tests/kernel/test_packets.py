"""The program on packets of every kind, run by the kernel (BPF_PROG_TEST_RUN), against another account of its rules."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import pytest

from rpxy_l4.kernel import layout
from rpxy_l4.kernel.bpf import Map
from rpxy_l4.kernel.layout import (
    COUNTER_BYTES,
    COUNTER_WORDS,
    LAST,
    MAPS,
    PROOF,
    Why,
    address,
    amount_of,
    flow_key,
    flow_value,
)
from rpxy_l4.kernel.path import KernelPath
from tests.support.kernel_path import needs_kernel_path, try_program

LEFT: Final = -1
"""TC_ACT_UNSPEC: to whoever is next."""
PASSED: Final = 0
"""TC_ACT_OK: to the sockets, rewritten."""
REDIRECTED: Final = 7
"""TC_ACT_REDIRECT."""
LOOPBACK: Final = 1
ELSEWHERE: Final = 2
ETHERNET: Final = bytes(12)
"""Both addresses are that of the loopback interface, on which packets are tried."""
MTU: Final = 1400


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram, and how to write it."""

    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes = b"payload"
    hop_limit: int = 64
    traffic_class: int = 0
    options: bytes = b""
    fragment: int = 0
    has_checksum: bool = True

    def packet(self) -> bytes:
        source, destination = (address(*end).packed for end in (self.source, self.destination))
        length = 8 + len(self.payload)
        udp = struct.pack("!HHHH", self.source[1], self.destination[1], length, 0) + self.payload
        if self.has_checksum:
            checksum = ~total(source + destination + struct.pack("!HH", 17, length) + udp) & 0xFFFF or 0xFFFF
            udp = udp[:6] + struct.pack("!H", checksum) + udp[8:]
        if len(source) == 4:
            words = 5 + len(self.options) // 4
            ip = struct.pack("!BBHHHBBH", 0x40 | words, self.traffic_class, 4 * words + length, 7, self.fragment,
                             self.hop_limit, 17, 0) + source + destination + self.options  # fmt: skip
            ip = ip[:10] + struct.pack("!H", ~total(ip) & 0xFFFF) + ip[12:]
            return ETHERNET + b"\x08\x00" + ip + udp
        ip = struct.pack("!IHBB", 6 << 28 | self.traffic_class << 20, length, 17, self.hop_limit)
        return ETHERNET + b"\x86\xdd" + ip + source + destination + udp


def total(data: bytes) -> int:
    """The sum of RFC 1071, without the complement."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    found: int = sum(words)
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return found


class Bench:
    """A program, and flows that it knows."""

    def __init__(self) -> None:
        self.path = KernelPath(8)
        flows, counters = (self.path.maps[name] for name in ("flows", "counters"))
        self.flows = Map(flows, MAPS["flows"])
        self.memory = memoryview(mmap.mmap(counters, 16 * COUNTER_BYTES)).cast("Q")

    def know(
        self,
        before: Datagram,
        after: Datagram,
        counter: int,
        *,
        interface: int = ELSEWHERE,
        is_local: bool = False,
        is_from_client: bool = True,
        mtu: int = MTU,
        proof: int = 2,
    ) -> None:
        self.memory[counter * COUNTER_WORDS + LAST] = time.monotonic_ns()
        self.memory[counter * COUNTER_WORDS + PROOF] = proof
        key = flow_key(address(*before.source), address(*before.destination), 17)
        self.flows.insert(
            key,
            flow_value(key, address(*after.source), address(*after.destination), interface=interface, counter=counter,
                       mtu=mtu, is_local=is_local, is_from_client=is_from_client),
        )  # fmt: skip

    def give(self, packet: bytes, segment: int = 0) -> tuple[int, bytes]:
        """What the program did: its verdict, and the packet then."""
        # struct __sk_buff: gso_segs at 164, gso_size at 176.
        context = bytearray(192)
        if segment:
            struct.pack_into("=I", context, 164, -(-(len(packet) - 42) // segment))
            struct.pack_into("=I", context, 176, segment)
        return try_program(self.path.program("ethernet"), packet, bytes(context) if segment else b"")

    def counted(self, counter: int) -> tuple[int, int]:
        return amount_of(self.memory[counter * COUNTER_WORDS + layout.PASSED], 0)


V4: Final = (
    Datagram(("192.0.2.1", 1000), ("192.0.2.2", 443)),
    Datagram(("10.0.0.1", 2000), ("10.0.0.2", 53)),
)
V6: Final = (
    Datagram(("2001:db8::1", 1000), ("2001:db8::2", 443)),
    Datagram(("2001:db8:ff::1", 2000), ("2001:db8:ff::2", 53)),
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    needs_kernel_path()
    made = Bench()
    with closing(made.path):
        made.know(*V4, 0)
        made.know(*V6, 2)
        yield made
        made.memory.release()


@pytest.mark.parametrize("pair", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("payload", [b"", b"x", b"payload", bytes(range(256)) * 4])
def test_a_datagram_of_a_flow_is_rewritten_with_right_checksums(
    bench: Bench, pair: tuple[Datagram, Datagram], payload: bytes
) -> None:
    before, after = (replace(each, payload=payload, traffic_class=0xB9) for each in pair)

    assert bench.give(before.packet()) == (REDIRECTED, replace(after, hop_limit=63).packet())
    assert bench.counted(0 if pair is V4 else 2) == (1, len(payload))
    assert sum(bench.path.left().values()) == 0


def test_a_datagram_without_checksum_stays_without(bench: Bench) -> None:
    before, after = (replace(each, has_checksum=False) for each in V4)

    assert bench.give(before.packet()) == (REDIRECTED, replace(after, hop_limit=63).packet())


def test_a_checksum_that_becomes_zero_is_written_as_its_other_zero(bench: Bench) -> None:
    """RFC 768: 0 means that there is none."""
    after = replace(V4[1], payload=bytes(2))
    # What is missing to a sum of only ones.
    after = replace(after, payload=after.packet()[40:42])
    assert after.packet()[40:42] == b"\xff\xff"
    before = replace(V4[0], payload=after.payload)

    assert bench.give(before.packet()) == (REDIRECTED, replace(after, hop_limit=63).packet())


@pytest.mark.parametrize("pair", [V4, V6], ids=["IPv4", "IPv6"])
def test_what_is_for_this_machine_keeps_its_hop_limit(bench: Bench, pair: tuple[Datagram, Datagram]) -> None:
    before, after = (replace(each, source=(each.source[0], 77), hop_limit=1) for each in pair)
    bench.know(before, after, 4, interface=LOOPBACK, is_local=True)

    assert bench.give(before.packet()) == (PASSED, after.packet())


def test_what_is_for_this_machine_goes_there_from_another_interface(bench: Bench) -> None:
    before, after = (replace(each, source=(each.source[0], 77), hop_limit=1) for each in V4)
    bench.know(before, after, 4, interface=ELSEWHERE, is_local=True)

    assert bench.give(before.packet()) == (REDIRECTED, after.packet())


UNUSUAL: Final = {
    Why.OPTIONS: replace(V4[0], options=b"\x01\x01\x01\x01"),
    Why.FRAGMENT: replace(V4[0], fragment=0x2000),
    Why.HOP_LIMIT: replace(V4[0], hop_limit=1),
    Why.TOO_BIG: replace(V4[0], payload=bytes(MTU - 27)),
}


@pytest.mark.parametrize("why", UNUSUAL)
def test_what_is_unusual_is_left_to_the_sockets_as_it_is(bench: Bench, why: Why) -> None:
    packet = UNUSUAL[why].packet()

    assert bench.give(packet) == (LEFT, packet)
    assert bench.path.left()[why] == 1
    assert bench.counted(0) == (0, 0)


def test_the_longest_packet_of_the_way_is_forwarded(bench: Bench) -> None:
    for before, after, header in ((*V4, 28), (*V6, 48)):
        packet = replace(before, payload=bytes(MTU - header)).packet()
        expected = replace(after, payload=bytes(MTU - header), hop_limit=63).packet()

        assert bench.give(packet) == (REDIRECTED, expected)


@pytest.mark.parametrize("pair", [V4, V6], ids=["IPv4", "IPv6"])
def test_a_hop_limit_at_its_end_is_left_to_the_sockets(bench: Bench, pair: tuple[Datagram, Datagram]) -> None:
    for hop_limit in (0, 1):
        packet = replace(pair[0], hop_limit=hop_limit).packet()

        assert bench.give(packet) == (LEFT, packet)


def test_a_later_fragment_is_never_taken_for_a_datagram(bench: Bench) -> None:
    """Where its ports would be is payload."""
    packet = replace(V4[0], fragment=0x0010).packet()

    assert bench.give(packet) == (LEFT, packet)
    assert sum(bench.path.left().values()) == 0


@pytest.mark.parametrize("length", [0, 7, 500])
def test_a_length_that_cannot_be_is_left_to_the_sockets(bench: Bench, length: int) -> None:
    packet = bytearray(V4[0].packet())
    packet[38:40] = struct.pack("!H", length)

    assert bench.give(bytes(packet)) == (LEFT, bytes(packet))
    assert bench.path.left()[Why.MALFORMED] == 1


def test_padding_of_the_frame_is_no_payload(bench: Bench) -> None:
    padding = bytes(11)

    verdict, packet = bench.give(V4[0].packet() + padding)

    assert (verdict, packet) == (REDIRECTED, replace(V4[1], hop_limit=63).packet() + padding)
    assert bench.counted(0) == (1, len(V4[0].payload))


def test_a_burst_counts_as_the_datagrams_that_it_is_cut_into(bench: Bench) -> None:
    """And each of them has to fit, not the whole."""
    before, after = (replace(each, payload=bytes(2500)) for each in V4)

    assert bench.give(before.packet(), 1000) == (REDIRECTED, replace(after, hop_limit=63).packet())
    assert bench.counted(0) == (3, 2500)
    assert bench.give(before.packet(), MTU - 27) == (LEFT, before.packet())


def test_after_a_pause_user_space_looks_at_what_a_client_sends(bench: Bench) -> None:
    packet, before = V4[0].packet(), time.monotonic_ns() - 6_000_000_000
    bench.memory[LAST] = bench.memory[COUNTER_WORDS + LAST] = before

    assert bench.give(packet) == (LEFT, packet)
    assert bench.give(packet) == (LEFT, packet)
    assert bench.path.left()[Why.AFTER_PAUSE] == 2

    bench.memory[LAST] = time.monotonic_ns()  # what user space does
    assert bench.give(packet)[0] == REDIRECTED


def test_answers_end_a_pause_and_are_forwarded_after_one(bench: Bench) -> None:
    back = replace(V4[1], source=V4[1].destination, destination=V4[1].source)
    to_client = replace(V4[0], source=V4[0].destination, destination=V4[0].source)
    bench.know(back, to_client, 1, is_from_client=False)
    bench.memory[LAST] = bench.memory[COUNTER_WORDS + LAST] = time.monotonic_ns() - 6_000_000_000

    assert bench.give(back.packet()) == (REDIRECTED, replace(to_client, hop_limit=63).packet())
    assert bench.give(V4[0].packet())[0] == REDIRECTED


def test_nothing_is_forwarded_before_both_directions_have_been_seen(bench: Bench) -> None:
    """Where addresses are translated on this host, the sockets see other ones than are on the wire."""
    before, after = (replace(each, source=(each.source[0], 77)) for each in V4)
    back = replace(after, source=after.destination, destination=after.source)
    to_client = replace(before, source=before.destination, destination=before.source)
    bench.know(before, after, 4, proof=0)
    bench.know(back, to_client, 5, is_from_client=False, proof=0)

    for _ in range(2):
        assert bench.give(before.packet()) == (LEFT, before.packet())
    assert bench.path.left()[Why.UNPROVEN] == 2
    assert bench.give(back.packet()) == (REDIRECTED, replace(to_client, hop_limit=63).packet())
    assert bench.give(before.packet()) == (REDIRECTED, replace(after, hop_limit=63).packet())


def icmp(original: bytes, mtu: int) -> bytes:
    """What a router answers to a packet that is too big for its next link."""
    ip = original[14:]
    if ip[0] >> 4 == 4:
        message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + ip[:28]
        outer = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 1, 0, 64, 1, 0)
        return ETHERNET + b"\x08\x00" + outer + bytes([203, 0, 113, 1]) + ip[12:16] + message
    message = struct.pack("!BBHI", 2, 0, 0, mtu) + ip[:88]
    outer = struct.pack("!IHBB", 6 << 28, len(message), 58, 64)
    return ETHERNET + b"\x86\xdd" + outer + address("2001:db8:aa::1", 0).packed + ip[8:24] + message


@pytest.mark.parametrize(("pair", "said", "heeded"), [(V4, 1000, 1000), (V4, 0, 576), (V6, 1300, 1300), (V6, 9, 1280)])
def test_a_packet_too_big_on_its_way_makes_those_behind_it_shorter(
    bench: Bench, pair: tuple[Datagram, Datagram], said: int, heeded: int
) -> None:
    before, after = pair
    back = replace(after, source=after.destination, destination=after.source)
    to_client = replace(before, source=before.destination, destination=before.source)
    counter = 1 if pair is V4 else 3
    bench.know(back, to_client, counter, is_from_client=False)
    header = 28 if pair is V4 else 48
    fits = replace(before, payload=bytes(heeded - header)).packet()
    too_big = replace(before, payload=bytes(heeded - header + 1)).packet()
    assert bench.give(too_big)[0] == REDIRECTED

    error = icmp(replace(after, payload=bytes(MTU - header)).packet(), said)
    assert bench.give(error) == (LEFT, error)

    assert bench.give(fits)[0] == REDIRECTED
    assert bench.give(too_big) == (LEFT, too_big)
    answer = replace(back, payload=bytes(MTU - header)).packet()
    assert bench.give(answer)[0] == REDIRECTED, "the other direction is as before"


def test_an_error_about_a_stranger_changes_nothing(bench: Bench) -> None:
    error = icmp(replace(V4[1], source=("10.0.0.1", 2001)).packet(), 600)

    assert bench.give(error) == (LEFT, error)
    assert bench.give(replace(V4[0], payload=bytes(1000)).packet())[0] == REDIRECTED


def mutated(random: Random, packet: bytes) -> bytes:
    data = bytearray(packet)
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        data[random.randrange(len(data))] = random.randrange(256)
    if random.random() < 0.2:
        data = data[: max(54, random.randrange(len(data) + 1))]  # the kernel tries none without an IP header
    if random.random() < 0.2:
        data += random.randbytes(random.randrange(1, 50))
    return bytes(data)


def expected(packet: bytes) -> tuple[int, bytes]:
    """The verdict on a packet, and its head as it is then with checksums left out; for the two flows of the bench."""
    left = (LEFT, packet)
    kind, ip = packet[12:14], packet[14:]
    if packet[:6] != bytes(6):
        return left
    if kind == b"\x08\x00" and len(ip) >= 20:
        header, (before, after) = 4 * (ip[0] & 15), V4
        if ip[9] != 17 or struct.unpack("!H", ip[6:8])[0] & 0x1FFF:
            return left
        ends, hop = (ip[12:16], ip[16:20]), 8
        is_plain = header == 20 and not ip[6] & 0x20
        whole, version = struct.unpack("!H", ip[2:4])[0] - header, 4
    elif kind == b"\x86\xdd" and len(ip) >= 40:
        header, (before, after) = 40, V6
        if ip[6] != 17:
            return left
        ends, hop, is_plain = (ip[8:24], ip[24:40]), 7, True
        whole, version = struct.unpack("!H", ip[4:6])[0], 6
    else:
        return left
    udp = ip[header:]
    if len(udp) < 8 or ip[0] >> 4 != version:
        return left
    source, destination, length = struct.unpack("!HHH", udp[:6])
    known = (address(*before.source), address(*before.destination))
    if (ends[0], source, ends[1], destination) != (known[0].packed, known[0].port, known[1].packed, known[1].port):
        return left
    if not is_plain or not 8 <= length == whole <= len(udp) or ip[hop] <= 1 or header + length > MTU:
        return left
    to = [address(*end) for end in (after.source, after.destination)]
    new = bytearray(packet)
    new[14 + hop] -= 1
    at = 14 + (12 if hop == 8 else 8)
    both = to[0].packed + to[1].packed
    new[at : at + len(both)] = both
    new[14 + header : 18 + header] = struct.pack("!HH", to[0].port, to[1].port)
    return REDIRECTED, bytes(new)


def without_checksums(packet: bytes) -> bytes:
    data = bytearray(packet)
    if data[12:14] == b"\x08\x00":
        data[24:26] = bytes(2)
        data[40:42] = bytes(2)
    else:
        data[60:62] = bytes(2)
    return bytes(data)


def error_of_checksums(packet: bytes) -> list[int]:
    """How far off they are: a wrong checksum must stay as wrong as it was."""
    ip = packet[14:]
    header, ends = (20, ip[12:20]) if packet[12] == 8 else (40, ip[8:40])
    udp = ip[header:]
    pseudo = total(ends + struct.pack("!HH", 17, len(udp)) + udp) % 0xFFFF
    return [pseudo, total(ip[:20]) % 0xFFFF] if header == 20 else [pseudo]


def test_no_packet_is_rewritten_wrongly_or_dropped(bench: Bench) -> None:
    random = Random(5)
    rewritten = 0
    for _ in range(20_000):
        before, _ = random.choice((V4, V6))
        whole = replace(
            before,
            payload=random.randbytes(random.choice((0, 1, 3, 40, 1372, 1400))),
            hop_limit=random.choice((0, 1, 2, 64, 255)),
            fragment=random.choice((0, 0, 0, 0x2000, 0x4000, 0x0001)),
            options=random.choice((b"", b"", b"", b"\1" * 8)) if before is V4[0] else b"",
        ).packet()
        packet = mutated(random, whole)
        bench.memory[LAST] = bench.memory[2 * COUNTER_WORDS + LAST] = time.monotonic_ns()
        verdict, then = bench.give(packet)
        wanted, head = expected(packet)

        assert verdict == wanted, packet.hex()
        if verdict == LEFT:
            assert then == packet
            continue
        rewritten += 1
        assert without_checksums(then) == without_checksums(head), packet.hex()
        start = 40 if packet[12:14] == b"\x08\x00" else 60
        if packet[start : start + 2] == bytes(2):
            assert then[start : start + 2] == bytes(2), packet.hex()
        else:
            assert error_of_checksums(then)[0] == error_of_checksums(packet)[0], packet.hex()
        assert error_of_checksums(then)[1:] == error_of_checksums(packet)[1:], packet.hex()
    assert rewritten > 2000
