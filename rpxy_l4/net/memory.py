"""Memory that processes share by fork, and that a program which replaces this one by exec finds again."""

from __future__ import annotations

import mmap
import os


class SharedMemory:
    """A mapping of a memfd, which begins as zeros. Pages that are never written take no memory."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """Map ``size`` bytes: new ones, or those of ``descriptor``, which is owned from now on.

        Raises OSError when there are no descriptors or no address space left.
        """
        if descriptor is None:
            descriptor = os.memfd_create("rpxy-l4-shared", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        # The view keeps the mapping alive, in a child that has closed the descriptor too.
        self.view = memoryview(mmap.mmap(descriptor, size))
