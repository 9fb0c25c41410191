"""Whether the kernel path can be tried here, and a look into it from outside."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

import pytest

from rpxy_l4.kernel import bpf
from rpxy_l4.kernel.path import why_not

_QUERY: Final = struct.Struct("=IIIIQIxxxxQQQ")
"""The part of ``union bpf_attr`` for BPF_PROG_QUERY."""
_PROG_QUERY: Final = 16
_TCX_INGRESS: Final = 46
_MOST: Final = 64


def programs_at(interface: int) -> list[int]:
    """The ids of the programs that are linked to the ingress of an interface, in their order."""
    ids = (ctypes.c_uint32 * _MOST)()
    attributes = ctypes.create_string_buffer(
        _QUERY.pack(interface, _TCX_INGRESS, 0, 0, ctypes.addressof(ids), _MOST, 0, 0, 0)
    )
    bpf._invoke(_PROG_QUERY, attributes, _QUERY.size)
    return list(ids[: _QUERY.unpack(attributes.raw[: _QUERY.size])[5]])


def needs_kernel_path() -> None:
    """Skip the test where the kernel path cannot be had; where our program is what is refused, fail it."""
    reason = why_not()
    assert reason is None or "refuses the program" not in reason, reason
    if reason is not None:
        pytest.skip(f"no kernel path here: {reason}")
