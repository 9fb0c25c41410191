"""Where packets leave, as the kernel says, kept until it says that something has changed."""

from __future__ import annotations

from typing import Final, NamedTuple

from rpxy_l4.kernel.netlink import Netlink, Watch

_MOST_KNOWN: Final = 4096
_IPV4_BYTES: Final = 4
_LEAST_MTU: Final = 1280


class Passage(NamedTuple):
    """How packets go on."""

    interface: int
    mtu: int
    """Longest packet."""
    is_local: bool
    """The destination is a socket of this machine."""


class Routes:
    """Answers of the kernel. Owns two sockets."""

    def __init__(self) -> None:
        """Begin with nothing known. Raises OSError."""
        self._netlink = Netlink()
        try:
            self._watch = Watch(routes=True)
        except OSError:
            self._netlink.close()
            raise
        self._known: dict[tuple[bytes, bytes], Passage] = {}
        self._mtus: dict[int, int] = {}

    def find(self, destination: bytes, source: bytes) -> Passage | None:
        """Return how packets from an address of ours go on to a destination; None when there is no way."""
        pair = destination, source
        if pair in self._known:
            return self._known[pair]
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        found = self._ask(destination, source)
        if found is not None:  # that there is none may be over in a moment
            self._known[pair] = found
        return found

    def source(self, destination: bytes) -> bytes | None:
        """Return which address of ours a socket would have towards a destination; None when there is no way."""
        try:
            route = self._netlink.route(destination, None)
        except OSError:  # as below
            return None
        return None if route is None else route.source

    def _ask(self, destination: bytes, source: bytes) -> Passage | None:
        try:
            route = self._netlink.route(destination, source)
            if route is None:
                return None
            mtu = self._mtus.get(route.interface)
            if mtu is None:
                mtu = self._mtus[route.interface] = self._netlink.mtu(route.interface)
        except OSError:  # changing at this moment, or no memory: the sockets know a way, or there is none
            return None
        mtu = min(mtu, route.mtu or mtu)
        # Whatever the route says, every link takes so much of IPv6 (RFC 8200 section 5), and ends send it.
        return Passage(
            route.interface, mtu if len(destination) == _IPV4_BYTES else max(mtu, _LEAST_MTU), route.is_local
        )

    def forget(self) -> None:
        """Ask anew from now on."""
        self._known.clear()
        self._mtus.clear()

    def fileno(self) -> int:
        """Return a descriptor that is readable when something has changed: :meth:`drain` it then."""
        return self._watch.fileno()

    def drain(self) -> None:
        """Take the news, and forget."""
        self._watch.drain()
        self.forget()

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._watch.close()
