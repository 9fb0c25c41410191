"""Each client of the demo talks to its target without a proxy between them, and notices every other answer."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpxy_l4.demo import clients, scene
from rpxy_l4.demo.clients import UnexpectedAnswerError
from rpxy_l4.demo.targets import make_certificate
from tests.demo.conftest import Targets


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[socket.socket]:
    """A connection whose other end reads once, says this, and closes."""
    ours, theirs = socket.socketpair()

    def play() -> None:
        with theirs:
            theirs.recv(65_536)
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(65_536):
                pass

    thread = threading.Thread(target=play)
    with ours:
        ours.settimeout(10)
        thread.start()
        try:
            yield ours
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_http_gets_the_page(targets: Targets) -> None:
    with targets.connect(scene.WEB) as sock:
        assert clients.http_get(sock) == "200 Hello from the HTTP target."


def test_tls_gets_the_page_and_verifies_the_certificate(targets: Targets, tmp_path: Path) -> None:
    somebody_elses, _ = make_certificate(tmp_path)
    with targets.connect(scene.TLS_NAME) as sock:
        assert clients.tls_get(sock, targets.certificate) == "200 Hello from the TLS target."
    with targets.connect(scene.TLS_NAME) as sock, pytest.raises(ssl.SSLCertVerificationError):
        clients.tls_get(sock, somebody_elses)


def test_tls_echo_agrees_on_the_application_protocol(targets: Targets) -> None:
    with targets.connect(scene.TLS_ALPN) as sock:
        assert clients.tls_echo(sock, targets.certificate) == "echo hello there"


def test_tls_echo_refuses_a_target_of_another_application_protocol(targets: Targets) -> None:
    with targets.connect(scene.TLS_NAME) as sock, pytest.raises(UnexpectedAnswerError, match="ALPN None"):
        clients.tls_echo(sock, targets.certificate)


def test_ssh_exchanges_identifications(targets: Targets) -> None:
    with targets.connect(scene.SSH) as sock:
        assert clients.ssh_identify(sock) == "SSH-2.0-rpxy_l4_demo"


def test_socks5_connects_and_gets_a_page(targets: Targets) -> None:
    with targets.connect(scene.SOCKS5) as sock:
        assert clients.socks5_get(sock) == "200 Hello from the SOCKS5 target."


def test_tcp_echo_comes_back_after_the_client_has_ended(targets: Targets) -> None:
    with targets.connect(scene.TCP_ECHO) as sock:
        assert clients.tcp_echo(sock) == "echo hello there"


def test_udp_echo_comes_back(targets: Targets) -> None:
    with targets.connect(scene.UDP_ECHO) as sock:
        assert clients.udp_echo(sock) == "echo hello there"


def test_quic_gets_the_page(targets: Targets) -> None:
    with targets.connect(scene.QUIC) as sock:
        assert clients.quic_get(sock, targets.certificate) == "200 Hello from the QUIC target."


def test_wireguard_finishes_the_handshake(targets: Targets) -> None:
    public_key = bytes.fromhex(targets.served.wireguard_public_key)
    with targets.connect(scene.WIREGUARD) as sock:
        assert clients.wireguard_handshake(sock, public_key) == "response, the keys agree"


def test_wireguard_refuses_an_answer_of_anybody_else(targets: Targets) -> None:
    public_key = bytes.fromhex(targets.served.wireguard_public_key)
    with targets.connect(scene.UDP_ECHO) as sock, pytest.raises(UnexpectedAnswerError, match="92 bytes, not 148"):
        clients.wireguard_handshake(sock, public_key)


@pytest.mark.parametrize(
    ("client", "answer"),
    [
        pytest.param(
            clients.http_get, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", id="http, another status"
        ),
        pytest.param(clients.http_get, b"SSH-2.0-x\r\n", id="http, no http"),
        pytest.param(clients.http_get, b"", id="http, nothing"),
        pytest.param(clients.ssh_identify, b"220 mail\r\n", id="ssh, another protocol"),
        pytest.param(clients.ssh_identify, b"", id="ssh, nothing"),
        pytest.param(clients.socks5_get, b"\x05\xff", id="socks5, no method"),
        pytest.param(clients.socks5_get, b"\x05", id="socks5, half an answer"),
        pytest.param(clients.socks5_get, b"\x05\x00\x05\x02\x00\x01" + bytes(6), id="socks5, refused"),
        pytest.param(clients.tcp_echo, b"hello", id="echo, cut"),
        pytest.param(clients.udp_echo, b"something else", id="datagram, another"),
    ],
)
def test_another_answer_is_noticed(client: Callable[[socket.socket], str], answer: bytes) -> None:
    with answering(answer) as sock, pytest.raises(UnexpectedAnswerError):
        client(sock)
