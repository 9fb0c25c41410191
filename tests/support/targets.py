"""Small real targets: servers in threads of the test, which say what reached them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

from tests.support.waiting import PATIENCE

Handler = Callable[[socket.socket], None]

_READ: Final = 65_536


def endpoint(host: str, port: int) -> str:
    """A target as the configuration spells it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TcpTarget:
    """Gives each connection to ``handler``, in a thread of its own, and closes it afterwards."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=1024)
        self._handler = handler
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.text = endpoint(host, self.port)
        self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread; close() alone does not
        self._thread.join(PATIENCE)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._handler(connection)
        self._open.discard(connection)


def echo(connection: socket.socket) -> None:
    """Send everything back; end when the client's side has ended."""
    while data := connection.recv(_READ):
        connection.sendall(data)


def speaks_first(banner: bytes) -> Handler:
    """A server such as SMTP or MySQL: says ``banner`` before the client says anything, then echoes."""

    def handle(connection: socket.socket) -> None:
        connection.sendall(banner)
        echo(connection)

    return handle


def reports(name: str) -> Handler:
    """Reads to the client's end of file, then sends ``name``, a newline, and all that was read."""

    def handle(connection: socket.socket) -> None:
        data = read_all(connection)
        connection.sendall(name.encode() + b"\n" + data)

    return handle


def digests(name: str) -> Handler:
    """Like :func:`reports`, with the length and the SHA-256 of what was read instead of itself."""

    def handle(connection: socket.socket) -> None:
        digest, size = hashlib.sha256(), 0
        while data := connection.recv(_READ):
            digest.update(data)
            size += len(data)
        connection.sendall(f"{name} {size} {digest.hexdigest()}".encode())

    return handle


def answers(name: str) -> Handler:
    """Sends ``name``, a newline, and what it reads, as it comes."""

    def handle(connection: socket.socket) -> None:
        data = connection.recv(_READ)
        connection.sendall(name.encode() + b"\n" + data)
        echo(connection)

    return handle


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side's end of file."""
    parts = []
    while data := connection.recv(_READ):
        parts.append(data)
    return b"".join(parts)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; fewer only at end of file."""
    data = bytearray()
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return bytes(data)


class UdpTarget:
    """Answers each datagram with ``name``, a colon and the datagram, and remembers who sent what."""

    def __init__(self, name: str = "", host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind((host, port))
        self._prefix = f"{name}:".encode() if name else b""
        self._ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._arrived = threading.Condition()
        self.port: int = self._socket.getsockname()[1]
        self.text = endpoint(host, self.port)
        self.received: list[tuple[tuple[str, int], bytes]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname()[:2])
        self._thread.join(PATIENCE)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                data, source = self._socket.recvfrom(_READ)
            except ConnectionError:  # an ICMP error about an earlier answer
                continue
            if self._ending:
                return
            with self._arrived:
                self.received.append((source[:2], data))
                self._arrived.notify_all()
            with contextlib.suppress(ConnectionError):
                self._socket.sendto(self._prefix + data, source)

    @property
    def sources(self) -> set[tuple[str, int]]:
        """The addresses that datagrams came from: one for each flow of the proxy."""
        return {source for source, _ in self.received}

    def wait_for(self, count: int, timeout: float = PATIENCE) -> list[bytes]:
        """Wait for so many datagrams in all, and return them."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, timeout), self.received
            return [data for _, data in self.received]


class HttpTarget:
    """An HTTP/1.1 server that answers with its name, and takes and gives bodies of any size."""

    def __init__(self, name: str) -> None:
        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.path.rpartition("/")[2] or 0) if self.path.startswith("/bytes/") else 0
                self._send(b"x" * size if size else f"{name} {self.path}".encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(hashlib.sha256(body).hexdigest().encode())

            def _send(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024

            def handle_error(self, *_: object) -> None:
                """A client that went away is no event here."""

        self._server = Server(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.port: int = self._server.server_address[1]
        self.text = endpoint("127.0.0.1", self.port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)
