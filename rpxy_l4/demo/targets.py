"""The demo's targets: one small server for each protocol, all in one process of their own.

``python -m rpxy_l4.demo.targets DIRECTORY`` puts a certificate into the directory, listens on free ports of loopback,
prints one line of JSON that describes what it serves (:class:`Served`), and serves until its standard input ends: so
it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import secrets
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rpxy_l4.demo import scene, wireguard

try:
    from rpxy_l4.demo import quic
except ImportError:  # without the extra "demo"
    quic = None  # type: ignore[assignment]  # mypy has no word for an optional module

CERTIFICATE_FILE: Final = "certificate.pem"
"""Self-signed, for ``scene.SITE``; clients may trust it."""
KEY_FILE: Final = "key.pem"

SSH_IDENTIFICATION: Final = b"SSH-2.0-rpxy_l4_demo"
_SSH_GOODBYE: Final = "This is the SSH target of the rpxy-l4 demo. There is no shell here."

# RFC 1928
_SOCKS_VERSION: Final = 5
_SOCKS_NO_AUTHENTICATION: Final = 0
_SOCKS_CONNECT: Final = 1

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Served:
    """What the process serves."""

    ports: dict[str, int]
    """Target name, a constant of ``scene``, to its port on loopback. ``scene.QUIC`` is missing without aioquic."""
    wireguard_public_key: str
    """Hexadecimal."""


def page(says: str) -> bytes:
    """Return the body that the HTTP targets answer with."""
    return f"Hello from {says}.\n".encode()


async def serve_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, says: str) -> None:
    """Answer each HTTP/1.1 request with :func:`page`, until the client ends."""
    while True:
        request = await reader.readuntil(b"\r\n\r\n")
        body = page(says)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (b"" if request.startswith(b"HEAD ") else body))
        await writer.drain()


async def serve_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until the client ends."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def serve_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Exchange identifications (RFC 4253, 4.2), then say goodbye in a way that ``ssh`` shows to its user."""
    await reader.readuntil(b"\n")
    writer.write(SSH_IDENTIFICATION + b"\r\n")
    # SSH_MSG_DISCONNECT (11.1), SSH_DISCONNECT_BY_APPLICATION, in an unencrypted packet (6): before a key exchange
    # the block size is 8, and at least four bytes of padding are due.
    text = _SSH_GOODBYE.encode()
    payload = struct.pack(">BII", 1, 11, len(text)) + text + struct.pack(">I", 0)
    padding = 4 + -(5 + len(payload) + 4) % 8
    packet = struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)
    # The client's first packet means that it has read our identification and would understand.
    await reader.readexactly(1)
    writer.write(packet)
    await writer.drain()
    await reader.read()


async def serve_socks5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Grant any CONNECT, and be the web server that the client asked for: nothing is ever connected to."""
    version, count = await reader.readexactly(2)
    methods = await reader.readexactly(count)
    if version != _SOCKS_VERSION or _SOCKS_NO_AUTHENTICATION not in methods:
        writer.write(bytes([_SOCKS_VERSION, 0xFF]))
        return
    writer.write(bytes([_SOCKS_VERSION, _SOCKS_NO_AUTHENTICATION]))
    _, command, _, kind = await reader.readexactly(4)
    match kind:  # address types, section 4
        case 1:
            length = 4
        case 3:
            (length,) = await reader.readexactly(1)
        case 4:
            length = 16
        case _:
            return
    await reader.readexactly(length + 2)  # address and port: whatever they are, the page is here
    granted = command == _SOCKS_CONNECT
    writer.write(bytes([_SOCKS_VERSION, 0 if granted else 7, 0, 1]) + bytes(6))
    if granted:
        await serve_page(reader, writer, "the SOCKS5 target")


class UdpAnswer(asyncio.DatagramProtocol):
    """Answers single datagrams by a function; an empty answer is not sent."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        """Answer each datagram with what ``answer`` makes of it."""
        self._answer = answer
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer."""
        answer = self._answer(data)
        if self._transport is not None and answer:
            self._transport.sendto(answer, addr)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a fresh self-signed certificate and its key; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rpxy-l4 demo")])
    now = dt.datetime.now(dt.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(scene.SITE)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / CERTIFICATE_FILE, directory / KEY_FILE
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


async def serve_all(directory: Path) -> Served:
    """Start every target in the running loop and return what they are."""
    certificate, key = make_certificate(directory)
    ports = {
        scene.WEB: await _listen(lambda r, w: serve_page(r, w, "the HTTP target")),
        scene.TLS_NAME: await _listen(
            lambda r, w: serve_page(r, w, "the TLS target"),
            _tls(certificate, key, "http/1.1"),
        ),
        scene.TLS_ALPN: await _listen(serve_echo, _tls(certificate, key, scene.ECHO_ALPN)),
        scene.SSH: await _listen(serve_ssh),
        scene.SOCKS5: await _listen(serve_socks5),
        scene.TCP_ECHO: await _listen(serve_echo),
        scene.UDP_ECHO: await _listen_udp(lambda data: data),
    }
    tunnel = X25519PrivateKey.generate()
    ports[scene.WIREGUARD] = await _listen_udp(lambda data: _answer_initiation(tunnel, data))
    if quic is not None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((scene.HOST, 0))
        ports[scene.QUIC] = sock.getsockname()[1]
        await quic.serve(sock, certificate, key, page("the QUIC target"))
    return Served(ports=ports, wireguard_public_key=tunnel.public_key().public_bytes_raw().hex())


async def _listen(serve: Serve, tls: ssl.SSLContext | None = None) -> int:
    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client may end at any point: that is no news here. Nor is our own end, which cancels what is open.
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError
        ):
            await serve(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(session, scene.HOST, 0, ssl=tls)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _listen_udp(answer: Callable[[bytes], bytes]) -> int:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: UdpAnswer(answer), local_addr=(scene.HOST, 0))
    port: int = transport.get_extra_info("sockname")[1]
    return port


def _tls(certificate: Path, key: Path, alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols([alpn])
    return context


def _answer_initiation(private: X25519PrivateKey, data: bytes) -> bytes:
    try:
        return wireguard.respond(private, data, secrets.randbits(32))
    except wireguard.HandshakeError:
        return b""  # WireGuard is silent to strangers


async def _main(directory: Path) -> None:
    served = await serve_all(directory)
    print(json.dumps(asdict(served)), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
