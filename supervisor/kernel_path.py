"""Whether there is a kernel path just now: the supervisor's decision."""

from __future__ import annotations

import logging
import selectors
from typing import Final

from rpxy_l4.control import UseKernelPath
from rpxy_l4.kernel.path import KernelPath, KernelPathError, remove_stale_filters
from rpxy_l4.snapshot import KernelPath as Wish
from rpxy_l4.snapshot import Snapshot
from rpxy_l4.supervisor.children import Child

_LOG: Final = logging.getLogger(__name__)

_NOT_WANTED: Final = "the configuration has no use for it"
_LEAST: Final = 1 << 14
_MOST: Final = 1 << 17
"""Flows that there is room for, whatever the configuration says: each takes 128 bytes of the kernel's memory, always.
Those that find no room stay in user space."""


class KernelPathKeeper:
    """Loads the kernel path when a configuration wants it, and closes it when none does any more."""

    def __init__(self, slots: int) -> None:
        """Have none; it is going to be shared out among so many slots."""
        self._slots = slots
        self._selector: selectors.BaseSelector | None = None
        self._path: KernelPath | None = None
        self._why_not = _NOT_WANTED
        self._said = ""
        remove_stale_filters()

    @property
    def state(self) -> str:
        """``in use: ...`` with how and where, or ``not used: ...`` with the reason."""
        if self._path is None:
            return f"not used: {self._why_not}"
        return f"in use: {self._path.mode} on {', '.join(self._path.interfaces)}, {self._path.capacity} flows at most"

    @property
    def is_used(self) -> bool:
        """Whether there is one."""
        return self._path is not None

    def left(self) -> dict[str, int]:
        """Return how many packets it has left to the sockets, by why; empty where there is none."""
        if self._path is None:
            return {}
        return {why.name.lower().replace("_", " "): count for why, count in self._path.left().items()}

    def prepare(self, snapshot: Snapshot) -> None:
        """Load what this configuration wants. Raises KernelPathError when it insists on what cannot be had."""
        if snapshot.kernel_path is Wish.OFF or self._path is not None:
            return
        try:
            self._path = self._load(snapshot)
        except KernelPathError as error:
            self._why_not = str(error)
            if snapshot.kernel_path is Wish.ON:
                raise
        self._listen()

    def _load(self, snapshot: Snapshot) -> KernelPath:
        flows = 0 if snapshot.udp is None else snapshot.udp.max_sessions
        # Slots are never equally full.
        wanted = min(max(_LEAST, 2 * flows), _MOST)
        path = KernelPath(wanted // self._slots * self._slots)
        try:
            path.attach()
        except KernelPathError:
            path.close()
            raise
        return path

    def settle(self, snapshot: Snapshot) -> None:
        """Say what there is for a configuration that comes into force, and close what it has no use for."""
        if snapshot.kernel_path is Wish.OFF:
            self.close()
            self._why_not = _NOT_WANTED
        # That nothing is there which nobody asked for is no news at the start.
        if self.state != self._said and (self._said or snapshot.kernel_path is not Wish.OFF):
            _LOG.info("kernel path: %s", self.state)
            self._said = self.state

    def tell(self, child: Child) -> bool:
        """Have a worker use what there is; False when it could not be told."""
        token = b"" if self._path is None else self._path.token
        if child.kernel_path == token:
            return True
        if self._path is None:
            sent = child.send(UseKernelPath(token, self._slots, 0))
        else:
            sent = child.send(UseKernelPath(token, self._slots, self._path.capacity), self._path.descriptors)
        if sent:
            child.kernel_path = token
        return sent

    def clear(self, slots: frozenset[int]) -> None:
        """Take the flows of slots out whose worker is dead and is not replaced at once: their ports are free."""
        if self._path is not None and slots:
            try:
                self._path.clear(slots, self._path.capacity // self._slots)
            except OSError as error:
                _LOG.warning("kernel path: flows of a dead worker stay in: %s", error.strerror)

    def start(self, selector: selectors.BaseSelector) -> None:
        """Have a selector watch for new interfaces."""
        self._selector = selector
        self._listen()

    def _listen(self) -> None:
        if self._selector is not None and self._path is not None:
            self._selector.register(self._path, selectors.EVENT_READ, self._path.on_news)

    def leave_to_parent(self) -> None:
        """In a forked child: close what is a Python object, and change nothing else."""
        if self._path is not None:
            self._path.leave_to_parent()

    def close(self) -> None:
        """Have none any more: the kernel is as it was before."""
        if self._path is not None:
            if self._selector is not None:
                self._selector.unregister(self._path)
            self._path.close()
            self._path = None
