"""A reload as a value: what the file says now, and what that would change. Nothing here changes anything."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rpxy_l4.config.compile import compile_snapshot
from rpxy_l4.config.parse import parse
from rpxy_l4.errors import ConfigError, Problem
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import Bind, Snapshot


@dataclass(frozen=True, slots=True)
class Content:
    """A configuration file as it was at one moment."""

    data: bytes
    sha256: str


def read_content(path: Path, *, may_wait: bool = False) -> Content:
    """Return what is in the file. Raises ConfigError when it cannot be read.

    Only a regular file is read, which nobody has to be waited for; with ``may_wait`` also a pipe, until its end.
    """
    try:
        data = path.read_bytes() if may_wait else _read_regular(path)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(message=message, file=printable(path))]) from error
    return content_of(data)


def content_of(data: bytes) -> Content:
    """Return what a file of these bytes would be."""
    return Content(data, hashlib.sha256(data).hexdigest())


def _read_regular(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a FIFO waits for a writer; a regular file is read the same with it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def printable(path: Path) -> str:
    """Return the path as text that any terminal and log takes: a name may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def load(
    content: Content, file: str, *, generation: int, known: Directory, cpus: int, slots: int | None = None
) -> tuple[Snapshot, Directory]:
    """Return the configuration and the directory of series that goes with it; ``known`` is left as it was.

    ``file`` is the name that messages begin with; ``slots`` is how many there are already. Raises ConfigError with
    every problem of the file.
    """
    directory = Directory(dict(known.listeners), dict(known.targets))
    snapshot = compile_snapshot(
        parse(content.data, file),
        sha256=content.sha256,
        generation=generation,
        directory=directory,
        cpus=cpus,
        slots=slots,
    )
    return snapshot, directory


@dataclass(frozen=True, slots=True)
class BindPlan:
    """What the kernel must be asked to change."""

    open: tuple[Bind, ...]
    close: tuple[Bind, ...]


def plan_binds(held: Iterable[Bind], wanted: Iterable[Bind]) -> BindPlan:
    """Return which listening sockets are new and which are no longer wanted; those in both are not touched."""
    before, after = frozenset(held), frozenset(wanted)
    return BindPlan(open=tuple(sorted(after - before)), close=tuple(sorted(before - after)))


def new_names(snapshot: Snapshot, before: Snapshot | None) -> frozenset[str]:
    """Return the target names that nobody had to resolve until now."""
    return snapshot.names - (before.names if before is not None else frozenset())


def descriptors_wanted(snapshot: Snapshot) -> int:
    """Return how many descriptors all the sessions need that the configuration allows."""
    tcp = 0 if snapshot.tcp is None else 2 * snapshot.tcp.max_sessions
    udp = 0 if snapshot.udp is None else snapshot.udp.max_sessions
    return tcp + udp
