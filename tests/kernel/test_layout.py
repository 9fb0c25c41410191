"""The structures of the maps are the same on both sides: the program's own types tell (BTF)."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.endings import Reason
from rpxy_l4.kernel import layout
from rpxy_l4.kernel.layout import (
    MAPS,
    REASONS,
    Address,
    Choosing,
    MapKind,
    Setting,
    State,
    Total,
    Why,
    address,
    counter_of,
    flow_key,
    flow_value,
)
from rpxy_l4.metrics.layout import CONNECT_BUCKETS, SESSION_BUCKETS
from tests.support.peers import run

OBJECT: Final = Path(layout.__file__).with_name("path.bpf.o")

SOURCE: Final = "".join(path.read_text() for path in sorted(OBJECT.parent.glob("*.bpf.[ch]")))

Types = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def types() -> Types:
    said = run("bpftool", "--json", "btf", "dump", "file", str(OBJECT))
    assert said.returncode == 0, said.stdout
    return {each["id"]: each for each in json.loads(said.stdout)["types"]}


def named(types: Types, kind: str, name: str) -> dict[str, Any]:
    return next(each for each in types.values() if (each["kind"], each["name"]) == (kind, name))


def offsets(types: Types, name: str) -> dict[str, int]:
    return {member["name"]: member["bits_offset"] // 8 for member in named(types, "STRUCT", name)["members"]}


def test_a_key_has_its_fields_where_the_program_looks_for_them(types: Types) -> None:
    key = flow_key(Address(b"\1\2\3\4", 0x0506), Address(b"\7\x08\x09\x0a", 0x0B0C), 17)
    at = offsets(types, "flow_key")

    assert len(key) == named(types, "STRUCT", "flow_key")["size"]
    assert key[at["source"] :][:16] == b"\1\2\3\4" + bytes(12)
    assert key[at["destination"] :][:16] == b"\7\x08\x09\x0a" + bytes(12)
    assert key[at["source_port"] :][:2] == b"\5\6"
    assert key[at["destination_port"] :][:2] == b"\x0b\x0c"
    assert key[at["protocol"]] == 17
    assert key[at["family"]] == 4
    assert key[at["zero"] :] == bytes(2)


def test_a_value_has_its_fields_where_the_program_looks_for_them(types: Types) -> None:
    source, destination = address("2001:db8::1", 0x0506), address("2001:db8::2", 0x0B0C)
    value = flow_value(
        flow_key(destination, source, 17),
        source,
        destination,
        interface=7,
        counter=9,
        mtu=1500,
        is_local=True,
        is_from_client=False,
    )
    at = offsets(types, "flow")

    assert len(value) == named(types, "STRUCT", "flow")["size"]
    assert value[at["source"] :][:16] == source.packed
    assert value[at["destination"] :][:16] == destination.packed
    assert value[at["source_port"] :][:2] == b"\5\6"
    assert value[at["destination_port"] :][:2] == b"\x0b\x0c"
    assert int.from_bytes(value[at["interface"] :][:4], "little") == 7
    assert int.from_bytes(value[at["counter"] :][:4], "little") == 9
    assert int.from_bytes(value[at["mtu"] :][:2], "little") == 1500
    assert int.from_bytes(value[at["flags"] :][:2], "little") == 1
    assert counter_of(value) == 9


def test_flags_tell_local_ends_and_clients() -> None:
    end = address("192.0.2.1", 1)

    def flags(*, is_local: bool, is_from_client: bool) -> int:
        value = flow_value(
            flow_key(end, end, 17), end, end, interface=1, counter=0, mtu=0,
            is_local=is_local, is_from_client=is_from_client,
        )  # fmt: skip
        return value[-10]

    assert flags(is_local=False, is_from_client=False) == 0
    assert flags(is_local=True, is_from_client=False) == 1
    assert flags(is_local=False, is_from_client=True) == 2


def test_an_mtu_that_no_packet_reaches_is_none() -> None:
    end = address("192.0.2.1", 1)
    value = flow_value(
        flow_key(end, end, 17), end, end, interface=1, counter=0, mtu=65_536, is_local=True, is_from_client=False
    )

    assert value[-12:-10] == bytes(2)


def test_a_counter_has_its_words_where_the_program_writes_them(types: Types) -> None:
    assert named(types, "STRUCT", "counter")["size"] == layout.COUNTER_BYTES
    assert offsets(types, "counter") == {
        "passed": 8 * layout.PASSED,
        "last": 8 * layout.LAST,
        "proof": 8 * layout.PROOF,
        "of_user_space": 8 * layout.SERIES,
    }
    assert layout.SERIES < layout.TOLD < layout.COUNTER_WORDS


def test_reasons_have_the_numbers_of_the_program() -> None:
    """Nothing of an enumeration is left in the object."""
    assert members_of("enum why {", "WHY") == [*(why.name for why in Why), "COUNT"]
    assert members_of("enum choosing {", "CHOOSE") == [*(each.name for each in Choosing)]
    assert members_of("enum reason {", "REASON") == [*(reason.name for reason in REASONS), "COUNT"]
    for name, wanted in (
        ("STATE", State),
        ("SETTING", {name: getattr(layout, name) for name in ("TELL", "NO_UDP", "TCP")}),
    ):
        defined = dict(re.findall(rf"^#define {name}_(\w+) (\d+)", SOURCE, re.MULTILINE))
        members = wanted if isinstance(wanted, dict) else {each.name: each.value for each in wanted}
        assert {key: int(value) for key, value in defined.items()} == members


def members_of(head: str, prefix: str) -> list[str]:
    body = SOURCE.partition(head)[2].partition("}")[0]
    return re.findall(rf"^ *{prefix}_(\w+),", body, re.MULTILINE)


def test_settings_have_their_words_where_the_program_looks_for_them(types: Types) -> None:
    at = offsets(types, "settings")

    assert named(types, "STRUCT", "settings")["size"] == 8 * layout.SETTINGS_WORDS
    for setting in Setting:
        assert at[setting.name.lower()] == 8 * setting


def test_totals_have_their_words_where_the_program_counts(types: Types) -> None:
    at = offsets(types, "total")

    assert named(types, "STRUCT", "total")["size"] == 8 * layout.TOTAL_WORDS
    for word in Total:
        assert at[word.name.lower()] == 8 * word


def test_a_place_is_called_as_the_program_calls_it(types: Types) -> None:
    assert offsets(types, "place") == {"number": 0, "begun": 4}
    assert layout.place_key(7, (5 << 32) + 9) == struct.pack("=II", 7, 9)


@pytest.mark.parametrize(("name", "bounds"), [("connect_bucket", CONNECT_BUCKETS), ("session_bucket", SESSION_BUCKETS)])
def test_histograms_have_the_bounds_of_those_in_user_space(name: str, bounds: tuple[float, ...]) -> None:
    body = SOURCE.partition(f" {name}(")[2].partition("}")[0]

    assert [int(number) for number in re.findall(r"above\(microseconds, (\d+)", body)] == [
        round(bound * 1e6) for bound in bounds
    ]


def test_a_direction_is_read_as_the_program_writes_it(types: Types) -> None:
    at = offsets(types, "direction")
    key = flow_key(address("192.0.2.1", 1), address("192.0.2.2", 2), 6)
    way = flow_value(
        key, address("192.0.2.3", 3), address("192.0.2.4", 4), interface=7, counter=9, mtu=1500, is_local=True,
        is_from_client=True,
    )  # fmt: skip
    value = bytearray(named(types, "STRUCT", "direction")["size"])
    assert len(value) == layout.DIRECTION_BYTES
    value[: len(way)] = way
    for name, number in (("begun", 100), ("last", 200), ("bytes", 300)):
        struct.pack_into("=Q", value, at[name], number)
    struct.pack_into("=I", value, at["state"], State.ESTABLISHED)
    found = bytes(value)

    assert at["way"] == 0
    assert slice(at["begun"], at["begun"] + 8) == layout.BEGUN_PART
    assert layout.progress_of(found) == (State.ESTABLISHED, 100, 200, 300)
    assert layout.target_of(found) == 9
    assert layout.way_of(key, found) == (b"\xc0\0\2\4", b"\xc0\0\2\3")
    assert layout.other_key(key, found) == flow_key(address("192.0.2.4", 4), address("192.0.2.3", 3), 6)
    other = layout.with_way(found, 8, 1400, is_local=False)
    assert other not in {found, layout.with_way(found, 8, 1300, is_local=False)}
    assert layout.with_way(other, 8, 1400, is_local=False) == other
    for part in layout.WAY_PARTS:
        value[part] = other[part]
    assert value == other


def test_a_target_has_its_fields_where_the_program_looks_for_them(types: Types) -> None:
    at = offsets(types, "target")
    value = layout.target_value(layout.Remote(address("2001:db8::1", 0x0102), b"s" * 16, 7, 1500, True, 9))

    assert len(value) == named(types, "STRUCT", "target")["size"] == layout.TARGET_BYTES
    assert value[at["address"] :][:16] == address("2001:db8::1", 1).packed
    assert value[at["source"] :][:16] == b"s" * 16
    assert value[at["port"] :][:2] == b"\1\2"
    assert (value[at["family"]], value[at["is_local"]]) == (6, 1)
    assert struct.unpack_from("=III", value, at["interface"]) == (7, 1500, 9)
    assert (at["interface"], at["mtu"], at["series"]) == (36, 40, 44)
    assert layout.series_of(value) == 9


def test_a_client_has_its_fields_where_the_program_looks_for_them(types: Types) -> None:
    at = offsets(types, "client")
    value = layout.client_value(1, 2, 3, 4, is_local=True)

    assert [struct.unpack_from(form, value, at[name])[0] for name, form in (
        ("epoch", "=Q"), ("until", "=Q"), ("interface", "=I"), ("mtu", "=I"), ("is_local", "=I"),
    )] == [1, 2, 3, 4, 1]  # fmt: skip
    assert struct.unpack_from("=Q", layout.memory_value(5), offsets(types, "memory")["since"]) == (5,)


def test_an_end_is_read_as_the_program_tells_it(types: Types) -> None:
    at = offsets(types, "end")
    record = bytearray(named(types, "STRUCT", "end")["size"])
    record[at["key"] : at["key"] + 40] = flow_key(address("192.0.2.1", 1), address("192.0.2.2", 2), 6)
    for name, form, number in (
        ("target", "=I", 3), ("reason", "=I", 1), ("begun", "=Q", 10), ("connected", "=Q", 20), ("ended", "=Q", 30),
        ("bytes_in", "=Q", 40), ("bytes_out", "=Q", 50),
    ):  # fmt: skip
        struct.pack_into(form, record, at[name], number)

    assert layout.read_end(bytes(record)) == (("192.0.2.1", 1), 3, Reason.TARGET_EOF, 10, 20, 30, 40, 50)


def test_maps_are_made_as_the_program_declares_them(types: Types) -> None:
    """``__uint`` hides a number in the length of an array, ``__type`` a type behind a pointer."""

    def number(member: dict[str, Any]) -> int:
        return int(types[types[member["type_id"]]["type_id"]]["nr_elems"])

    def size(member: dict[str, Any]) -> int:
        found = types[types[member["type_id"]]["type_id"]]
        while found["kind"] == "TYPEDEF":
            found = types[found["type_id"]]
        return int(found["size"])

    declared = {}
    section = named(types, "DATASEC", ".maps")
    for variable in (types[each["type_id"]] for each in section["vars"]):
        members = {member["name"]: member for member in types[variable["type_id"]]["members"]}
        flags = number(members["map_flags"]) if "map_flags" in members else 0
        kind = number(members["type"])
        # The kernel knows no values of a ring buffer.
        key, value = size(members["key"]) if "key" in members else 0, size(members["value"])
        declared[variable["name"]] = (kind, key, 0 if kind == MapKind.RINGBUF else value, flags)

    assert declared == {name: tuple(definition) for name, definition in MAPS.items()}


@given(
    told=st.integers(0, (1 << 64) - 1),
    packets=st.integers(0, (1 << 26) - 1),
    amount=st.integers(0, (1 << 38) - 1),
)
def test_packets_and_bytes_are_told_apart_wherever_the_word_begins(told: int, packets: int, amount: int) -> None:
    assert layout.amount_of((told + (packets << 38) + amount) % (1 << 64), told) == (packets, amount)


def test_an_address_knows_its_family() -> None:
    assert (address("192.0.2.1", 1).family, address("::1", 1).family) == (4, 6)
    assert address("192.0.2.1", 1).packed == b"\xc0\0\2\1"
