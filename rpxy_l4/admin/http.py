"""An HTTP server for a handful of scrapers and probes: one request per connection, one thread per request.

Whoever is slow or many costs no more than ``MAX_REQUESTS`` threads for ``REQUEST_TIMEOUT`` seconds, and appears in no
log.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any, Final, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

_LOG: Final = logging.getLogger("rpxy_l4.admin")

_SHORT_OF_DESCRIPTORS: Final = 0.1
MAX_REQUESTS: Final = 32
"""Requests at a time; further connections are closed unanswered."""
REQUEST_TIMEOUT: Final = 10.0
"""Seconds from accepting a connection to the last byte of its answer."""

_REQUEST_LINE_LIMIT: Final = 8192
# How often to look for requests that took too long, and for the order to stop, within the time for one request.
_TICKS: Final = 20


class _Answer(ServerHandler):
    server_software = "rpxy-l4"

    def log_exception(self, exc_info: Any) -> None:
        # OSError: the client went away, or was cut off.
        if not isinstance(exc_info[1], OSError):
            _LOG.error("a page of the admin address failed", exc_info=exc_info)


class _Request(WSGIRequestHandler):
    server: AdminServer
    server_version = "rpxy-l4"
    sys_version = ""

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(_REQUEST_LINE_LIMIT + 1)
        if len(self.raw_requestline) > _REQUEST_LINE_LIMIT:
            self.requestline, self.request_version, self.command = "", "", ""
            self.send_error(414)
        elif self.parse_request():
            output = cast("IO[bytes]", self.wfile)
            answer = _Answer(self.rfile, output, self.get_stderr(), self.get_environ(), multithread=True)
            answer.request_handler = self  # type: ignore[attr-defined]  # what WSGIRequestHandler itself does
            answer.run(self.server.application)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
        """Keep probes and scrapes out of the log."""


class AdminServer(WSGIServer):
    """Serves a WSGI application on a listening socket that exists already."""

    application: WSGIApplication

    def __init__(
        self, listening: socket.socket, app: WSGIApplication, *, request_timeout: float = REQUEST_TIMEOUT
    ) -> None:
        """Take ownership of ``listening``. Nothing is accepted before :meth:`start`."""
        # Past TCPServer, which would make a socket of its own, and HTTPServer, which would ask DNS for our name.
        socketserver.BaseServer.__init__(self, listening.getsockname(), _Request)
        listening.setblocking(False)
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.setup_environ()
        self.set_app(app)
        self._request_timeout = request_timeout
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}
        """Of the requests in progress. A connection is closed only together with its entry, under the lock."""

    def start(self) -> None:
        """Serve in a thread until :meth:`stop`."""
        tick = self._request_timeout / _TICKS
        threading.Thread(target=self.serve_forever, args=(tick,), name="admin-http", daemon=True).start()

    def stop(self) -> None:
        """Stop accepting and close the listening socket. Returns within a second; requests in progress go on."""
        self.shutdown()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; out of descriptors, wait a moment first, because the same connection will be asked for again."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                threading.Event().wait(_SHORT_OF_DESCRIPTORS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or not at all when there are too many already."""
        with self._lock:
            free = len(self._deadlines) < MAX_REQUESTS
            if free:
                self._deadlines[request] = time.monotonic() + self._request_timeout
        if not free:
            request.close()
            return
        threading.Thread(target=self._answer, args=(request, client_address), name="admin-request", daemon=True).start()

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001  the thread's edge; handle_error tells clients' faults from ours
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End the connection."""
        with self._lock:
            self._deadlines.pop(request, None)
            super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off the requests that are over their time; their threads then see the end of the connection."""
        now = time.monotonic()
        with self._lock:
            for request, deadline in self._deadlines.items():
                if deadline <= now:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the base class's signature
        """Log what is not the client's doing."""
        if not isinstance(sys.exception(), OSError):
            _LOG.exception("a request to the admin address failed")
