"""The worker's private epoll set: every socket that moves bytes.

uvloop watches the set's own descriptor and calls :meth:`Poller.dispatch` when something in it is ready. One callback
then serves a whole batch, through one dict, instead of one event-loop handle for each socket.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from typing import Final, Protocol

EVENTS: Final = logging.getLogger(__name__)

DATA: Final = select.EPOLLIN
READABLE: Final = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Any of these: reading will say something. Urgent data (PRI) stops a read short of what is there."""
ENDED: Final = select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Any of these: a short read does not mean that the source is dry; more, an end or an error, is behind it."""
RESET: Final = select.EPOLLERR
"""The connection was reset or timed out; HUP alone also says that both ends closed in order."""
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
"""Any of these: nothing can be sent any more."""
WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

ORDINARY: Final = DATA | select.EPOLLOUT
"""Any other of a stream: more than data has come."""

STREAM: Final = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""Interest in a stream: registered once, both directions, edge-triggered."""
LEVEL: Final = select.EPOLLIN
"""Interest in a listening or datagram socket."""

_BATCH: Final = 512


class Owner(Protocol):
    """Who is told about a socket."""

    def on_event(self, descriptor: int, mask: int) -> None:
        """Handle readiness."""

    def on_again(self) -> None:
        """Go on with what was left undone so that others had their turn."""

    def abandon(self) -> None:
        """Let go of everything after a fault in this program."""


def give_up(owner: Owner) -> None:
    """Close a session after a fault in this program, and log the exception being handled."""
    EVENTS.exception("fault while serving a session; it was closed")
    try:
        owner.abandon()
    except Exception:  # noqa: BLE001  as its callers: the rest of the batch must be served
        EVENTS.exception("fault while closing a session after a fault")


class Poller:
    """Dispatches readiness to owners by descriptor."""

    def __init__(self) -> None:
        """Make an empty set."""
        self._epoll = select.epoll()
        self._owners: dict[int, Owner] = {}
        self._closing: list[int] = []
        self._again: deque[Owner] = deque()
        self.now = time.monotonic()
        """When the present batch began, seconds of CLOCK_MONOTONIC."""

    def fileno(self) -> int:
        """Return the set's own descriptor, readable while anything in the set is ready."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, descriptor: int, owner: Owner, interest: int) -> None:
        """Watch a socket. Raises OSError when the kernel has no room for it."""
        self._epoll.register(descriptor, interest)
        self._owners[descriptor] = owner

    def hand_over(self, descriptor: int, owner: Owner) -> None:
        """Tell another owner of a watched socket from now on."""
        self._owners[descriptor] = owner

    def remove(self, descriptor: int) -> None:
        """Stop watching a socket that stays open, here or in another process; harmless when it is not watched."""
        if self._owners.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self, descriptor: int) -> None:
        """Forget and close a socket that no other process has, at the end of the batch.

        Not at once: the number would be given to the next socket, and an event already fetched for this one would
        reach that one. Closing takes it out of the set (epoll(7)), without a system call for that.
        """
        self._owners.pop(descriptor, None)
        self._closing.append(descriptor)

    @property
    def closing(self) -> int:
        """Sockets that were let go and are still open."""
        return len(self._closing)

    def again(self, owner: Owner) -> None:
        """Call ``owner.on_again`` at the next :meth:`resume`, which the caller has to bring about."""
        self._again.append(owner)

    def begin_batch(self) -> None:
        """Take the time for what follows; to be paired with :meth:`end_batch`."""
        self.now = time.monotonic()

    def end_batch(self) -> None:
        """Close the sockets that were let go."""
        while self._closing:
            try:
                os.close(self._closing.pop())
            except OSError:
                EVENTS.exception("fault while closing a socket")

    def dispatch(self) -> None:
        """Serve one batch of what is ready."""
        self.begin_batch()
        owners = self._owners
        for descriptor, mask in self._epoll.poll(0, _BATCH):
            owner = owners.get(descriptor)
            if owner is None:
                continue
            try:
                owner.on_event(descriptor, mask)
            except Exception:  # noqa: BLE001  the loop's edge: a fault in one session must not end the others
                give_up(owner)
        self.end_batch()

    def resume(self) -> None:
        """Serve those who asked for another turn."""
        self.begin_batch()
        for _ in range(len(self._again)):
            owner = self._again.popleft()
            try:
                owner.on_again()
            except Exception:  # noqa: BLE001  as above
                give_up(owner)
        self.end_batch()

    @property
    def has_again(self) -> bool:
        """Whether anybody waits for another turn."""
        return bool(self._again)
