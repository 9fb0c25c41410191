"""System calls for which Python has no function that takes a bare descriptor, or none at all."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_shutdown = _LIBC.shutdown
_shutdown.argtypes = [ctypes.c_int, ctypes.c_int]
_recvmmsg = _LIBC.recvmmsg
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
_syscall = _LIBC.syscall
_syscall.restype = ctypes.c_long
_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}.get(platform.machine())
"""The number of a call that no function of the library makes."""


def shutdown_write(descriptor: int) -> None:
    """Send the end of stream (shutdown(2)). Raises OSError, with ENOTCONN when the other end has reset."""
    if _shutdown(descriptor, socket.SHUT_WR):
        _raise()


def recvmmsg(descriptor: int, headers: int, most: int) -> int:
    """Receive up to ``most`` messages without waiting; return how many (recvmmsg(2)).

    ``headers`` is the address of that many ``struct mmsghdr``, prepared by the caller, who keeps them and all they
    point to alive. Raises OSError: BlockingIOError when there is no message.
    """
    received: int = _recvmmsg(descriptor, headers, most, socket.MSG_DONTWAIT, None)
    if received < 0:
        _raise()
    return received


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char], size: int) -> int:
    """Return the result of a command to eBPF (bpf(2)), which may write into its attributes. Raises OSError."""
    if _BPF is None:
        raise OSError(errno.ENOSYS, f"not known for {platform.machine()}")
    result: int = _syscall(_BPF, command, ctypes.byref(attributes), size)
    if result < 0:
        _raise()
    return result


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
