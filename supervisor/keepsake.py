"""What a service manager keeps of the flow memory for the supervisor after this one: the memory, and what it means.

An entry names its target by a number of the directory of series. So the directory is kept with it, in a memfd of its
own that is written anew whenever it has grown; and the next supervisor begins with that directory.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from rpxy_l4.flow_memory import ENTRY_BYTES
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.net.memory import SharedMemory

_LOG: Final = logging.getLogger(__name__)

MEMORY: Final = "flow_memory"
MEANING: Final = "flow_meaning"
NAMES: Final = (MEMORY, MEANING)
"""Under which the two are kept."""
_LONGEST: Final = 1 << 26
"""Bytes: more than a full directory takes."""


@dataclass(frozen=True, slots=True)
class Keepsake:
    """A flow memory with all that is needed to read it."""

    memory: SharedMemory
    slots: int
    """For how many it is divided."""
    secret: bytes
    directory: Directory

    def meaning(self) -> bytes:
        """Return all but the memory itself, as bytes that any version can read."""
        listeners, targets = self.directory.as_plain()
        return json.dumps(
            {
                "entry_bytes": ENTRY_BYTES,
                "bytes": len(self.memory.view),
                "slots": self.slots,
                "secret": self.secret.hex(),
                "listeners": listeners,
                "targets": targets,
            }
        ).encode()

    @classmethod
    def of(cls, meaning: bytes, descriptor: int, slots: int | None) -> Self:
        """Return what :meth:`meaning` came from. The descriptor is owned by the result.

        Raises ValueError when the two do not belong together, are for another number of slots, or of a version that
        remembers in another way; then the descriptor stays the caller's.
        """
        try:
            said = json.loads(meaning)
            size = int(said["bytes"])
            secret = bytes.fromhex(said["secret"])
            directory = Directory.of_plain(said["listeners"], said["targets"])
            if said["entry_bytes"] != ENTRY_BYTES or os.fstat(descriptor).st_size != size:
                raise ValueError("it is of another size")
            if slots is None or said["slots"] != slots:
                raise ValueError(f"it is for {said['slots']} slots")
            return cls(SharedMemory(size, descriptor), slots, secret, directory)
        except (KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"it cannot be read: {error!r}") from error


class Shelf:
    """The memfd that says what the flow memory means."""

    def __init__(self) -> None:
        """Make an empty one. Raises OSError."""
        self.descriptor = os.memfd_create(f"rpxy-l4-{MEANING}", os.MFD_CLOEXEC)

    def write(self, meaning: bytes) -> None:
        """Replace what stands there. What dies half way leaves something that is not read."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, meaning, 0)


def find(passed: Iterable[tuple[str, int]], slots: int | None) -> Keepsake | None:
    """Return what a supervisor before this one has left, if it fits; of the descriptors passed, ours are used up.

    ``slots`` is what the listening sockets are divided into, None if nobody knows.
    """
    ours = [(name, descriptor) for name, descriptor in passed if name in NAMES]
    kept = None
    try:
        by_name = dict(ours)
        if len(ours) == len(by_name) == len(NAMES):
            kept = Keepsake.of(os.pread(by_name[MEANING], _LONGEST, 0), by_name[MEMORY], slots)
    except (ValueError, OSError) as error:
        _LOG.warning("the flows of before are forgotten: %s", error)
    for _, descriptor in ours:
        if kept is None or descriptor != kept.memory.descriptor:
            os.close(descriptor)
    return kept
