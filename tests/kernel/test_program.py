from __future__ import annotations

import struct
from pathlib import Path
from random import Random
from typing import Final

import pytest

from rpxy_l4.kernel import program
from rpxy_l4.kernel.layout import MAPS
from rpxy_l4.kernel.program import INSTRUCTION_BYTES, read_object
from tests.support.peers import run
from tests.support.proxy import ROOT

OBJECT: Final = Path(program.__file__).with_name("path.bpf.o")


def test_the_object_has_a_program_for_each_kind_of_interface() -> None:
    programs = read_object(OBJECT.read_bytes())

    assert programs.keys() == {"ethernet", "plain"}
    for each in programs.values():
        assert set(each.maps.values()) == MAPS.keys() - {"told"}, "which is user space's own"
        assert len(each.code) % INSTRUCTION_BYTES == 0


def test_descriptors_of_maps_are_put_where_the_program_loads_them() -> None:
    each = read_object(OBJECT.read_bytes())["ethernet"]
    descriptors = {name: 100 + number for number, name in enumerate(MAPS)}
    code = each.linked(descriptors)

    assert len(code) == len(each.code)
    for offset in range(0, len(code), INSTRUCTION_BYTES):
        name = each.maps.get(offset)
        if name is None:
            assert code[offset:][:INSTRUCTION_BYTES] == each.code[offset:][:INSTRUCTION_BYTES]
        else:
            operation, registers, _, value = struct.unpack_from("<BBhi", code, offset)
            assert (operation, registers >> 4, value) == (0x18, 1, descriptors[name])


def test_another_helper_is_called_in_place_of_one_that_the_kernel_has_not() -> None:
    each = read_object(OBJECT.read_bytes())["ethernet"]

    def calls(code: bytes) -> list[int]:
        found = (struct.unpack_from("<BBhi", code, offset) for offset in range(0, len(code), INSTRUCTION_BYTES))
        return [helper for operation, registers, _, helper in found if (operation, registers) == (0x85, 0)]

    coarse, exact = 160, 5
    assert {coarse, exact} < {*calls(each.code)}
    other = each.calling(exact, instead_of=coarse)
    assert calls(other.code) == [exact if helper == coarse else helper for helper in calls(each.code)]
    assert other.maps == each.maps


def test_what_is_shipped_is_what_clang_makes_of_the_source(tmp_path: Path) -> None:
    """The types beside the programs tell of the kernel's headers, which are not always the same."""
    run("clang", "--version")
    made = run(str(ROOT / "scripts" / "compile-kernel-path"), str(tmp_path / "made.o"))
    assert made.returncode == 0, made.stdout

    assert read_object((tmp_path / "made.o").read_bytes()) == read_object(OBJECT.read_bytes())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a little-endian ELF object"),
        (b"\x7fELF\x02\x02" + bytes(100), "not a little-endian ELF object"),
        (b"\x7fELF\x02\x01" + bytes(100), "not a program for BPF"),
        (b"\x7fELF\x02\x01" + bytes(20), "damaged"),
    ],
)
def test_other_files_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_object(data)


def test_a_reference_to_anything_but_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="which is no map"):
        read_object(OBJECT.read_bytes().replace(b".maps\0", b".data\0"))


def test_a_damaged_object_is_refused_or_read_and_nothing_else() -> None:
    whole, random = OBJECT.read_bytes(), Random(1)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(random.randrange(1, 4)):
            data[random.randrange(len(data))] = random.randrange(256)
        cut = bytes(data[: random.randrange(len(data))]) if random.random() < 0.3 else bytes(data)
        try:
            read_object(cut)
        except ValueError:
            continue
