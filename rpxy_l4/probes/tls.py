"""TLS over TCP: a ClientHello in records (RFC 8446 5.1), however they cut it."""

from __future__ import annotations

import struct
from typing import Final

from rpxy_l4.probes.client_hello import MAX_BODY, MIN_BODY, parse_client_hello
from rpxy_l4.verdict import NO_MATCH, Match, NeedMore, Protocol, Verdict

FIRST_BYTES: Final[bytes] = b"\x16"

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
_RECORD_HEADER: Final = 5
_MAX_RECORD: Final = 16_384
_MAJOR_VERSION: Final = 3
_MAX_MINOR_VERSION: Final = 4
_CLIENT_HELLO: Final = 1
_HANDSHAKE_HEADER: Final = 4
# Both headers: kind, version, length; then kind and length of the message, the latter in 8 and 16 bits.
_WHOLE_HEADER: Final = struct.Struct(">BBBHHH")
_HELLO_IN_RECORD: Final = (_HANDSHAKE, _MAJOR_VERSION, _CLIENT_HELLO)


class TlsProbe:
    """Recognises one client's ClientHello.

    Called with all bytes so far, then with all of them and more. The answer is that of a first call with the same
    bytes; records that were whole in an earlier call are not walked again, so a hello sent as thousands of tiny
    records costs time in proportion to its length.
    """

    __slots__ = ("_at", "_message")

    def __init__(self) -> None:
        """Begin at the first record."""
        self._at = 0
        self._message = b""

    def __call__(self, data: bytes | bytearray, eof: bool) -> Verdict:
        """Match once the whole ClientHello is there; what follows it is not looked at.

        Change-cipher-spec records between its pieces are skipped. NoMatch when records or the message are malformed.
        """
        if not self._at and (verdict := _in_one_record(data)) is not None:
            return verdict
        while True:
            header = data[self._at : self._at + _RECORD_HEADER]
            if not _is_legal_header(header, first=self._at == 0):
                return NO_MATCH
            if len(header) < _RECORD_HEADER:
                return NO_MATCH if eof else NeedMore(len(data) + 1)
            start = self._at + _RECORD_HEADER
            end = start + int.from_bytes(header[3:], "big")
            message = self._message
            if header[0] == _HANDSHAKE:
                message += data[start:end]
                length = _message_length(message)
                if length is None:
                    return NO_MATCH
                if len(message) >= length > _HANDSHAKE_HEADER:
                    return _match(message[_HANDSHAKE_HEADER:length])
                missing = length - len(message)
            else:
                missing = end - len(data)
            if end > len(data):
                # Either the message grows in this record, or the next record's header may be a wrong one.
                return NO_MATCH if eof else NeedMore(min(len(data) + missing, end + 1))
            self._at = end
            self._message = message


def _in_one_record(data: bytes | bytearray) -> Verdict | None:
    """Judge what nearly every client sends, a hello that is whole in its first record; None for anything else."""
    if len(data) < _WHOLE_HEADER.size:
        return None
    kind, major, minor, record, message, body = _WHOLE_HEADER.unpack_from(data)
    body += (message & 0xFF) << 16
    end = _RECORD_HEADER + _HANDSHAKE_HEADER + body
    if (
        (kind, major, message >> 8) != _HELLO_IN_RECORD
        or minor > _MAX_MINOR_VERSION
        or not MIN_BODY <= body <= record - _HANDSHAKE_HEADER
        or record > _MAX_RECORD
        or end > len(data)
    ):
        return None
    return _match(data[_RECORD_HEADER + _HANDSHAKE_HEADER : end])


def probe_tls(data: bytes | bytearray, eof: bool) -> Verdict:
    """Answer as a fresh ``TlsProbe`` does."""
    return TlsProbe()(data, eof)


def _is_legal_header(header: bytes | bytearray, *, first: bool) -> bool:
    """Whether a record header, or the beginning of one, may stand in front of a piece of the hello."""
    have = len(header)
    if have and header[0] != _HANDSHAKE and (first or header[0] != _CHANGE_CIPHER_SPEC):
        return False
    if header[1:2] and (header[1] != _MAJOR_VERSION or (header[2:3] and header[2] > _MAX_MINOR_VERSION)):
        return False
    if have < _RECORD_HEADER:
        return True
    length = int.from_bytes(header[3:], "big")
    # Handshake records are never empty (RFC 8446 5.1); change-cipher-spec is one byte (RFC 5246 7.1).
    return length == 1 if header[0] == _CHANGE_CIPHER_SPEC else 0 < length <= _MAX_RECORD


def _message_length(message: bytes) -> int | None:
    """Return how many bytes the message needs for the next decision; None when it is no ClientHello."""
    if not message:
        return 1
    if message[0] != _CLIENT_HELLO:
        return None
    if len(message) < _HANDSHAKE_HEADER:
        return _HANDSHAKE_HEADER
    body = int.from_bytes(message[1:_HANDSHAKE_HEADER], "big")
    return _HANDSHAKE_HEADER + body if MIN_BODY <= body <= MAX_BODY else None


def _match(body: bytes | bytearray) -> Verdict:
    hello = parse_client_hello(body)
    return NO_MATCH if hello is None else Match(Protocol.TLS, hello.server_name, hello.alpn)
