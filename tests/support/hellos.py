"""ClientHello messages: those that OpenSSL sends, and hand-made ones."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

RECORD_HEADER = 5
HANDSHAKE_HEADER = 4
# RFC 8446 4.1.2: the fields in front of the extensions, as an OpenSSL client has them.
RANDOM = bytes(range(32))


def openssl_hello(server_name: str | None = None, alpn: Sequence[str] = ()) -> bytes:
    """The first flight of this machine's OpenSSL: one record."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake cannot end without a server")


def body_of(flight: bytes) -> bytes:
    """The handshake message of a flight of one record, without its header."""
    return flight[RECORD_HEADER + HANDSHAKE_HEADER :]


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def key_share(size: int) -> bytes:
    """X25519MLKEM768 with a share of the size given; real ones have 1216 bytes."""
    return extension(51, vector(2, (0x11EC).to_bytes(2, "big") + vector(2, bytes(size))))


def body(
    *extensions: bytes,
    version: int = 0x0303,
    session_id: bytes = b"",
    ciphers: bytes = b"\x13\x01",
    compressions: bytes = b"\x00",
    has_extensions: bool = True,
) -> bytes:
    """A ClientHello message without its header."""
    fields = version.to_bytes(2, "big") + RANDOM + vector(1, session_id) + vector(2, ciphers) + vector(1, compressions)
    return fields + (vector(2, b"".join(extensions)) if has_extensions else b"")


def message(hello_body: bytes) -> bytes:
    return b"\x01" + vector(3, hello_body)


def record(payload: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + vector(2, payload)


def records(payload: bytes, *sizes: int) -> bytes:
    """The payload in records of the sizes given; the last size goes on to the end."""
    out, at, left = b"", 0, list(sizes)
    while at < len(payload):
        size = left.pop(0) if len(left) > 1 else left[0]
        out += record(payload[at : at + size])
        at += size
    return out


def flight(*extensions: bytes) -> bytes:
    """A hand-made hello in one record."""
    return record(message(body(*extensions)))
