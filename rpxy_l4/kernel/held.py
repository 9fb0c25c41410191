"""Kernel paths that a worker holds, so that their TCP connections outlive the supervisor: the workers' part.

A program stays attached while any process has its link open. While the supervisor lives, it alone decides, and detaches
whatever is held here; afterwards nobody looks after connections, so none begins, and those there are end by themselves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Collection, Mapping

from rpxy_l4.control import SETTINGS, KernelPiece
from rpxy_l4.kernel.layout import SETTINGS_WORDS, begin_no_more, live_in


class HeldPaths:
    """Owns descriptors of links, and mappings of settings."""

    def __init__(self) -> None:
        """Hold none."""
        self._links: dict[KernelPiece, int] = {}
        self._settings: dict[KernelPiece, memoryview] = {}

    def change(self, wanted: Collection[KernelPiece], new: Mapping[KernelPiece, int]) -> None:
        """Hold what is wanted, with what is new, whose descriptors are owned from now on; let go of the rest."""
        for piece in [piece for piece in self._links if piece not in wanted]:
            os.close(self._links.pop(piece))
        for piece in [piece for piece in self._settings if piece not in wanted]:
            self._settings.pop(piece).release()
        for piece, descriptor in new.items():
            if piece.number == SETTINGS:
                with contextlib.suppress(OSError):  # no memory: other workers have them, too
                    self._settings[piece] = memoryview(mmap.mmap(descriptor, 8 * SETTINGS_WORDS)).cast("Q")
                os.close(descriptor)
            elif piece in self._links:  # sent again, as others could not be sent
                os.close(descriptor)
            else:
                self._links[piece] = descriptor

    def begin_no_more(self) -> None:
        """Have connections and datagrams that are new go by the sockets; the supervisor must be gone."""
        for settings in self._settings.values():
            begin_no_more(settings)

    @property
    def live(self) -> int:
        """How many TCP connections are in the kernel."""
        return sum(map(live_in, self._settings.values()))
