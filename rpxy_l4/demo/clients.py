"""The demo's clients: each plays one exchange over a connected socket, and checks what comes back.

A client is given a socket that is connected and has a timeout, and that stays the caller's. It returns a few words on
the answer. It raises OSError (TimeoutError and ssl.SSLError are kinds of it) when the network fails it, and
UnexpectedAnswerError when the answer is not what the target would say.
"""

from __future__ import annotations

import http.client
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from rpxy_l4.demo import scene, wireguard

try:
    from rpxy_l4.demo import quic
except ImportError:  # without the extra "demo"
    quic = None  # type: ignore[assignment]  # mypy has no word for an optional module

Client = Callable[[socket.socket], str]

_HELLO: Final = b"hello there\n"
_SSH_IDENTIFICATION: Final = b"SSH-2.0-rpxy_l4_demo_client\r\n"


class UnexpectedAnswerError(Exception):
    """There was an answer, but another one than the target gives."""


def http_get(sock: socket.socket) -> str:
    """GET a page over HTTP/1.1."""
    return _get(sock, "demo.example")


def tls_get(sock: socket.socket, certificate: Path) -> str:
    """GET a page over TLS. The certificate is verified."""
    context = ssl.create_default_context(cafile=str(certificate))
    with _tls(sock, context, scene.SITE) as tls:
        return _get(tls, scene.SITE)


def tls_echo(sock: socket.socket, certificate: Path) -> str:
    """Echo a line over TLS with an application protocol that only one target speaks."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False  # no name is asked for
    context.set_alpn_protocols([scene.ECHO_ALPN])
    with _tls(sock, context, None) as tls:
        if tls.selected_alpn_protocol() != scene.ECHO_ALPN:
            raise UnexpectedAnswerError(f"ALPN {tls.selected_alpn_protocol()}")
        return _echo(tls)


def ssh_identify(sock: socket.socket) -> str:
    """Exchange identification strings, as SSH begins."""
    sock.sendall(_SSH_IDENTIFICATION)
    with sock.makefile("rb") as lines:
        answer = lines.readline(256)
    if not answer.startswith(b"SSH-2.0-"):
        raise UnexpectedAnswerError(repr(answer))
    return answer.decode("ascii", "replace").strip()


def socks5_get(sock: socket.socket) -> str:
    """Greet, CONNECT to a name, and GET a page through that."""
    sock.sendall(b"\x05\x01\x00")
    if (chosen := _exactly(sock, 2)) != b"\x05\x00":
        raise UnexpectedAnswerError(f"SOCKS5 method {chosen.hex()}")
    name = b"anything.example"
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (80).to_bytes(2))
    if (reply := _exactly(sock, 10))[:2] != b"\x05\x00":
        raise UnexpectedAnswerError(f"SOCKS5 reply {reply.hex()}")
    return _get(sock, name.decode())


def tcp_echo(sock: socket.socket) -> str:
    """Send a line that is no protocol in particular, and end: the echo must come back whole after the end."""
    sock.sendall(_HELLO)
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as stream:
        answer = stream.read()
    if answer != _HELLO:
        raise UnexpectedAnswerError(repr(answer))
    return f"echo {answer.decode().strip()}"


def udp_echo(sock: socket.socket) -> str:
    """Send one datagram that is no protocol in particular."""
    return _echo(sock)


def quic_get(sock: socket.socket, certificate: Path) -> str:
    """GET a page over HTTP/3. The certificate is verified. Not to be called without aioquic."""
    status, body = quic.get(sock, certificate)
    return _page(status, body)


def wireguard_handshake(sock: socket.socket, public_key: bytes) -> str:
    """Begin a tunnel with whoever has the private half of ``public_key``."""
    started = time.time()
    initiator = wireguard.Initiator(
        X25519PrivateKey.generate(), X25519PublicKey.from_public_bytes(public_key), secrets.randbits(32), started
    )
    sock.send(initiator.initiation)
    response = sock.recv(65_535)
    try:
        initiator.finish(response)
    except wireguard.HandshakeError as error:
        raise UnexpectedAnswerError(str(error)) from error
    return "response, the keys agree"


def _get(sock: socket.socket, host: str) -> str:
    connection = http.client.HTTPConnection(host)
    connection.sock = sock
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise UnexpectedAnswerError(repr(error)) from error
    return _page(str(response.status), body)


def _page(status: str, body: str) -> str:
    if status != "200" or not body.startswith("Hello from "):
        raise UnexpectedAnswerError(f"{status} {body!r}")
    return f"{status} {body.strip()}"


def _echo(sock: socket.socket) -> str:
    sock.sendall(_HELLO)
    answer = sock.recv(65_535)
    if answer != _HELLO:
        raise UnexpectedAnswerError(repr(answer))
    return f"echo {answer.decode().strip()}"


def _tls(sock: socket.socket, context: ssl.SSLContext, name: str | None) -> ssl.SSLSocket:
    """Return a TLS socket on a copy of ``sock``: wrapping detaches the one that is given."""
    copy = sock.dup()
    copy.settimeout(sock.gettimeout())
    try:
        return context.wrap_socket(copy, server_hostname=name)
    except BaseException:
        copy.close()
        raise


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise UnexpectedAnswerError(f"the connection ended after {data.hex() or 'nothing'}")
        data += more
    return data
