"""What all sources of traffic have in common: clients in threads, their progress, and their losses."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tests.support.waiting import PATIENCE

Address = tuple[str, int]

LONGEST: Final = 3 * PATIENCE
"""Seconds until a client that makes no progress at all is a failure of the test."""


class WrongAnswerError(Exception):
    """What arrived is not what should have arrived."""


@dataclass(frozen=True)
class Loss:
    """One thing that was lost."""

    what: str
    client: Address | None
    """The client's own address; None where it never had a connection."""


@dataclass(frozen=True)
class Losses:
    """What a source did in all."""

    source: str
    things: str
    """What is lost here, in the plural."""
    is_udp: bool
    done: int
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class Conversation:
    """The bytes of a connection that its client ended in order."""

    client: Address
    sent: int
    received: int
    ended: float
    """When, in monotonic seconds."""


class Source(ABC):
    """One or more clients, each in a thread of its own, which belongs to the network namespace of the starting one."""

    def __init__(self, name: str, *, things: str = "", clients: int = 1, is_udp: bool = False) -> None:
        """``name`` says what is done, ``things`` what is lost, where that is something else; both in the plural."""
        self.name = name
        self.things = things or name
        self.is_udp = is_udp
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._done = [0] * clients
        self._lost: list[Loss] = []
        self._threads = [threading.Thread(target=self._live, args=(number,), daemon=True) for number in range(clients)]

    @abstractmethod
    def _live(self, number: int) -> None:
        """Be a client until told to stop."""

    @abstractmethod
    def _wake(self) -> None:
        """Let clients look at ``_stopping``, which is set, if they do not wait for it."""

    def _count(self, number: int) -> None:
        """Note that a client has done one thing more."""
        with self._changed:
            self._done[number] += 1
            self._changed.notify_all()

    def _lose(self, what: str, client: Address | None) -> None:
        """Note that something was lost."""
        with self._changed:
            self._lost.append(Loss(f"{self.name}: {what}", client))
            self._changed.notify_all()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def progress(self) -> int:
        """How many things were done so far, by all clients."""
        with self._changed:
            return sum(self._done)

    @property
    def lost(self) -> int:
        """How many things were lost so far, by all clients."""
        with self._changed:
            return len(self._lost)

    def wait_for_first(self) -> None:
        """Wait until each client has done one thing."""
        with self._changed:
            assert self._changed.wait_for(lambda: all(self._done), LONGEST), f"{self.name}: {self._done}, {self._lost}"

    def mark(self) -> Callable[[int], None]:
        """Return a function that waits until each client has done so many things more than now."""
        with self._changed:
            before = list(self._done)

        def wait(more: int) -> None:
            def have_all() -> bool:
                return all(now >= then + more for now, then in zip(self._done, before, strict=True))

            with self._changed:
                assert self._changed.wait_for(have_all, LONGEST), f"{self.name}: {before} -> {self._done}, {self._lost}"

        return wait

    def stop(self) -> Losses:
        """Let each client finish what it is doing, and return what was done and lost."""
        self._stopping.set()
        self._wake()
        for thread in self._threads:
            thread.join(LONGEST)
            assert not thread.is_alive(), f"{self.name} hangs"
        return Losses(self.name, self.things, self.is_udp, sum(self._done), tuple(self._lost))


class Client(Protocol):
    """One client that does small things one after another. Used by one thread."""

    address: Address | None
    """Its end of the connection in use, or of the last one."""

    def act(self) -> None:
        """Do one thing; raise OSError or WrongAnswerError where it is lost. The next call begins anew."""

    def close(self) -> None:
        """End in order what is open."""


class Repeating(Source):
    """Clients that do the same thing again and again."""

    def __init__(
        self, name: str, clients: Sequence[Client], pause: float, *, things: str = "", is_udp: bool = False
    ) -> None:
        """``pause`` is the time between two acts of a client, in seconds."""
        super().__init__(name, things=things, clients=len(clients), is_udp=is_udp)
        self._clients = clients
        self._pause = pause

    def _wake(self) -> None:
        """Do nothing: they look at it after each act."""

    def _live(self, number: int) -> None:
        client = self._clients[number]
        while not self._stopping.wait(self._pause):
            try:
                client.act()
            except (OSError, WrongAnswerError) as error:
                self._lose(repr(error), client.address)
            else:
                self._count(number)
        try:
            client.close()
        except (OSError, WrongAnswerError) as error:
            self._lose(f"at its end: {error!r}", client.address)
