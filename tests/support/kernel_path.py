"""Whether the kernel path can be tried here, and a look into it from outside."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from typing import Final

import pytest

from rpxy_l4.kernel.netlink import Netlink
from rpxy_l4.kernel.path import why_not
from rpxy_l4.net.libc import bpf

_QUERY: Final = struct.Struct("=IIIIQIxxxxQQQ")
"""The part of ``union bpf_attr`` for BPF_PROG_QUERY."""
_TRIAL: Final = struct.Struct("=IIIIQQIIIIQQ")
"""That for BPF_PROG_TEST_RUN."""
_ELEMENT: Final = struct.Struct("=IxxxxQQQ")
"""That for elements of maps."""
_LOOKUP_AND_DELETE: Final = 21
_PROG_QUERY: Final = 16
_TEST_RUN: Final = 10
_MOST_OUT: Final = 1 << 17
_TCX_INGRESS: Final = 46
_MOST: Final = 64


def way() -> str:
    """How programs are attached here: links are of Linux 6.6."""
    try:
        _linked_to(1)
    except OSError:
        return "clsact"
    return "tcx"


def needs_links() -> None:
    """Skip the test where programs stay attached when those are killed who attached them."""
    if way() != "tcx":
        pytest.skip("this kernel has no links: the next start removes what is left")


def attached_to(interface: int) -> list[object]:
    """What is attached to the ingress of an interface: ids of programs that are linked, and names of filters."""
    with contextlib.closing(Netlink()) as netlink:
        filters = [found.name for found in netlink.filters(interface)]
    return [*(_linked_to(interface) if way() == "tcx" else ()), *filters]


def _linked_to(interface: int) -> list[int]:
    ids = (ctypes.c_uint32 * _MOST)()
    attributes = ctypes.create_string_buffer(
        _QUERY.pack(interface, _TCX_INGRESS, 0, 0, ctypes.addressof(ids), _MOST, 0, 0, 0)
    )
    bpf(_PROG_QUERY, attributes, _QUERY.size)
    return list(ids[: _QUERY.unpack(attributes.raw[: _QUERY.size])[5]])


def try_program(program: int, packet: bytes, skb: bytes = b"") -> tuple[int, bytes]:
    """Run a program on a packet that is nowhere else; its verdict, and the packet then.

    ``skb`` is a ``struct __sk_buff``, or nothing where all of it may be 0.
    """
    given, out = ctypes.create_string_buffer(packet, len(packet)), ctypes.create_string_buffer(_MOST_OUT)
    context = ctypes.create_string_buffer(skb, len(skb) or 1)
    packets = (len(packet), _MOST_OUT, ctypes.addressof(given), ctypes.addressof(out))
    of_context = (len(skb), 0, ctypes.addressof(context) if skb else 0, 0)
    attributes = ctypes.create_string_buffer(_TRIAL.pack(program, 0, *packets, 1, 0, *of_context))
    bpf(_TEST_RUN, attributes, _TRIAL.size)
    _, verdict, _, length, *_ = _TRIAL.unpack(attributes.raw[: _TRIAL.size])
    return ctypes.c_int32(verdict).value, out.raw[:length]


def take_all(queue: int) -> list[int]:
    """Take the numbers out of a queue."""
    found, value = [], ctypes.c_uint32()
    attributes = ctypes.create_string_buffer(_ELEMENT.pack(queue, 0, ctypes.addressof(value), 0))
    with contextlib.suppress(FileNotFoundError):
        while True:
            bpf(_LOOKUP_AND_DELETE, attributes, _ELEMENT.size)
            found.append(value.value)
    return found


def needs_kernel_path() -> None:
    """Skip the test where the kernel path cannot be had; where our program is what is refused, fail it."""
    reason = why_not()
    assert reason is None or "refuses the program" not in reason, reason
    if reason is not None:
        pytest.skip(f"no kernel path here: {reason}")
