"""The first bytes of real clients: a ClientHello of OpenSSL, and Initial packets of aioquic."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Final

from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion

INITIAL_BYTES: Final = 1200
# Enough that nothing which remembers keys by connection id could have seen one before it comes around again.
INITIALS: Final = 8192

_LONG_HEADER_INITIAL: Final = 0xC1
"""RFC 9000 17.2.2, with a packet number of two bytes."""
_ID_BYTES: Final = 8
_TAG_BYTES: Final = 16
_FIRST_FRAME: Final = b"\x06\x00"
"""RFC 9000 19.6: CRYPTO from offset 0."""


def client_hello(name: str) -> bytes:
    """Return the first flight of this machine's OpenSSL for a server name."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake cannot end without a server")


def quic_hello(name: str) -> tuple[bytes, bytes]:
    """Return the ClientHello message that aioquic sends to a server name, and the source id that stands in it."""
    connection = QuicConnection(
        configuration=QuicConfiguration(is_client=True, server_name=name, alpn_protocols=["h3"])
    )
    connection.connect(("192.0.2.1", 443), now=0.0)
    datagram = connection.datagrams_to_send(now=0.0)[0][0]
    keys = CryptoPair()
    destination = datagram[6 : 6 + datagram[5]]
    keys.setup_initial(destination, is_client=False, version=QuicProtocolVersion.VERSION_1)
    source_at = 7 + len(destination)
    source = datagram[source_at : source_at + datagram[source_at - 1]]
    # Behind the ids: the empty token, and the length of the rest.
    numbered_at = source_at + len(source) + 1 + 2
    length = int.from_bytes(datagram[numbered_at - 2 : numbered_at], "big") & 0x3FFF
    _, payload, _ = keys.decrypt_packet(datagram[: numbered_at + length], numbered_at, 0)
    start = payload.index(_FIRST_FRAME) + len(_FIRST_FRAME)
    length = int.from_bytes(payload[start : start + 2], "big") & 0x3FFF
    return bytes(payload[start + 2 : start + 2 + length]), source


def initial(hello: bytes, source: bytes, destination: bytes) -> bytes:
    """Return a protected Initial of :data:`INITIAL_BYTES` that carries the hello from one connection id to another."""
    start = bytes([_LONG_HEADER_INITIAL]) + int(QuicProtocolVersion.VERSION_1).to_bytes(4, "big")
    start += bytes([len(destination)]) + destination + bytes([len(source)]) + source + b"\x00"
    rest = INITIAL_BYTES - len(start) - 2
    frames = _FIRST_FRAME + encode_uint_var(len(hello)) + hello
    keys = CryptoPair()
    keys.setup_initial(destination, is_client=True, version=QuicProtocolVersion.VERSION_1)
    header = start + (rest | 0x4000).to_bytes(2, "big") + b"\x00\x00"
    return bytes(keys.encrypt_packet(header, frames.ljust(rest - 2 - _TAG_BYTES, b"\x00"), 0))


def initials(name: str, count: int) -> bytes:
    """Return so many Initials, one after the other, each to a connection id of its own."""
    hello, source = quic_hello(name)
    return b"".join(
        initial(hello, source, hashlib.sha256(number.to_bytes(4, "big")).digest()[:_ID_BYTES])
        for number in range(count)
    )


def write_initials(path: Path, name: str) -> None:
    """Write :data:`INITIALS` packets to a file, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(initials(name, INITIALS))
        fresh.rename(path)
