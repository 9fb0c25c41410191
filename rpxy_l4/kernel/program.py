"""Reads a compiled program: ELF with relocations to maps, as clang writes it (elf(5), bpf/llvm_reloc.rst).

Only what our own program needs. Whatever is beyond that (functions that call each other, global data, CO-RE) is
refused, so nothing is loaded that was not understood. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

INSTRUCTION_BYTES: Final = 8

_MAGIC: Final = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")
_BPF: Final = 247
"""EM_BPF."""
_SYMBOLS: Final = 2
_RELOCATIONS: Final = 9
"""SHT_SYMTAB, SHT_REL."""
_FUNCTION: Final = 2
"""STT_FUNC."""
_MAP_ADDRESS: Final = 1
"""R_BPF_64_64."""

_CODE: Final = "tc"
_LOAD_WIDE: Final = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: two instructions that hold 64 bits."""
_CALL: Final = 0x85
"""BPF_JMP | BPF_CALL; with registers of 0, of a helper."""
_IS_MAP: Final = 1
"""BPF_PSEUDO_MAP_FD: those bits are the descriptor of a map."""
_INSTRUCTION: Final = struct.Struct("<BBhi")
_DESTINATION: Final = 0x0F


class Program(NamedTuple):
    """One program of an object."""

    code: bytes
    maps: Mapping[int, str]
    """Where in ``code`` the descriptor of which map is to be put."""

    def calling(self, helper: int, instead_of: int) -> Program:
        """Return one that calls another helper of the kernel."""
        code = bytearray(self.code)
        for offset in range(0, len(code), INSTRUCTION_BYTES):
            operation, registers, _, number = _INSTRUCTION.unpack_from(code, offset)
            if operation == _CALL and registers == 0 and number == instead_of:
                _INSTRUCTION.pack_into(code, offset, operation, registers, 0, helper)
        return self._replace(code=bytes(code))

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """Return its code with the descriptors of the maps put in."""
        code = bytearray(self.code)
        for offset, name in self.maps.items():
            operation, registers, _, _ = _INSTRUCTION.unpack_from(code, offset)
            registers = registers & _DESTINATION | _IS_MAP << 4
            _INSTRUCTION.pack_into(code, offset, operation, registers, 0, descriptors[name])
        return bytes(code)


class _Section(NamedTuple):
    name: str
    kind: int
    data: bytes
    link: int
    info: int


class _Symbol(NamedTuple):
    name: str
    kind: int
    section: int
    value: int
    size: int


def read_object(data: bytes) -> dict[str, Program]:
    """Return the programs of an object by name. Raises ValueError for what is not such an object."""
    try:
        return _read(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"the object is damaged: {error}") from error


def _read(data: bytes) -> dict[str, Program]:
    if not data.startswith(_MAGIC):
        raise ValueError("not a little-endian ELF object")
    sections = _sections(data)
    code = next((number for number, section in enumerate(sections) if section.name == _CODE), None)
    table = next((section for section in sections if section.kind == _SYMBOLS), None)
    if code is None or table is None:
        raise ValueError("the object has no program")
    names = sections[table.link].data
    symbols = [
        _Symbol(_text(names, name), info & 15, section, value, size)
        for name, info, _, section, value, size in _SYMBOL.iter_unpack(table.data)
    ]
    maps = {
        offset: _map_name(symbols[info >> 32], info & 0xFFFF_FFFF, sections)
        for section in sections
        if section.kind == _RELOCATIONS and section.info == code
        for offset, info in _RELOCATION.iter_unpack(section.data)
    }
    programs = {}
    for symbol in symbols:
        if symbol.kind == _FUNCTION and symbol.section == code:
            end = symbol.value + symbol.size
            own = {offset - symbol.value: name for offset, name in maps.items() if symbol.value <= offset < end}
            programs[symbol.name] = Program(sections[code].data[symbol.value : end], own)
    return programs


def _sections(data: bytes) -> list[_Section]:
    _, machine, _, _, _, start, _, _, _, _, size, count, names = _HEADER.unpack_from(data)
    if machine != _BPF:
        raise ValueError("not a program for BPF")
    headers = [_SECTION.unpack_from(data, start + number * size) for number in range(count)]
    bodies = [data[offset : offset + length] for _, _, _, _, offset, length, *_ in headers]
    return [
        _Section(_text(bodies[names], name), kind, body, link, info)
        for (name, kind, _, _, _, _, link, info, _, _), body in zip(headers, bodies, strict=True)
    ]


def _map_name(symbol: _Symbol, kind: int, sections: list[_Section]) -> str:
    if kind != _MAP_ADDRESS or sections[symbol.section].name != ".maps":
        raise ValueError(f"the object refers to {symbol.name or 'something'}, which is no map")
    return symbol.name


def _text(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()
