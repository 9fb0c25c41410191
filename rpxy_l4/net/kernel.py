"""Which features this kernel offers, found by trying each. For people who ask what they can expect."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from inotify_simple import INotify

from rpxy_l4.net.ancillary import SOL_UDP, UDP_GRO, UDP_SEGMENT
from rpxy_l4.net.mmsg import Headers, NotHereError

_ANY_SEGMENT: Final = 1200
_PIPE_LIMIT: Final = Path("/proc/sys/fs/pipe-max-size")


def features() -> Iterator[tuple[str, str]]:
    """Yield name and state of each feature: ``yes``, ``no: <why>`` or a number."""
    for name, attempt in _ATTEMPTS.items():
        try:
            attempt()
        # AttributeError: Python was built where it did not exist.
        except (OSError, AttributeError, NotHereError) as error:
            yield name, f"no: {error}"
        else:
            yield name, "yes"
    try:
        yield "pipe size", _PIPE_LIMIT.read_text("ascii").strip()
    except OSError as error:  # hidden in some sandboxes
        yield "pipe size", f"unknown: {error}"
    soft, hard = (_count(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    yield "open files", f"{soft}, raised to {hard} at start"


def raise_open_files() -> int:
    """Raise the soft limit on open files to the hard one, where that is allowed; return what is in force then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The hard limit itself may be above what the kernel grants by now: fs.nr_open.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft


def _count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _set_on_udp(level: int, option: int, value: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(level, option, value)


def _receive_many() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(BlockingIOError):
        Headers(1, names=False).receive(probe, 1)


def _splice() -> None:
    out_of, into = os.pipe()
    last, sink = os.pipe()
    try:
        os.write(into, b"x")
        os.splice(out_of, sink, 1)
    finally:
        for descriptor in (out_of, into, last, sink):
            os.close(descriptor)


_ATTEMPTS: Final[dict[str, Callable[[], None]]] = {
    "SO_REUSEPORT": lambda: _set_on_udp(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    "UDP_GRO": lambda: _set_on_udp(SOL_UDP, UDP_GRO, 1),
    "UDP_SEGMENT": lambda: _set_on_udp(SOL_UDP, UDP_SEGMENT, _ANY_SEGMENT),
    "recvmmsg": _receive_many,
    "splice": _splice,
    "pidfd": lambda: os.close(os.pidfd_open(os.getpid())),
    "memfd": lambda: os.close(os.memfd_create("rpxy-l4-probe")),
    "inotify": lambda: closing(INotify()).__exit__(),
    "IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close(),
}
