"""Requests over TCP: on connections that are kept, on new ones, and on new ones with TLS; and the targets for them."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from typing import Final

from tests.support.exactness import Stream
from tests.support.targets import Handler, read_exactly
from tests.support.tls_files import TlsFiles
from tests.support.traffic.source import Address, Conversation, WrongAnswerError
from tests.support.waiting import PATIENCE

_SIZES: Final = (0, 1, 100, 1500, 20_000, 70_000)
_HEAD: Final = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n"


def answer_http(connection: socket.socket) -> None:
    """Target: for ``GET /NUMBER/SIZE``, so many bytes of the stream with this number, until the client ends."""
    with connection.makefile("rb") as lines:
        while request := lines.readline():
            while lines.readline().strip():
                pass
            number, size = request.split(b"/")[1:3]
            connection.sendall(_http_answer(int(number), int(size.split()[0])))


def _http_answer(number: int, size: int) -> bytes:
    return _HEAD.format(size).encode() + Stream(number).piece(0, size)


def answer_line(connection: socket.socket) -> None:
    """Target: sends the first line back, and ends."""
    with connection.makefile("rb") as lines:
        connection.sendall(lines.readline())


def answer_line_over_tls(files: TlsFiles) -> Handler:
    """Target: a TLS server that does the same."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def handle(connection: socket.socket) -> None:
        connection.settimeout(2 * PATIENCE)
        try:
            with context.wrap_socket(connection, server_side=True) as encrypted:
                answer_line(encrypted)
        except OSError:  # a client, or the proxy, went away
            return

    return handle


class _Tcp:
    """A client with at most one connection, that counts what goes over it."""

    def __init__(self, to: Address) -> None:
        self.address: Address | None = None
        self.ended: list[Conversation] = []
        """The connections that this client ended in order, the answer to its last request being complete."""
        self._to = to
        self._connection: socket.socket | None = None
        self._sent = self._received = 0

    def _connect(self) -> socket.socket:
        self.address = None
        self._sent = self._received = 0
        connection = self._connection = socket.create_connection(self._to, PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = connection.getsockname()
        return connection

    def _send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)
        self._sent += len(data)

    def _expect(self, data: bytes) -> None:
        """Read so many bytes, and compare them."""
        assert self._connection is not None
        got = read_exactly(self._connection, len(data))
        self._received += len(got)
        if got != data:
            raise WrongAnswerError(f"{len(got)} bytes, not the {len(data)} that were asked for")

    def _break(self) -> None:
        """Drop a connection that failed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Half-close and wait for the other side's end, before which nothing more may come."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with connection:
            connection.shutdown(socket.SHUT_WR)
            if rest := connection.recv(100):
                raise WrongAnswerError(f"{rest!r} instead of the end")
        assert self.address is not None
        self.ended.append(Conversation(self.address, self._sent, self._received, time.monotonic()))


class KeptHttp(_Tcp):
    """Requests one after another on a connection that is opened anew only when it broke."""

    def __init__(self, to: Address, number: int) -> None:
        super().__init__(to)
        self._turns = itertools.count(number)

    def act(self) -> None:
        turn = next(self._turns)
        size = _SIZES[turn % len(_SIZES)]
        try:
            if self._connection is None:
                self._connect()
            self._send(f"GET /{turn}/{size} HTTP/1.1\r\nHost: kept\r\n\r\n".encode())
            self._expect(_http_answer(turn, size))
        except BaseException:
            self._break()
            raise


class NewHttp(KeptHttp):
    """A connection of its own for each request."""

    def act(self) -> None:
        super().act()
        self.close()


class NewTcp(_Tcp):
    """A connection of its own for each request: a line in no protocol that a route asks for."""

    def __init__(self, to: Address, number: int) -> None:
        super().__init__(to)
        self._turns = itertools.count(number)

    def act(self) -> None:
        line = b"\0plain %d\n" % next(self._turns)
        try:
            self._connect()
            self._send(line)
            self._expect(line)
            self.close()
        except BaseException:
            self._break()
            raise


class NewTls(_Tcp):
    """A connection of its own, with a whole handshake, for each request."""

    def __init__(self, to: Address, number: int, files: TlsFiles) -> None:
        super().__init__(to)
        self._turns = itertools.count(number)
        self._context = ssl.create_default_context(cafile=str(files.certificate))
        self._name = files.name

    def act(self) -> None:
        line = b"over TLS %d\n" % next(self._turns)
        try:
            connection = self._connect()
            with self._context.wrap_socket(connection, server_hostname=self._name) as encrypted:
                encrypted.sendall(line)
                with encrypted.makefile("rb") as lines:
                    got = lines.readline()
                if got != line:
                    raise WrongAnswerError(f"{got!r} for {line!r}")
        finally:
            self._break()
