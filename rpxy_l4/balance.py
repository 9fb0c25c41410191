"""Which target a session goes to, and which one next if that fails.

``source_ip`` and ``source_socket`` put each client into one of 4096 buckets, and choose for a bucket by rendezvous
hashing (highest random weight): each candidate gets a weight from the bucket and its own text, and the heaviest is
chosen. Nothing else goes in, so every worker, restart and machine chooses alike, and when a candidate leaves, only its
own clients move. The kernel path finds the bucket itself, and has the choices in a table.

The bucket: begin with 0; for each number that the client has, exclusive-or it in, multiply by 0x9e3779b97f4a7c15 modulo
2^64, and exclusive-or the upper half into the lower one; multiply once more; take the highest 12 bits. The numbers are
an IPv4 address, or both halves of an IPv6 address, and for ``source_socket`` the port; an IPv4-mapped IPv6 address
counts as IPv4.

The weight: BLAKE2b with an 8-byte digest, read as a big-endian number, keyed with ``rpxy-l4 rendezvous``, over the
bucket in 2 bytes, the number of earlier candidates with the same text in 4 bytes, the text. Numbers are big-endian.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Final, TypeVar, assert_never

from rpxy_l4.snapshot import LoadBalance, Target

BUCKETS: Final = 4096
_FACTOR: Final = 0x9E3779B97F4A7C15
_SHIFT: Final = 64 - 12
_HALF: Final = (1 << 64) - 1

_KEY: Final = b"rpxy-l4 rendezvous"
_DIGEST: Final = 8

_T = TypeVar("_T")


def rank(
    policy: LoadBalance,
    targets: Sequence[Target],
    client_ip: str,
    client_port: int,
    random: Random,
) -> Sequence[Target]:
    """Return all targets, the preferred one first, then the others in the order in which to try them.

    ``none``: as given. ``random``: shuffled by the generator given. ``source_ip``, ``source_socket``: by weight; a
    target that stands there n times has n chances, and comes back n times.
    """
    if len(targets) == 1:
        return targets
    return _rank(policy, targets, (target.text for target in targets), client_ip, client_port, random)


def rank_addresses(
    policy: LoadBalance,
    target: Target,
    addresses: Sequence[str],
    client_ip: str,
    client_port: int,
    random: Random,
) -> Sequence[str]:
    """Return all addresses of a target given by name, in the order in which to try them.

    As ``rank``. Under ``source_ip`` and ``source_socket`` the order that the name service gave does not matter; the
    text of the weight is the target's host, a space and the address, so the ports of one host share the choice.
    """
    if len(addresses) == 1:
        return addresses
    return _rank(
        policy, addresses, (f"{target.host} {address}" for address in addresses), client_ip, client_port, random
    )


def _rank(
    policy: LoadBalance, items: Sequence[_T], texts: Iterable[str], client_ip: str, client_port: int, random: Random
) -> Sequence[_T]:
    match policy:
        case LoadBalance.NONE:
            return items
        case LoadBalance.RANDOM:
            return random.sample(items, len(items))
        case LoadBalance.SOURCE_IP:
            bucket = bucket_of(client_ip)
        case LoadBalance.SOURCE_SOCKET:
            bucket = bucket_of(client_ip, client_port)
        case never:
            assert_never(never)
    weights = _weights(bucket, _labels(texts))
    return [items[index] for index in sorted(range(len(items)), key=weights.__getitem__, reverse=True)]


def bucket_of(client_ip: str, client_port: int | None = None) -> int:
    """Return the bucket of a client, by its address or, with a port, by both."""
    address = IPv6Address(client_ip) if ":" in client_ip else IPv4Address(client_ip)
    if isinstance(address, IPv6Address):  # whose zone (``%eth0``) does not count
        address = address.ipv4_mapped or address
    number = int(address)
    found = 0
    for part in (
        *((number >> 64, number & _HALF) if isinstance(address, IPv6Address) else (number,)),
        *(() if client_port is None else (client_port,)),
    ):
        found = (found ^ part) * _FACTOR & _HALF
        found ^= found >> 32
    return (found * _FACTOR & _HALF) >> _SHIFT


def table(targets: Sequence[Target]) -> list[int]:
    """Return for each bucket which of the targets :func:`rank` puts first, by its place among them."""
    labels = _labels(target.text for target in targets)
    found = []
    for bucket in range(BUCKETS):
        weights = _weights(bucket, labels)
        found.append(weights.index(max(weights)))
    return found


def _labels(texts: Iterable[str]) -> list[bytes]:
    """Return what tells candidates apart."""
    earlier: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
    return [next(earlier[text]).to_bytes(4, "big") + text.encode() for text in texts]


def _weights(bucket: int, labels: Sequence[bytes]) -> list[bytes]:
    start = bucket.to_bytes(2, "big")
    return [_weight(start + label) for label in labels]


def _weight(data: bytes) -> bytes:
    # Equal lengths: bytes compare as the big-endian numbers they stand for.
    return hashlib.blake2b(data, digest_size=_DIGEST, key=_KEY).digest()
