from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.seccomp import (
    NUMBERS,
    Rule,
    arguments,
    assemble,
    deny,
    deny_fcntl,
    deny_option,
    install,
    is_supported,
)

ROOT: Final = Path(__file__).parent.parent.parent

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
F_SETPIPE_SZ: Final = 1031

pytestmark = pytest.mark.skipif(not is_supported(), reason="the numbers of this machine's system calls are not known")


def splice() -> None:
    """Raises what splice(2) answers; for descriptors that are none it has an error of its own."""
    os.splice(-1, -1, 1)


def set_udp(option: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(SOL_UDP, option, 1)


def set_pipe_size() -> None:
    read_end, write_end = os.pipe()
    try:
        fcntl.fcntl(write_end, F_SETPIPE_SZ, 1 << 17)
    finally:
        os.close(read_end)
        os.close(write_end)


def error_under(rules: list[Rule], act: Callable[[], None]) -> int:
    """The error number of ``act`` in a process under the rules; 0 for none."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            install(rules)
            act()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_denied_call_fails_as_on_a_kernel_that_lacks_it() -> None:
    assert error_under([], splice) == errno.EBADF
    assert error_under([deny("splice")], splice) == errno.ENOSYS


def test_a_denied_call_fails_with_the_error_that_was_asked_for() -> None:
    assert error_under([deny("splice", errno.EPERM)], splice) == errno.EPERM


def test_only_the_denied_socket_option_is_missing() -> None:
    rules = [deny_option(SOL_UDP, UDP_GRO)]

    assert error_under(rules, lambda: set_udp(UDP_GRO)) == errno.ENOPROTOOPT
    assert error_under(rules, lambda: set_udp(UDP_SEGMENT)) == 0


def test_only_the_denied_command_of_fcntl_is_refused() -> None:
    rules = [deny_fcntl(F_SETPIPE_SZ)]

    assert error_under(rules, set_pipe_size) == errno.EPERM
    assert error_under(rules, lambda: os.set_blocking(0, os.get_blocking(0))) == 0


def test_rules_hold_together() -> None:
    rules = [deny("recvmmsg"), deny_option(SOL_UDP, UDP_SEGMENT), deny_option(SOL_UDP, UDP_GRO), deny("splice")]

    assert error_under(rules, lambda: set_udp(UDP_SEGMENT)) == errno.ENOPROTOOPT
    assert error_under(rules, lambda: set_udp(UDP_GRO)) == errno.ENOPROTOOPT
    assert error_under(rules, splice) == errno.ENOSYS
    assert error_under(rules, set_pipe_size) == 0


def test_a_program_and_its_children_run_under_the_rules() -> None:
    rules = [deny("splice", errno.EPERM), deny_option(SOL_UDP, UDP_GRO), deny_fcntl(F_SETPIPE_SZ)]

    result = subprocess.run(
        [*arguments(rules), "sh", "-c", "grep Seccomp: /proc/self/status; exit 7"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stdout.split()) == (7, ["Seccomp:", "2"])


def test_an_unknown_call_is_refused() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.seccomp", "--deny", "spilce", "--", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert "spilce" in result.stderr


@pytest.mark.parametrize("machine", NUMBERS)
def test_every_jump_of_a_filter_ends_inside_it(machine: str) -> None:
    code = assemble([deny(call) for call in NUMBERS[machine]] + [deny_option(1, 2), deny_fcntl(3)], machine)
    instructions = list(struct.iter_unpack("=HBBI", code))

    for number, (operation, if_true, if_false, _) in enumerate(instructions):
        if operation == 0x15:
            assert number + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1] == (0x06, 0, 0, 0x7FFF0000)
