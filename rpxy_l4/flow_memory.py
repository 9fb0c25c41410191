"""Which target each UDP flow had, for longer than the flow and the process that served it live.

In the middle of a session no probe can tell what a datagram is. A table in memory that outlives a worker can.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Final, NamedTuple

ENTRY_BYTES: Final = 24
"""A region of ``n * ENTRY_BYTES`` holds n flows, in buckets of eight. With twice as many entries as flows,
about one flow in a hundred is pushed out of its bucket by others; with as many entries as flows, one in seven."""

_WAYS: Final = 8
BUCKET_BYTES: Final = _WAYS * ENTRY_BYTES
"""The smallest region; of a larger one, what is left over behind the last whole bucket is not used."""

# Tag, seconds, series, hash of the address; then the check over these.
_CONTENT: Final = struct.Struct("<8sIII")
_VALUES: Final = struct.Struct("<8xIIII")
_TAGS: Final = struct.Struct("<" + "8s16x" * _WAYS)
_TIMES: Final = struct.Struct("<" + "8xI12x" * _WAYS)
_TAG_BYTES: Final = 8


class Recollection(NamedTuple):
    """What is known of a flow that was served before."""

    series: int
    """The target's block in the metrics, which stands for listener, route and target as well."""
    address_hash: int

    def is_at(self, address: str) -> bool:
        """Whether this IP literal, written as it was then, is the address that the flow used."""
        return _hash_of(address) == self.address_hash


class FlowMemory:
    """A table of fixed size over memory of the caller's, which begins as zeros; any number of these may read it.

    There may be one writer at a time. One that is killed half way through an entry leaves one that its check refuses
    (a mixture of old and new passes once in 2**32 such deaths). So damage forgets a flow, and never makes one up.
    """

    __slots__ = ("_buckets", "_keyed", "_max_age", "_memory")

    def __init__(self, memory: memoryview, secret: bytes, max_age: float) -> None:
        """Read and write ``memory``, which has to stay, with what stands in it.

        ``secret``, of 1 to 64 bytes, keeps clients from choosing addresses that share a bucket; what was written with
        another one is not found. What is older than ``max_age`` seconds is not recalled; infinity is allowed. Raises
        ValueError when the memory is smaller than a bucket, or the secret too long.
        """
        self._memory = memory.cast("B")
        self._buckets = len(self._memory) // BUCKET_BYTES
        if not self._buckets:
            raise ValueError("a flow memory needs room for one bucket")
        self._max_age = max_age
        # Copied for each key: two thirds of the time of a new one.
        self._keyed = hashlib.blake2b(key=secret, digest_size=_TAG_BYTES)

    def remember(self, key: bytes, series: int, address: str, now: float) -> None:
        """Keep, or replace, what a flow uses; in a full bucket the flow remembered longest ago is forgotten for it.

        ``key`` has to tell apart all flows of all listeners that share the memory: the addresses and ports of client
        and listener. ``series`` has 32 bits. ``now`` is CLOCK_MONOTONIC in seconds, in every process.
        """
        memory = self._memory
        tag, bucket = self._place(key)
        tags = _TAGS.unpack_from(memory, bucket)
        if tag in tags:
            way = tags.index(tag)
        else:
            times = _TIMES.unpack_from(memory, bucket)
            # Empty entries are the oldest of all. A time to come is damage, which would else stay for good.
            newest = max(times)
            way = times.index(newest if newest > now else min(times))
        at = bucket + way * ENTRY_BYTES
        content = _CONTENT.pack(tag, int(now), series, _hash_of(address))
        memory[at : at + ENTRY_BYTES] = content + zlib.crc32(content).to_bytes(4, "little")

    def recall(self, key: bytes, now: float) -> Recollection | None:
        """Return what was last remembered for a key; None when that is nothing, too old, pushed out or damaged.

        Ages are rounded up to whole seconds. A flow remembered a moment after ``now``, by a process whose clock was
        read later, is known.
        """
        memory = self._memory
        tag, bucket = self._place(key)
        tags = _TAGS.unpack_from(memory, bucket)
        if tag not in tags:
            return None
        at = bucket + tags.index(tag) * ENTRY_BYTES
        seconds, series, address_hash, check = _VALUES.unpack_from(memory, at)
        if zlib.crc32(memory[at : at + _CONTENT.size]) != check or now - seconds > self._max_age:
            return None
        return Recollection(series, address_hash)

    def _place(self, key: bytes) -> tuple[bytes, int]:
        """Return what an entry is known by, and where its bucket begins."""
        keyed = self._keyed.copy()
        keyed.update(key)
        tag = keyed.digest()
        return tag, int.from_bytes(tag, "little") % self._buckets * BUCKET_BYTES


class FlowMemories:
    """The flow memory of each slot, side by side in one region."""

    def __init__(self, memory: memoryview, slots: int, secret: bytes, max_age: float) -> None:
        """Divide ``memory``; the rest is as for :class:`FlowMemory`."""
        self._memory = memory
        self._size = len(memory) // slots
        self._secret = secret
        self._max_age = max_age

    def of_slot(self, slot: int) -> FlowMemory:
        """Return that of a slot."""
        start = slot * self._size
        return FlowMemory(self._memory[start : start + self._size], self._secret, self._max_age)


def _hash_of(address: str) -> int:
    # Tells IPv4 addresses of one network apart for sure: they differ in few neighbouring bytes.
    return zlib.crc32(address.encode())
