"""The keys of a client's QUIC Initial packets: RFC 9001 5, RFC 9369 3.3."""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC

from rpxy_l4.probes.quic_packets import VERSION_1, VERSION_2, LongHeader

_SECRET_LENGTH: Final = 32
_KEY_LENGTH: Final = 16
_NONCE_LENGTH: Final = 12
_SAMPLE_LENGTH: Final = 16
# The sample is taken as if the packet number had its greatest length (RFC 9001 5.4.2).
_MAX_NUMBER_LENGTH: Final = 4
# Of a long header's first byte: what header protection hides, and the packet number's length less one in it.
_PROTECTED_BITS: Final = 0x0F
_NUMBER_LENGTH_BITS: Final = 0x03


def _expansion(label: bytes, length: int) -> bytes:
    """Input of the one HMAC that HKDF-Expand-Label comes to here: HkdfLabel (RFC 8446 7.1), then the block counter."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\x00" + b"\x01"


def _digest(keyed: HMAC, message: bytes) -> bytes:
    """Return the HMAC of a message; ``keyed``, which has the key and no message, remains as it is."""
    one = keyed.copy()
    one.update(message)
    return one.finalize()


class _Parameters(NamedTuple):
    extraction: HMAC
    """Keyed with the salt."""
    key: bytes
    nonce: bytes
    header_protection: bytes


# HKDF is made of the HMACs of the library that has AES as well: for the five that a flow needs they take 6 us, where
# its HKDF classes, and hmac.digest() of the standard library, take 10 and more.
_SHA256: Final = hashes.SHA256()
_ECB: Final = modes.ECB()  # noqa: S305 -- the RFC's construction
_CLIENT_SECRET: Final = _expansion(b"client in", _SECRET_LENGTH)
_PARAMETERS: Final = {
    VERSION_1: _Parameters(
        HMAC(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), _SHA256),
        _expansion(b"quic key", _KEY_LENGTH),
        _expansion(b"quic iv", _NONCE_LENGTH),
        _expansion(b"quic hp", _KEY_LENGTH),
    ),
    VERSION_2: _Parameters(
        HMAC(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), _SHA256),
        _expansion(b"quicv2 key", _KEY_LENGTH),
        _expansion(b"quicv2 iv", _NONCE_LENGTH),
        _expansion(b"quicv2 hp", _KEY_LENGTH),
    ),
}


class InitialKeys:
    """Opens the Initial packets that a client sends to one destination id."""

    __slots__ = ("_aead", "_mask", "_nonce")

    def __init__(self, version: int, destination_id: bytes) -> None:
        """Derive the keys. ``version`` is 1 or 2; ``destination_id`` is that of the packets to open."""
        parameters = _PARAMETERS[version]
        initial = HMAC(_digest(parameters.extraction, destination_id), _SHA256)
        initial.update(_CLIENT_SECRET)
        secret = HMAC(initial.finalize(), _SHA256)
        self._aead = AESGCM(_digest(secret, parameters.key)[:_KEY_LENGTH])
        self._nonce = int.from_bytes(_digest(secret, parameters.nonce)[:_NONCE_LENGTH], "big")
        # One block, a whole one, is all that is ever encrypted at a time: this is the mask function of RFC 9001 5.4.3.
        protection = algorithms.AES128(_digest(secret, parameters.header_protection)[:_KEY_LENGTH])
        self._mask = Cipher(protection, _ECB).encryptor()

    def open(self, datagram: bytes, at: int, header: LongHeader) -> bytes | None:
        """Return the frames of the packet that begins at ``at``; None if it was not made with these keys.

        The packet number is taken as it stands: a sender that has seen no acknowledgment writes it in full
        (RFC 9000 17.1).
        """
        number_at = header.number_at
        sample_at = number_at + _MAX_NUMBER_LENGTH
        if sample_at + _SAMPLE_LENGTH > header.end:
            return None
        mask = self._mask.update(datagram[sample_at : sample_at + _SAMPLE_LENGTH])
        first = datagram[at] ^ mask[0] & _PROTECTED_BITS
        length = (first & _NUMBER_LENGTH_BITS) + 1
        payload_at = number_at + length
        number = int.from_bytes(datagram[number_at:payload_at], "big") ^ int.from_bytes(mask[1 : 1 + length], "big")
        clear = bytes([first]) + datagram[at + 1 : number_at] + number.to_bytes(length, "big")
        nonce = (self._nonce ^ number).to_bytes(_NONCE_LENGTH, "big")
        try:
            return self._aead.decrypt(nonce, datagram[payload_at : header.end], clear)
        except InvalidTag:
            return None
