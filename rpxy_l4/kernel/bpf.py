"""The system call bpf(2), as far as the kernel path needs it (include/uapi/linux/bpf.h).

Not through libbpf: this is a stable interface of the kernel and can fail with an error only, where a structure that a
library of another version understands otherwise ends the process; and the library is not everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rpxy_l4.kernel.layout import MapDefinition
from rpxy_l4.kernel.program import INSTRUCTION_BYTES
from rpxy_l4.net import libc

_MAP_CREATE: Final = 0
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_PROG_LOAD: Final = 5
_MAP_LOOKUP_BATCH: Final = 24
_MAP_LOOKUP: Final = 1
_LINK_CREATE: Final = 28
_LINK_DETACH: Final = 34

_NEW_MAP: Final = struct.Struct("=IIIIIII16s")
_NEW_PROGRAM: Final = struct.Struct("=IIQQIIQII16sII")
_NEW_LINK: Final = struct.Struct("=IIIIIIQ")
_LINK: Final = struct.Struct("=I")
_ELEMENT: Final = struct.Struct("=IxxxxQQQ")
_BATCH: Final = struct.Struct("=QQQQIIQQ")

_SCHED_CLS: Final = 3
_TCX_INGRESS: Final = 46
_NO_EXIST: Final = 1
"""BPF_NOEXIST."""

_POSSIBLE_CPUS: Final = Path("/sys/devices/system/cpu/possible")
_LOG_BYTES: Final = 1 << 20
_ATTEMPTS: Final = 5
_AT_A_TIME: Final = 1024
_QUEUED_BYTES: Final = 4
_STATISTICS: Final = ("processed ", "verification time")
_LICENSE: Final = b"Dual MIT/GPL"


class VerifierError(Exception):
    """The kernel refuses the program."""

    def __init__(self, name: str, error: OSError, log: str) -> None:
        """Keep what the verifier had to say."""
        super().__init__(f"{error.strerror}")
        self.name = name
        self.log = log

    @property
    def last_words(self) -> str:
        """The line of the log that says what is wrong: the last before its statistics."""
        lines = [line for line in self.log.splitlines() if line and not line.startswith(_STATISTICS)]
        return lines[-1] if lines else "no reason given"


def create_map(name: str, definition: MapDefinition, entries: int) -> int:
    """Return the descriptor of a new map, close-on-exec and the caller's.

    Raises OSError: PermissionError without CAP_BPF, ENOMEM, or what an old kernel says.
    """
    kind, key_bytes, value_bytes, flags = definition
    return _call(_MAP_CREATE, _NEW_MAP.pack(kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()))


def load_program(name: str, code: bytes) -> int:
    """Return the descriptor of a program, close-on-exec and the caller's.

    Raises VerifierError with the verifier's log where it has one, OSError otherwise.
    """
    try:
        return _load_at_last(name, code)
    except OSError as first:
        if first.errno == errno.EPERM:  # without the privilege there is no verdict on the program
            raise
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _load(name, code, log)
        except OSError as error:
            text = log.value.decode(errors="replace")
            if not text:
                raise first from None
            raise VerifierError(name, error, text) from None


def _load_at_last(name: str, code: bytes) -> int:
    """Load a program. The verifier gives up whenever a signal comes, and is asked again, but not for ever."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            return _load(name, code, None)
    return _load(name, code, None)


def _load(name: str, code: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
    instructions, terms = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENSE)
    return _call(
        _PROG_LOAD,
        _NEW_PROGRAM.pack(
            _SCHED_CLS,
            len(code) // INSTRUCTION_BYTES,
            ctypes.addressof(instructions),
            ctypes.addressof(terms),
            0 if log is None else 1,
            0 if log is None else _LOG_BYTES,
            0 if log is None else ctypes.addressof(log),
            0,
            0,
            name.encode(),
            0,
            0,
        ),
    )


def link_to_ingress(program: int, interface: int) -> int:
    """Attach a program to what arrives at an interface, behind those that are there (TCX, since Linux 6.6).

    Return the descriptor of the link, the caller's: while it, or a copy, is open, the program is attached. Raises
    OSError: EINVAL from older kernels, ENODEV when the interface is gone, ERANGE when there are too many programs.
    """
    return _call(_LINK_CREATE, _NEW_LINK.pack(program, interface, _TCX_INGRESS, 0, 0, 0, 0))


def detach(link: int) -> None:
    """Detach what a link has attached, whoever else has it open; the descriptor stays the caller's. Raises OSError."""
    _call(_LINK_DETACH, _LINK.pack(link))


def entries_of(descriptor: int) -> int:
    """Return how many entries a map may have; of a ring buffer, how many bytes."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("max_entries"))


class Map:
    """A map whose keys and values have a fixed length. Owns its descriptor, until :meth:`close`."""

    def __init__(self, descriptor: int, definition: MapDefinition) -> None:
        """Take ownership."""
        self.descriptor = descriptor
        self._definition = definition
        self._key = ctypes.create_string_buffer(definition.key_bytes)
        self._value = ctypes.create_string_buffer(definition.value_bytes)
        key, value = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._insert = ctypes.create_string_buffer(_ELEMENT.pack(descriptor, key, value, _NO_EXIST))
        self._replace = ctypes.create_string_buffer(_ELEMENT.pack(descriptor, key, value, 0))
        self._find = ctypes.create_string_buffer(_ELEMENT.pack(descriptor, key, value, 0))
        self._remove = ctypes.create_string_buffer(_ELEMENT.pack(descriptor, key, 0, 0))

    def insert(self, key: bytes, value: bytes) -> None:
        """Put an entry in. Raises OSError: FileExistsError when there is one, E2BIG when the map is full."""
        self._key.raw, self._value.raw = key, value
        libc.bpf(_MAP_UPDATE, self._insert, _ELEMENT.size)

    def replace(self, key: bytes, value: bytes) -> None:
        """Put an entry in, in place of one that is there. Raises OSError: E2BIG when the map is full."""
        self._key.raw, self._value.raw = key, value
        libc.bpf(_MAP_UPDATE, self._replace, _ELEMENT.size)

    def find(self, key: bytes) -> bytes | None:
        """Return the value of an entry; None when there is none."""
        self._key.raw = key
        try:
            libc.bpf(_MAP_LOOKUP, self._find, _ELEMENT.size)
        except FileNotFoundError:
            return None
        return self._value.raw

    def remove(self, key: bytes) -> bool:
        """Take an entry out; whether there was one."""
        self._key.raw = key
        try:
            libc.bpf(_MAP_DELETE, self._remove, _ELEMENT.size)
        except FileNotFoundError:
            return False
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries, of a hash. One that comes or goes meanwhile may be missed, or come twice."""
        key_bytes, value_bytes = self._definition.key_bytes, self._definition.value_bytes
        keys = ctypes.create_string_buffer(_AT_A_TIME * key_bytes)
        values = ctypes.create_string_buffer(_AT_A_TIME * value_bytes)
        # Where to go on: as long as a key, or 4 bytes, whatever is more.
        position = ctypes.create_string_buffer(max(key_bytes, 4))
        at, is_last = 0, False
        room = _AT_A_TIME
        while not is_last:
            attributes = ctypes.create_string_buffer(
                _BATCH.pack(
                    at,
                    ctypes.addressof(position),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    room,
                    self.descriptor,
                    0,
                    0,
                )
            )
            try:
                libc.bpf(_MAP_LOOKUP_BATCH, attributes, _BATCH.size)
            except FileNotFoundError:
                is_last = True
            except OSError as error:
                # A bucket holds more than there is room for.
                if error.errno != errno.ENOSPC or room >= 1 << 20:
                    raise
                room *= 4
                keys = ctypes.create_string_buffer(room * key_bytes)
                values = ctypes.create_string_buffer(room * value_bytes)
                continue
            at = ctypes.addressof(position)
            count = _BATCH.unpack(attributes.raw[: _BATCH.size])[4]
            all_keys, all_values = keys.raw[: count * key_bytes], values.raw[: count * value_bytes]
            for number in range(count):
                yield (
                    all_keys[number * key_bytes : (number + 1) * key_bytes],
                    all_values[number * value_bytes : (number + 1) * value_bytes],
                )

    def close(self) -> None:
        """Close this process's copy."""
        os.close(self.descriptor)


class Queue:
    """A queue of values of a fixed length, whose descriptor stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        """Put into this one."""
        self._value = ctypes.create_string_buffer(_QUEUED_BYTES)
        self._push = ctypes.create_string_buffer(_ELEMENT.pack(descriptor, 0, ctypes.addressof(self._value), 0))

    def push(self, value: bytes) -> None:
        """Put a value behind all others. Raises OSError: E2BIG when the queue is full."""
        self._value.raw = value
        libc.bpf(_MAP_UPDATE, self._push, _ELEMENT.size)


def read_per_cpu(descriptor: int, index: int, words: int = 1) -> list[int]:
    """Return the sums over all processors of the 64-bit words of a value in an array."""
    cpus = _possible_cpus()
    key, values = ctypes.c_uint32(index), (ctypes.c_uint64 * (words * cpus))()
    attributes = _ELEMENT.pack(descriptor, ctypes.addressof(key), ctypes.addressof(values), 0)
    _call(_MAP_LOOKUP, attributes)
    return [sum(values[word::words]) for word in range(words)]


@functools.cache
def _possible_cpus() -> int:
    last = _POSSIBLE_CPUS.read_text("ascii").strip().rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1


def _call(command: int, attributes: bytes) -> int:
    return libc.bpf(command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))
