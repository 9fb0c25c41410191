"""Makes QUIC packets as a client would, with aioquic's cryptography, so that ours is not tested against itself."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair

from tests.support.tls_files import TlsFiles

V1: Final = 0x00000001
V2: Final = 0x6B3343CF
VERSIONS: Final = (V1, V2)

# RFC 9000 table 5 and RFC 9369 3.2: the type bits of a first byte whose packet number has one byte.
INITIAL: Final = {V1: 0xC0, V2: 0xD0}
ZERO_RTT: Final = {V1: 0xD0, V2: 0xE0}
HANDSHAKE: Final = {V1: 0xE0, V2: 0xF0}
RETRY: Final = {V1: 0xF0, V2: 0xC0}

PADDING: Final = b"\x00"
PING: Final = b"\x01"
ACK: Final = b"\x02" + b"\x05\x0a\x01\x02" + b"\x00\x00"
ACK_ECN: Final = b"\x03" + b"\x05\x0a\x00\x02" + b"\x01\x02\x40\x03"
CONNECTION_CLOSE: Final = b"\x1c" + b"\x0a\x06\x03why"

TAG_LENGTH: Final = 16
FULL_DATAGRAM: Final = 1200


@dataclass(frozen=True)
class Sender:
    """A client and the id that it sends to."""

    version: int = V1
    destination_id: bytes = bytes.fromhex("0706050403020100")
    source_id: bytes = b"client"

    def initial(
        self, frames: bytes, *, size: int = 0, number: int = 0, number_length: int = 2, token: bytes = b""
    ) -> bytes:
        """A protected Initial packet with ``frames`` and PADDING, ``size`` bytes in all if that is more."""
        start = self._start(INITIAL[self.version] | number_length - 1) + encode_uint_var(len(token)) + token
        overhead = len(start) + 2 + number_length + TAG_LENGTH
        frames = frames.ljust(size - overhead, PADDING)
        # The length in two bytes, always: the size of a packet is then known before its padding is.
        length = (number_length + len(frames) + TAG_LENGTH) | 0x4000
        header = start + length.to_bytes(2, "big") + number.to_bytes(number_length, "big")
        pair = CryptoPair()
        pair.setup_initial(self.destination_id, is_client=True, version=self.version)
        return pair.encrypt_packet(header, frames, number)

    def zero_rtt(self, size: int = 100) -> bytes:
        """A 0-RTT packet, ``size`` bytes behind its length; nobody but its target can look into it."""
        return self._opaque(ZERO_RTT[self.version], size)

    def handshake(self, size: int = 100) -> bytes:
        """A Handshake packet, likewise."""
        return self._opaque(HANDSHAKE[self.version], size)

    def _opaque(self, first: int, size: int) -> bytes:
        return self._start(first) + encode_uint_var(size) + random.Random(size).randbytes(size)

    def _start(self, first: int) -> bytes:
        ids = b"".join(bytes([len(name)]) + name for name in (self.destination_id, self.source_id))
        return bytes([first]) + self.version.to_bytes(4, "big") + ids


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def pieces(message: bytes, *cuts: int) -> list[bytes]:
    """CRYPTO frames that carry ``message``, cut at these offsets."""
    bounds = [0, *cuts, len(message)]
    return [crypto(start, message[start:end]) for start, end in itertools.pairwise(bounds)]


def client_hello(name: str, *alpn: str, key_share: int = 32, group: int = 0x001D) -> bytes:
    """A TLS 1.3 ClientHello message with its 4-byte header, and a key share of so many bytes."""
    host = name.encode()
    protocols = b"".join(_vector(protocol.encode(), 1) for protocol in alpn)
    extensions = [
        (0, _vector(b"\x00" + _vector(host, 2), 2)),
        (43, _vector(b"\x03\x04", 1)),
        (51, _vector(group.to_bytes(2, "big") + _vector(random.Random(key_share).randbytes(key_share), 2), 2)),
        (16, _vector(protocols, 2)),
    ]
    block = b"".join(kind.to_bytes(2, "big") + _vector(data, 2) for kind, data in extensions)
    body = b"\x03\x03" + bytes(range(32)) + _vector(b"", 1) + _vector(b"\x13\x01", 2) + b"\x01\x00" + _vector(block, 2)
    return b"\x01" + _vector(body, 3)


def post_quantum_hello(name: str, *alpn: str) -> bytes:
    """A hello with an X25519MLKEM768 key share, as browsers send it: too long for one datagram."""
    return client_hello(name, *alpn, key_share=1184 + 32, group=0x11EC)


def aioquic_client(name: str, *alpn: str, version: int = V1, trusted: Path | None = None) -> QuicConnection:
    """A client that has made its first flight; ``first_flight`` gives it out. It trusts a certificate in a file."""
    configuration = QuicConfiguration(
        is_client=True, server_name=name, alpn_protocols=list(alpn), original_version=version
    )
    if trusted is not None:
        configuration.load_verify_locations(str(trusted))
    connection = QuicConnection(configuration=configuration)
    connection.connect(("192.0.2.1", 443), now=0.0)
    return connection


def first_flight(connection: QuicConnection) -> list[bytes]:
    return [datagram for datagram, _ in connection.datagrams_to_send(now=0.0)]


def client_session(tls: TlsFiles, version: int) -> list[bytes]:
    """Every datagram that a client sends in a session: handshake, requests, new keys, pings, and the end."""
    client = aioquic_client(tls.name, "h3", version=version, trusted=tls.certificate)
    sent = first_flight(client)
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    configuration.load_cert_chain(tls.certificate, tls.key)
    id_at = 6
    destination_id = sent[0][id_at : id_at + sent[0][id_at - 1]]
    target = QuicConnection(configuration=configuration, original_destination_connection_id=destination_id)
    for datagram in sent:
        target.receive_datagram(datagram, ("192.0.2.9", 1234), now=0.0)

    def talk(now: float) -> None:
        for _ in range(8):
            for answer, _ in target.datagrams_to_send(now=now):
                client.receive_datagram(answer, ("192.0.2.1", 443), now=now)
            for datagram, _ in client.datagrams_to_send(now=now):
                sent.append(datagram)
                target.receive_datagram(datagram, ("192.0.2.9", 1234), now=now)

    talk(0.1)
    for turn in range(4):
        stream = client.get_next_available_stream_id()
        client.send_stream_data(stream, bytes(1 << 4 * turn), end_stream=True)
        talk(1.0 + turn)
        target.send_stream_data(stream, bytes(3000), end_stream=True)
        client.send_ping(turn)
        talk(1.5 + turn)
        client.request_key_update()
    client.close()
    talk(9.0)
    return sent


def _vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data
