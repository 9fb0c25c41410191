"""The inbox of connections that other workers accepted: to this worker, one more listening socket."""

from __future__ import annotations

from typing import Final

from rpxy_l4.net.connection_inbox import ConnectionInbox, InboxEntry
from rpxy_l4.workers.context import Context, Generation
from rpxy_l4.workers.tcp import TcpListener, TcpSession

# More than fit into an inbox.
_ALL: Final = 1024


class WorkersInbox:
    """Serves what comes into the inbox. Owns its copies of both ends."""

    def __init__(self, context: Context, inbox: ConnectionInbox, entry: InboxEntry, sessions: set[TcpSession]) -> None:
        """Serve nothing before :meth:`set_generation`; new sessions are added to ``sessions``."""
        self._inbox = inbox
        # Beside telling how much waits, it keeps the inbox from always being ready, at its end, when others are gone.
        self._entry = entry
        self._listener = TcpListener(context, "the inbox", inbox.socket, sessions, inbox.receive)

    def set_generation(self, generation: Generation) -> None:
        """Serve with this configuration from now on."""
        self._listener.generation = generation
        self._listener.resume()

    def waiting(self) -> int:
        """Return how many connections wait to be taken."""
        return self._entry.waiting()

    def end(self) -> None:
        """Let nothing more come, begin to serve what is there, and close."""
        self._inbox.stop()
        self._listener.accept(_ALL)
        self._listener.leave()
        self._entry.close()
