"""Which target a session goes to, and which one next if that fails.

``source_ip`` and ``source_socket`` are rendezvous hashing (highest random weight): each candidate gets a weight from
the client and its own text, and the heaviest is chosen. Nothing else goes in, so every worker, restart and machine
chooses alike, and when a candidate leaves, only its own clients move.

The weight is BLAKE2b with an 8-byte digest, read as a big-endian number, keyed with ``rpxy-l4 rendezvous``, over:
the client's address in 4 or 16 bytes, for ``source_socket`` its port in 2 bytes, the number of earlier candidates with
the same text in 4 bytes, the text. Numbers are big-endian; an IPv4-mapped IPv6 address counts as IPv4.
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
            client = _packed(client_ip)
        case LoadBalance.SOURCE_SOCKET:
            client = _packed(client_ip) + client_port.to_bytes(2, "big")
        case never:
            assert_never(never)
    earlier: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
    weights = [_weight(client + next(earlier[text]).to_bytes(4, "big") + text.encode()) for text in texts]
    return [items[index] for index in sorted(range(len(items)), key=weights.__getitem__, reverse=True)]


def _weight(data: bytes) -> bytes:
    # Equal lengths: bytes compare as the big-endian numbers they stand for.
    return hashlib.blake2b(data, digest_size=_DIGEST, key=_KEY).digest()


def _packed(ip: str) -> bytes:
    """Return the bytes of an address; a zone (``%eth0``) does not count."""
    if ":" not in ip:
        return IPv4Address(ip).packed
    address = IPv6Address(ip)
    return (address.ipv4_mapped or address).packed
