"""Kernel paths that a worker holds, so that their TCP connections outlive the supervisor: the workers' part.

A program stays attached while any process has its link open. While the supervisor lives, it alone decides, and detaches
whatever is held here; afterwards nobody looks after connections, so none begins, and those there are end by themselves.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import time
from collections.abc import Collection, Mapping

from rpxy_l4.control import SETTINGS, KernelPiece
from rpxy_l4.kernel.connections import UNANSWERED_SECONDS
from rpxy_l4.kernel.layout import SETTINGS_WORDS, begin_no_more, live_in, pending_in


class HeldPaths:
    """Owns descriptors of links, and mappings of settings."""

    def __init__(self) -> None:
        """Hold none."""
        self._links: dict[KernelPiece, int] = {}
        self._settings: dict[bytes, memoryview] = {}
        self._over_by = math.inf
        """When what had not come about has no time any more."""

    def __len__(self) -> int:
        """How many descriptors there are."""
        return len(self._links) + len(self._settings)

    def change(self, wanted: Collection[KernelPiece], new: Mapping[KernelPiece, int]) -> None:
        """Hold what is wanted, with what is new, whose descriptors are owned from now on; let go of the rest."""
        for piece in [piece for piece in self._links if piece not in wanted]:
            os.close(self._links.pop(piece))
        for path in [path for path in self._settings if KernelPiece(path, SETTINGS) not in wanted]:
            self._settings.pop(path).release()
        for piece, descriptor in new.items():
            if piece.number == SETTINGS:
                with contextlib.suppress(OSError):  # no memory: its connections go on, but nothing is known of them
                    self._settings[piece.path] = memoryview(mmap.mmap(descriptor, 8 * SETTINGS_WORDS)).cast("Q")
                os.close(descriptor)
            elif piece in self._links:  # sent again, as others were lost
                os.close(descriptor)
            else:
                self._links[piece] = descriptor

    def begin_no_more(self) -> None:
        """Have connections and datagrams that are new go by the sockets; the supervisor must be gone."""
        self._over_by = time.monotonic() + UNANSWERED_SECONDS
        for settings in self._settings.values():
            begin_no_more(settings)

    @property
    def live(self) -> int:
        """How many TCP connections are in the kernel."""
        return sum(map(live_in, self._settings.values()))

    @property
    def dependent(self) -> int:
        """How many TCP connections end with the last process that holds their path.

        Those that have not come about yet are counted for as long as that may take. Filters, the way of kernels before
        6.6, are held by nobody.
        """
        count = pending_in if time.monotonic() < self._over_by else live_in
        return sum(
            count(self._settings[path]) for path in {piece.path for piece in self._links} & self._settings.keys()
        )
