"""The handshake of WireGuard, both sides of it. Pure: bytes in, bytes out.

The protocol is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with an all-zero pre-shared key; names and order follow
section 5.4 of the WireGuard paper (https://www.wireguard.com/papers/wireguard.pdf). Cookies and transport data are
not here: the demo shows how a tunnel begins.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92

_CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_MAC1_LABEL: Final = b"mac1----"
_NO_PSK: Final = bytes(32)
_NO_MAC2: Final = bytes(16)
_NONCE_ZERO: Final = bytes(12)
# Type and three reserved bytes as one little-endian word, then the sender's index.
_INITIATION: Final = struct.Struct("<II32s48s28s16s16s")
_RESPONSE: Final = struct.Struct("<III32s16s16s16s")
_MACS_BYTES: Final = 32
# TAI64N: 2^62 marks the epoch, and TAI was ten seconds ahead of UTC then.
_TAI_EPOCH: Final = 2**62 + 10


class HandshakeError(Exception):
    """The other side's message is not what the protocol says, or not made with the right keys."""


class _Noise:
    """The chaining key and the transcript hash, as both sides compute them."""

    def __init__(self, responder: X25519PublicKey) -> None:
        self._chain = _hash(_CONSTRUCTION)
        self._transcript = _hash(_hash(self._chain + _IDENTIFIER) + responder.public_bytes_raw())

    def add_ephemeral(self, ephemeral: bytes) -> None:
        (self._chain,) = _derive(self._chain, ephemeral, 1)
        self._mix(ephemeral)

    def add_shared(self, private: X25519PrivateKey, public: X25519PublicKey) -> bytes:
        """Mix in a Diffie-Hellman result; return the key that follows from it."""
        try:
            shared = private.exchange(public)
        except ValueError as error:  # a point of small order
            raise HandshakeError("the public key is not usable") from error
        self._chain, key = _derive(self._chain, shared, 2)
        return key

    def add_psk(self, psk: bytes) -> bytes:
        self._chain, tau, key = _derive(self._chain, psk, 3)
        self._mix(tau)
        return key

    def seal(self, key: bytes, plain: bytes) -> bytes:
        sealed = ChaCha20Poly1305(key).encrypt(_NONCE_ZERO, plain, self._transcript)
        self._mix(sealed)
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        try:
            plain = ChaCha20Poly1305(key).decrypt(_NONCE_ZERO, sealed, self._transcript)
        except InvalidTag as error:
            raise HandshakeError("the message does not decrypt") from error
        self._mix(sealed)
        return plain

    def _mix(self, data: bytes) -> None:
        self._transcript = _hash(self._transcript + data)


class Initiator:
    """One handshake, from the side that begins it."""

    def __init__(self, private: X25519PrivateKey, responder: X25519PublicKey, index: int, now: float) -> None:
        """Prepare the first message. ``index`` is our 32-bit name for the session; ``now`` is Unix time."""
        self._private = private
        self._ephemeral = X25519PrivateKey.generate()
        self._index = index
        self._noise = noise = _Noise(responder)
        ephemeral = self._ephemeral.public_key().public_bytes_raw()
        noise.add_ephemeral(ephemeral)
        static = noise.seal(noise.add_shared(self._ephemeral, responder), private.public_key().public_bytes_raw())
        timestamp = struct.pack(">QI", _TAI_EPOCH + int(now), int(now % 1 * 1e9))
        sealed_time = noise.seal(noise.add_shared(private, responder), timestamp)
        unsigned = _INITIATION.pack(1, index, ephemeral, static, sealed_time, b"", b"")[:-_MACS_BYTES]
        self.initiation: Final = unsigned + _mac1(responder, unsigned) + _NO_MAC2

    def finish(self, response: bytes) -> None:
        """Accept the answer; both sides hold the same keys then. Raises HandshakeError when they do not."""
        if len(response) != RESPONSE_BYTES:
            raise HandshakeError(f"a response has {RESPONSE_BYTES} bytes, not {len(response)}")
        kind, _, receiver, ephemeral, sealed_nothing, mac1, _ = _RESPONSE.unpack(response)
        if kind != 2 or receiver != self._index:  # noqa: PLR2004  message type 2 is the response
            raise HandshakeError("not the response to this initiation")
        if not hmac.compare_digest(mac1, _mac1(self._private.public_key(), response[:-_MACS_BYTES])):
            raise HandshakeError("mac1 of the response is wrong")
        noise, theirs = self._noise, X25519PublicKey.from_public_bytes(ephemeral)
        noise.add_ephemeral(ephemeral)
        noise.add_shared(self._ephemeral, theirs)
        noise.add_shared(self._private, theirs)
        noise.open(noise.add_psk(_NO_PSK), sealed_nothing)


def respond(private: X25519PrivateKey, initiation: bytes, index: int) -> bytes:
    """Return the answer to an initiation from whomever. ``index`` is our 32-bit name for the session.

    Raises HandshakeError for anything but an initiation made for our public key.
    """
    if len(initiation) != INITIATION_BYTES:
        raise HandshakeError(f"an initiation has {INITIATION_BYTES} bytes, not {len(initiation)}")
    kind, sender, ephemeral, sealed_static, sealed_time, mac1, _ = _INITIATION.unpack(initiation)
    public = private.public_key()
    if kind != 1 or not hmac.compare_digest(mac1, _mac1(public, initiation[:-_MACS_BYTES])):
        raise HandshakeError("not an initiation for this key")
    noise, their_ephemeral = _Noise(public), X25519PublicKey.from_public_bytes(ephemeral)
    noise.add_ephemeral(ephemeral)
    static = noise.open(noise.add_shared(private, their_ephemeral), sealed_static)
    their_static = X25519PublicKey.from_public_bytes(static)
    noise.open(noise.add_shared(private, their_static), sealed_time)

    own = X25519PrivateKey.generate()
    own_public = own.public_key().public_bytes_raw()
    noise.add_ephemeral(own_public)
    noise.add_shared(own, their_ephemeral)
    noise.add_shared(own, their_static)
    nothing = noise.seal(noise.add_psk(_NO_PSK), b"")
    unsigned = _RESPONSE.pack(2, index, sender, own_public, nothing, b"", b"")[:-_MACS_BYTES]
    return unsigned + _mac1(their_static, unsigned) + _NO_MAC2


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _mac1(receiver: X25519PublicKey, message: bytes) -> bytes:
    return hashlib.blake2s(message, key=_hash(_MAC1_LABEL + receiver.public_bytes_raw()), digest_size=16).digest()


def _derive(chain: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
    """HKDF as Noise defines it: ``count`` keys of 32 bytes."""
    secret = hmac.digest(chain, material, "blake2s")
    keys: list[bytes] = []
    for number in range(1, count + 1):
        keys.append(hmac.digest(secret, (keys[-1] if keys else b"") + bytes([number]), "blake2s"))
    return tuple(keys)
