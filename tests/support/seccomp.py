"""Runs a program under a kernel that refuses some system calls: ``python -m tests.support.seccomp RULES -- COMMAND``.

The rules become a seccomp filter (seccomp(2), Documentation/userspace-api/seccomp_filter.rst), which the command and
all that it starts inherit and cannot take off. Nothing else is different: what the filter lets pass is the real thing.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h.
# fmt: off
NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {
        "accept4": 288, "bpf": 321, "connect": 42, "fcntl": 72, "recvmmsg": 299, "sendmmsg": 307, "setsockopt": 54,
        "socket": 41, "splice": 275,
    },
    "aarch64": {
        "accept4": 242, "bpf": 280, "connect": 203, "fcntl": 25, "recvmmsg": 243, "sendmmsg": 269, "setsockopt": 208,
        "socket": 198, "splice": 76,
    },
}
# fmt: on
"""System calls that can be denied, for each machine."""

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # include/uapi/linux/audit.h

# include/uapi/linux/filter.h, bpf_common.h, seccomp.h and prctl.h.
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD_WORD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2

# struct seccomp_data: number, architecture, instruction pointer, six arguments. Both machines are little-endian: the
# low half of an argument comes first.
_OFFSET_OF_NUMBER: Final = 0
_OFFSET_OF_ARCHITECTURE: Final = 4
_OFFSET_OF_ARGUMENTS: Final = 16


@dataclass(frozen=True)
class Rule:
    """A system call fails with ``error`` when each of ``arguments`` (position and low 32 bits) has its value."""

    call: str
    error: int
    arguments: tuple[tuple[int, int], ...] = ()


def deny(call: str, error: int = errno.ENOSYS) -> Rule:
    """The call fails, whatever its arguments: as on a kernel that lacks it, or in a sandbox that forbids it."""
    return Rule(call, error)


def deny_option(level: int, option: int) -> Rule:
    """No such socket option: setsockopt(2) fails with ENOPROTOOPT."""
    return Rule("setsockopt", errno.ENOPROTOOPT, ((1, level), (2, option)))


def deny_fcntl(command: int) -> Rule:
    """This command of fcntl(2) fails with EPERM, as F_SETPIPE_SZ does for a user whose pages are used up."""
    return Rule("fcntl", errno.EPERM, ((1, command),))


def is_supported(machine: str = "") -> bool:
    """Whether the numbers of the machine's system calls are known here; this machine's where none is named."""
    return (machine or platform.machine()) in NUMBERS


def assemble(rules: Sequence[Rule], machine: str) -> bytes:
    """Return the filter as the kernel takes it; it lets pass what no rule denies.

    Raises KeyError for a system call or a machine that stands in no table here.
    """
    # On another architecture (a 32-bit program) the numbers mean other calls: all pass.
    code = [(_LOAD_WORD, 0, 0, _OFFSET_OF_ARCHITECTURE), (_JUMP_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine])]
    code.append((_RETURN, 0, 0, _ALLOW))
    for rule in rules:
        tests = [(_OFFSET_OF_NUMBER, NUMBERS[machine][rule.call])]
        tests += [(_OFFSET_OF_ARGUMENTS + 8 * position, value) for position, value in rule.arguments]
        for index, (offset, value) in enumerate(tests):
            to_next_rule = 2 * (len(tests) - index) - 1
            code += [(_LOAD_WORD, 0, 0, offset), (_JUMP_IF_EQUAL, 0, to_next_rule, value)]
        code.append((_RETURN, 0, 0, _ERRNO | rule.error))
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def install(rules: Sequence[Rule]) -> None:
    """Put this thread, and all that it starts from now on, under the rules, for good. Raises OSError when refused."""
    code = assemble(rules, platform.machine())
    kept = ctypes.create_string_buffer(code, len(code))
    filter_program = _Program(len(code) // _INSTRUCTION.size, ctypes.addressof(kept))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filter_program))


def _prctl(option: int, second: int, third: int) -> None:
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if function(option, second, third, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def arguments(rules: Sequence[Rule]) -> list[str]:
    """The command line of this module for the rules, up to and with the ``--`` before the command."""
    words = [sys.executable, "-m", "tests.support.seccomp"]
    for rule in rules:
        positions = ",".join(f"{position}={value}" for position, value in rule.arguments)
        words += ["--deny", ":".join((rule.call, errno.errorcode[rule.error], positions)).rstrip(":")]
    return [*words, "--"]


def _rule(text: str) -> Rule:
    call, _, rest = text.partition(":")
    error, _, positions = rest.partition(":")
    pairs = (pair.partition("=") for pair in positions.split(",") if pair)
    if is_supported() and call not in NUMBERS[platform.machine()]:
        raise ValueError(call)
    return Rule(call, getattr(errno, error or "ENOSYS"), tuple((int(at), int(value)) for at, _, value in pairs))


def main() -> None:
    """Install the filter and become the command."""
    parser = argparse.ArgumentParser(prog="tests.support.seccomp", description=__doc__)
    parser.add_argument(
        "--deny",
        metavar="CALL[:ERROR[:ARGUMENT=VALUE,...]]",
        type=_rule,
        action="append",
        default=[],
        help="splice, splice:EPERM, setsockopt:ENOPROTOOPT:1=17,2=104; ENOSYS where no error is named",
    )
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    install(given.deny)
    os.execvp(given.command[0], given.command)  # noqa: S606  becoming the command is what it is for


if __name__ == "__main__":
    main()
