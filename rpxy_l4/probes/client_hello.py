"""The body of a TLS ClientHello, as TLS records and QUIC CRYPTO frames both carry it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

# RFC 8446 4.1.2 and its ancestors: version, random, three vectors at their least.
MIN_BODY: Final = 2 + 32 + 1 + (2 + 2) + (1 + 1)
# The same with every vector at its greatest; a longer message is no ClientHello.
MAX_BODY: Final = 2 + 32 + (1 + 32) + (2 + 65_534) + (1 + 255) + (2 + 65_535)

_OLDEST_VERSION: Final = 0x0301
_SESSION_ID_AT: Final = 2 + 32
_MAX_SESSION_ID: Final = 32
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_HOST_NAME: Final = 0
_EXTENSION: Final = struct.Struct(">HH")
# A name that resolvers accept (RFC 1123 2.1) plus the underscore, which real names contain.
_LEGAL_HOST: Final = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_MAX_HOST: Final = 253


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What routing needs to know of a ClientHello."""

    server_name: str | None
    """The SNI host name, lower case; None when absent, not a legal host name, or followed by a second one."""
    alpn: tuple[bytes, ...]
    """The ALPN protocol names offered, in the client's order, as sent."""


def parse_client_hello(body: bytes | bytearray) -> ClientHello | None:
    """Parse a whole handshake message without its 4-byte header.

    None when the vectors do not nest exactly, one is shorter than its RFC allows, or the server_name or ALPN
    extension stands there twice (RFC 8446 4.1.2 and 4.2, RFC 6066 3, RFC 7301 3.1). A hello without extensions
    is legal. Other extensions may contain anything.
    """
    end = len(body)
    if end < MIN_BODY or int.from_bytes(body[:2], "big") < _OLDEST_VERSION or body[_SESSION_ID_AT] > _MAX_SESSION_ID:
        return None
    # A length field that the body's end cut short reads as less than it was, but its vector then starts past the end.
    ciphers_at = _SESSION_ID_AT + 1 + body[_SESSION_ID_AT] + 2
    ciphers = int.from_bytes(body[ciphers_at - 2 : ciphers_at], "big")
    compressions_at = ciphers_at + ciphers + 1
    if compressions_at > end or ciphers == 0 or ciphers % 2:
        return None
    compressions = body[compressions_at - 1]
    at = compressions_at + compressions
    if at > end or compressions == 0:
        return None
    if at == end:
        return ClientHello(None, ())
    if at + 2 + int.from_bytes(body[at : at + 2], "big") != end:
        return None
    return _extensions(body, at + 2)


def _extensions(body: bytes | bytearray, at: int) -> ClientHello | None:
    """Read the extensions that fill the body from ``at`` to its end."""
    end = len(body)
    names: list[bytes] | None = None
    alpn: list[bytes] | None = None
    while at < end:
        if at + _EXTENSION.size > end:
            return None
        kind, length = _EXTENSION.unpack_from(body, at)
        start = at + _EXTENSION.size
        at = start + length
        if at > end:
            return None
        if kind == _SERVER_NAME:
            if names is not None:
                return None
            names = _host_names(body[start:at])
            if names is None:
                return None
        elif kind == _ALPN:
            if alpn is not None:
                return None
            alpn = _protocol_names(body[start:at])
            if alpn is None:
                return None
    return ClientHello(_legal_host(names or []), tuple(alpn or ()))


def _host_names(data: bytes | bytearray) -> list[bytes] | None:
    """Return the entries of type host_name of a ServerNameList; None when it is malformed."""
    end = len(data)
    if end < 2 + 1 + 2 or 2 + int.from_bytes(data[:2], "big") != end:
        return None
    names = []
    at = 2
    while at < end:
        start = at + 1 + 2
        # RFC 6066 3: entries of any type that may come begin with a 16-bit length.
        stop = start + int.from_bytes(data[at + 1 : start], "big")
        if stop > end:
            return None
        if data[at] == _HOST_NAME:
            names.append(bytes(data[start:stop]))
        at = stop
    return names


def _protocol_names(data: bytes | bytearray) -> list[bytes] | None:
    """Return the entries of a ProtocolNameList; None when it is malformed."""
    end = len(data)
    if end < 2 + 1 + 1 or 2 + int.from_bytes(data[:2], "big") != end:
        return None
    names = []
    at = 2
    while at < end:
        start = at + 1
        at = start + data[at]
        if at == start or at > end:
            return None
        names.append(bytes(data[start:at]))
    return names


def _legal_host(names: list[bytes]) -> str | None:
    """Return the only name in lower case if it is one to route by."""
    if len(names) != 1 or len(names[0]) > _MAX_HOST:
        return None
    name = names[0].lower()
    return name.decode("ascii") if _LEGAL_HOST.fullmatch(name) else None
