"""Where operators ask and are answered: the control socket, its clients, and who of them waits for what."""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rpxy_l4.net.listen import BindError
from rpxy_l4.net.local import LocalConnection, LocalListener
from rpxy_l4.orders import MAX_PACKET, Answer, Command, Request, decode_request, encode_answer
from rpxy_l4.supervisor.status import ExitStatus

_LOG: Final = logging.getLogger(__name__)

_MOST: Final = 16
"""Clients at a time; beyond that, the one who came first and has asked nothing makes room, or the new one is closed."""


class Asker:
    """A client of the desk. It asks once, and is closed with the answer."""

    def __init__(self, connection: LocalConnection, forget: Callable[[Asker], None]) -> None:
        """Take ownership of the connection."""
        self.connection = connection
        self.waits_for: str | None = None
        """What is to be told to it; None while it has asked nothing."""
        self._forget = forget

    def answer(self, status: int, text: str, data: dict[str, object] | None = None) -> None:
        """Say what became of its wish, and let go of it."""
        # A client that does not read loses its answer: one packet always finds room in an empty buffer.
        self.connection.send(encode_answer(Answer(status, text, data or {})))
        self._forget(self)


class Desk:
    """One per supervisor. It can be there without a socket, and then nobody comes."""

    def __init__(self, serve: Callable[[Asker, Request], None]) -> None:
        """Have ``serve`` called with each who asks something; it answers, or has them wait."""
        self._serve = serve
        self._selector: selectors.BaseSelector | None = None
        self._listener: LocalListener | None = None
        self._askers: list[Asker] = []

    def start(self, selector: selectors.BaseSelector) -> None:
        """Serve from now on; the selector's data is what to call."""
        self._selector = selector
        if self._listener is not None:
            self._register(self._listener, self._accept)
        for asker in self._askers:
            self._register(asker.connection, partial(self._read, asker))

    @property
    def path(self) -> str:
        """Where it listens; empty: nowhere."""
        return "" if self._listener is None else self._listener.path

    def prepare(self, path: str) -> LocalListener | None:
        """Return a socket to :meth:`move` to, None for none or for the one that is there. Raises BindError."""
        if not path or path == self.path:
            return None
        try:
            return LocalListener.prepare(path)
        except OSError as error:
            raise BindError(path, error) from error

    def move(self, path: str, prepared: LocalListener | None) -> None:
        """Listen at this path from now on, or nowhere; who is being served stays."""
        if path == self.path:
            return
        self.close_listener()
        if prepared is None:
            return
        try:
            prepared.publish()
        except OSError as error:
            _LOG.error("no control socket: %s: %s", path, error.strerror)
            prepared.withdraw()
            return
        self._listener = prepared
        if self._selector is not None:
            self._register(prepared, self._accept)

    def take_over(self, path: str, listening: int | None, waiting: Sequence[int], waits_for: str) -> None:
        """Go on with descriptors of the program before: the socket, and clients who wait for the same thing."""
        if listening is not None:
            self._listener = LocalListener.of(path, listening)
        for descriptor in waiting:
            asker = Asker(LocalConnection.of(descriptor), self._forget)
            asker.waits_for = waits_for
            self._askers.append(asker)

    def descriptors(self, waits_for: str) -> tuple[int | None, list[int]]:
        """Return what ``take_over`` is given."""
        waiting = [asker.connection.fileno() for asker in self._askers if asker.waits_for == waits_for]
        return None if self._listener is None else self._listener.fileno(), waiting

    def put_on(self, waits_for: str, then: str) -> None:
        """Have those who wait for something wait for something else."""
        for asker in self._askers:
            if asker.waits_for == waits_for:
                asker.waits_for = then

    def tell(self, waits_for: str, status: int, text: str) -> None:
        """Answer everybody who waits for this."""
        for asker in [asker for asker in self._askers if asker.waits_for == waits_for]:
            asker.answer(status, text)

    def close_listener(self) -> None:
        """Listen no more, and take the name away."""
        if self._listener is not None:
            self._unregister(self._listener)
            self._listener.unlink()
            self._listener.close()
            self._listener = None

    def leave_to_parent(self) -> None:
        """In a forked child: close all descriptors, and change nothing else."""
        if self._listener is not None:
            self._listener.close()
        for asker in self._askers:
            asker.connection.close()

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  or nothing could be ready
        connection = self._listener.accept()
        if connection is None:
            return
        if len(self._askers) >= _MOST:
            idle = next((asker for asker in self._askers if asker.waits_for is None), None)
            if idle is None:
                connection.close()
                return
            self._forget(idle)
        asker = Asker(connection, self._forget)
        self._askers.append(asker)
        self._register(connection, partial(self._read, asker))

    def _read(self, asker: Asker) -> None:
        if asker not in self._askers:  # it has made room for another one in this turn
            return
        try:
            packet = asker.connection.receive(MAX_PACKET)
        except BlockingIOError:
            return
        if not packet or asker.waits_for is not None:  # it has gone away, or does not keep to the rules
            self._forget(asker)
            return
        try:
            request = decode_request(packet)
        except ValueError as error:
            asker.answer(ExitStatus.USAGE, str(error))
            return
        if request.command not in set(Command):
            asker.answer(ExitStatus.USAGE, f"this version has no command {request.command!r}")
            return
        self._serve(asker, request)

    def _forget(self, asker: Asker) -> None:
        self._unregister(asker.connection)
        asker.connection.close()
        self._askers.remove(asker)

    def _register(self, what: LocalListener | LocalConnection, ready: Callable[[], None]) -> None:
        if self._selector is not None:
            self._selector.register(what, selectors.EVENT_READ, ready)

    def _unregister(self, what: LocalListener | LocalConnection) -> None:
        if self._selector is not None:
            self._selector.unregister(what)
