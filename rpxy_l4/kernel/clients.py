"""Clients whose TCP connections the kernel path may begin: the workers' part.

A client that user space has accepted a connection from has passed what filters packets on this host, and its addresses
are those that packets have; what it opens in the next minute needs to be seen by nobody.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from typing import Final

from rpxy_l4.kernel.bpf import Map
from rpxy_l4.kernel.layout import (
    MAPS,
    SETTINGS_WORDS,
    Address,
    Choosing,
    Setting,
    address,
    client_key,
    client_value,
    live_in,
)
from rpxy_l4.kernel.routes import Passage

_NANOSECONDS: Final = 1_000_000_000
KNOWN_SECONDS: Final = 60
_ANEW_SECONDS: Final = 1.0
"""A client that is accepted again and again need not be put in each time."""
_MOST_RECENT: Final = 4096


class Clients:
    """What a worker tells of clients. Owns the descriptor of a map, and a mapping."""

    def __init__(self, clients: int, settings: int, find: Callable[[bytes, bytes], Passage | None]) -> None:
        """Take ownership of the descriptors. ``find`` says how packets go to a destination from an address of ours."""
        self._clients = Map(clients, MAPS["clients"])
        try:
            self._settings = memoryview(mmap.mmap(settings, 8 * SETTINGS_WORDS)).cast("Q")
        except OSError:  # no memory: everything comes to user space
            self._settings = memoryview(bytearray(8 * SETTINGS_WORDS)).cast("Q")
        os.close(settings)  # the mapping stays
        self._find = find
        self._recent: dict[tuple[bytes, Address, int], float] = {}
        """When it was put in: by client, address of ours, and epoch."""

    @property
    def are_wanted(self) -> bool:
        """Whether the kernel path takes new connections."""
        return self._settings[Setting.CHOOSING] != Choosing.NONE

    @property
    def live(self) -> int:
        """How many TCP connections are in the kernel path at this moment; those of paths of before, a second ago."""
        elsewhere: int = self._settings[Setting.ELSEWHERE]
        return live_in(self._settings) + elsewhere

    def admit(self, client: tuple[str, int], local: tuple[str, int], epoch: int, now: float) -> None:
        """Let what this client opens to this address of ours go on in the kernel for a while.

        ``epoch`` is the generation of the configuration that let it in: what is learned under an old one does not
        count. ``now`` is monotonic.
        """
        who, where = address(*client), address(*local)
        if now - self._recent.get((who.packed, where, epoch), -_ANEW_SECONDS) < _ANEW_SECONDS:
            return
        if who.is_link_local:
            return
        passage = self._find(who.packed, where.packed)
        if passage is None:
            return
        if len(self._recent) >= _MOST_RECENT:
            self._recent.clear()
        self._recent[who.packed, where, epoch] = now
        until = time.monotonic_ns() + KNOWN_SECONDS * _NANOSECONDS
        with contextlib.suppress(OSError):  # no memory: its connections come to user space
            self._clients.replace(client_key(who, where), client_value(epoch, until, **passage._asdict()))

    def close(self) -> None:
        """Close everything; what was told stays."""
        self._settings.release()
        self._clients.close()
