"""The structures of the maps are the same on both sides: the program's own types tell (BTF)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from rpxy_l4.kernel import layout
from rpxy_l4.kernel.layout import MAPS, Address, Why, address, counter_of, flow_key, flow_value
from tests.support.peers import run

OBJECT: Final = Path(layout.__file__).with_name("path.bpf.o")

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
        "packets": 8 * layout.PACKETS,
        "bytes": 8 * layout.BYTES,
        "last": 8 * layout.LAST,
        "proof": 8 * layout.PROOF,
        "of_user_space": 8 * layout.SERIES,
    }
    assert layout.SERIES < layout.TOLD_PACKETS < layout.TOLD_BYTES < layout.COUNTER_WORDS


def test_reasons_have_the_numbers_of_the_program() -> None:
    """Nothing of an enumeration is left in the object."""
    body = OBJECT.with_suffix(".c").read_text().partition("enum why {")[2].partition("}")[0]

    assert re.findall(r"^ *WHY_(\w+),$", body, re.MULTILINE) == [*(why.name for why in Why), "COUNT"]


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
        declared[variable["name"]] = (number(members["type"]), size(members["key"]), size(members["value"]), flags)

    assert declared == {name: tuple(definition) for name, definition in MAPS.items()}


def test_an_address_knows_its_family() -> None:
    assert (address("192.0.2.1", 1).family, address("::1", 1).family) == (4, 6)
    assert address("192.0.2.1", 1).packed == b"\xc0\0\2\1"
