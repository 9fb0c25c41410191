from __future__ import annotations

import http.client
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from rpxy_l4.admin.http import MAX_REQUESTS, AdminServer
from tests.support.waiting import PATIENCE, eventually

# Long enough for a request on a busy machine, where the test is not about being too slow.
PATIENT = 2.0
IMPATIENT = 0.1


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']}".encode()]


def listen(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


@contextmanager
def serving(
    app: WSGIApplication = echo, *, host: str = "127.0.0.1", timeout: float = PATIENT
) -> Iterator[tuple[AdminServer, int]]:
    server = AdminServer(listen(host), app, request_timeout=timeout)
    server.start()
    try:
        yield server, server.server_port
    finally:
        server.stop()


def get(port: int, path: str = "/", *, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(client: socket.socket) -> bytes:
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, logger="rpxy_l4")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_requests_reach_the_application_over_both_families(host: str) -> None:
    with serving(host=host) as (_, port):
        assert get(port, "/metrics?a=b", host=host) == (200, b"GET /metrics a=b")


def test_nothing_is_asked_of_the_application_by_what_is_no_http() -> None:
    with serving() as (_, port), connect(port) as client:
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")

        assert b"400" in read_all(client)


def test_an_endless_request_line_is_refused() -> None:
    with serving() as (_, port), connect(port) as client:
        client.sendall(b"GET /" + b"a" * 8192)

        assert b" 414 " in read_all(client).splitlines()[0]


def test_a_client_that_sends_nothing_is_cut_off() -> None:
    with serving(timeout=IMPATIENT) as (_, port), connect(port) as client:
        assert read_all(client) == b""


def test_a_client_that_drips_its_request_is_cut_off_all_the_same() -> None:
    pause = threading.Event()
    with serving(timeout=IMPATIENT) as (server, port), connect(port) as client:
        eventually(lambda: server._deadlines)
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                client.sendall(b"G")
                pause.wait(IMPATIENT / 10)
            pytest.fail("the request line may take for ever")


def test_a_client_that_does_not_read_its_answer_is_cut_off(complaints: Callable[[], list[str]]) -> None:
    def much(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"x" * 50_000_000]

    with serving(much, timeout=IMPATIENT) as (server, port), connect(port) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        eventually(lambda: server._deadlines)
        eventually(lambda: not server._deadlines)

    assert complaints() == []


def test_clients_that_reset_the_connection_leave_no_trace(
    complaints: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with serving() as (server, port):
        for sent in (b"", b"GET", b"GET / HTTP/1.0\r\n\r\n"):
            client = connect(port)
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert get(port)[0] == 200
        eventually(lambda: not server._deadlines)

    assert complaints() == []
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_the_application_is_logged_and_hidden_from_the_client(complaints: Callable[[], list[str]]) -> None:
    def broken(_: WSGIEnvironment, __: StartResponse) -> Iterable[bytes]:
        raise ValueError("secret")

    with serving(broken) as (_, port):
        status, body = get(port)

    assert (status, b"secret" in body) == (500, False)
    assert complaints() == ["a page of the admin address failed"]


def test_more_requests_than_threads_are_closed_and_the_others_are_answered() -> None:
    release = threading.Event()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        release.wait(PATIENCE)
        return echo(environ, start_response)

    with serving(slow) as (server, port):
        clients = [connect(port) for _ in range(MAX_REQUESTS)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        eventually(lambda: len(server._deadlines) == MAX_REQUESTS)
        with connect(port) as one_too_many:
            assert read_all(one_too_many) == b""
        release.set()
        for client in clients:
            with client:
                assert read_all(client).startswith(b"HTTP/1.0 200 ")
        eventually(lambda: not server._deadlines)
        assert get(port)[0] == 200


def test_stopping_closes_the_socket_and_lets_a_request_in_progress_end() -> None:
    release, begun = threading.Event(), threading.Event()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun.set()
        release.wait(PATIENCE)
        return echo(environ, start_response)

    stack: AbstractContextManager[tuple[AdminServer, int]] = serving(slow)
    with stack as (_, port):
        client = connect(port)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert begun.wait(PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    release.set()
    with client:
        assert read_all(client).endswith(b"GET / ")


def test_another_process_may_hold_the_listening_socket_meanwhile() -> None:
    ours = listen()
    server = AdminServer(ours.dup(), echo, request_timeout=PATIENT)
    server.start()
    port = server.server_port
    server.stop()
    # What connects now waits in the socket, for the server that comes next.
    with ours, connect(port) as client:
        client.sendall(b"GET /again HTTP/1.0\r\n\r\n")
        successor = AdminServer(ours.dup(), echo, request_timeout=PATIENT)
        successor.start()
        assert read_all(client).endswith(b"GET /again ")
        successor.stop()
