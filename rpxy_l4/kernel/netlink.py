"""What the kernel tells of interfaces and routes, and programs at interfaces of kernels before 6.6 (rtnetlink(7)).

Four questions and their answers. A library for all of rtnetlink takes a third of a second to load and more memory than
a worker.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_LINK: Final = struct.Struct("=BxHiII")
_TRAFFIC: Final = struct.Struct("=BxxxiIII")
_UINT: Final = struct.Struct("=I")
_INT: Final = struct.Struct("=i")

_PATIENCE: Final = 1.0
_NETLINK_ROUTE: Final = 0
_NETLINK_XFRM: Final = 6
_GET_POLICY_COUNTS: Final = 0x25
"""XFRM_MSG_GETSPDINFO."""
_POLICY_COUNTS: Final = 1
"""XFRMA_SPD_INFO: numbers of policies, of several kinds."""
_ERROR: Final = 2
_DONE: Final = 3
_NEW_LINK: Final = 16
_GET_LINK: Final = 18
_GET_ROUTE: Final = 26
_NEW_ROUTE: Final = 24
_NEW_QDISC: Final = 36
_NEW_FILTER: Final = 44
_DEL_FILTER: Final = 45
_GET_FILTER: Final = 46

_REQUEST: Final = 0x1
_ACKNOWLEDGE: Final = 0x4
_DUMP: Final = 0x300
_EXCLUSIVE: Final = 0x200
_CREATE: Final = 0x400

_GROUP_LINK: Final = 0x1
_GROUP_ADDRESS_V4: Final = 0x10
_GROUP_ROUTE_V4: Final = 0x40
_GROUP_ADDRESS_V6: Final = 0x100
_GROUP_ROUTE_V6: Final = 0x400

_RTA_DESTINATION: Final = 1
_RTA_SOURCE: Final = 2
_RTA_INTERFACE: Final = 4
_RTA_METRICS: Final = 8
_RTA_PREFERRED_SOURCE: Final = 7
_METRIC_MTU: Final = 2
_UNICAST: Final = 1
_LOCAL: Final = 2

_LINK_NAME: Final = 3
_LINK_MTU: Final = 4

# linux/pkt_sched.h, linux/pkt_cls.h
_CLSACT: Final = 0xFFFF_FFF1
_CLSACT_HANDLE: Final = 0xFFFF_0000
_INGRESS: Final = 0xFFFF_FFF2
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_BPF_FD: Final = 6
_BPF_NAME: Final = 7
_BPF_FLAGS: Final = 8
_DIRECT: Final = 1
_ALL_PROTOCOLS: Final = 0x0003
_NESTED_MASK: Final = 0x3FFF

_LARGE: Final = 1 << 16


class Link(NamedTuple):
    """An interface."""

    number: int
    name: str
    kind: int
    """ARPHRD_*, of linux/if_arp.h."""
    mtu: int


class Route(NamedTuple):
    """The way to a destination."""

    interface: int
    is_local: bool
    """The destination is an address of this machine."""
    mtu: int | None
    """Where the route, or what was learnt of the path, has one of its own."""
    source: bytes | None
    """The address of this machine that the kernel prefers there."""


class Filter(NamedTuple):
    """A program at the ingress of an interface, as kernels before 6.6 have it."""

    interface: int
    priority: int
    handle: int
    name: str


class Netlink:
    """Asks the kernel. Owns a socket."""

    def __init__(self, family: int = _NETLINK_ROUTE) -> None:
        """Open the socket. Raises OSError, with EPROTONOSUPPORT when the kernel has nothing of this family."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.bind((0, 0))
        # The kernel answers while it is asked. Whatever happens, nobody waits for ever.
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def links(self) -> list[Link]:
        """Return all interfaces. Raises OSError."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return [_link(answer) for kind, answer in self.ask(_GET_LINK, _DUMP, body) if kind == _NEW_LINK]

    def mtu(self, interface: int) -> int:
        """Return the MTU of an interface. Raises OSError, with ENODEV when it is gone."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, interface, 0, 0)
        return next(_link(answer).mtu for _, answer in self.ask(_GET_LINK, 0, body))

    def route(self, destination: bytes, source: bytes | None) -> Route | None:
        """Return the way that a packet of this machine takes, None where there is none, or none to one host.

        Addresses as they are in packets; ``source`` is one of this machine's, None: the kernel chooses. Raises OSError
        when that is no answer.
        """
        family = socket.AF_INET if len(destination) == 4 else socket.AF_INET6  # noqa: PLR2004  bytes of IPv4
        bits = 8 * len(destination)
        body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
        body += _attribute(_RTA_DESTINATION, destination)
        if source is not None:
            body += _attribute(_RTA_SOURCE, source)
        try:
            answers = self.ask(_GET_ROUTE, 0, body)
        except OSError as error:
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ENODEV}:
                return None
            raise
        for kind, answer in answers:
            if kind == _NEW_ROUTE:
                return _route(answer)
        return None

    def filters(self, interface: int) -> list[Filter]:
        """Return the programs that were attached by :meth:`add_filter`, whoever did. Raises OSError."""
        body = _TRAFFIC.pack(socket.AF_UNSPEC, interface, 0, _INGRESS, 0)
        try:
            answers = self.ask(_GET_FILTER, _DUMP, body)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:  # nothing can be attached there as yet
                return []
            raise
        return [found for kind, answer in answers if kind == _NEW_FILTER and (found := _filter(answer)) is not None]

    def add_filter(self, interface: int, program: int, name: str, priority: int) -> None:
        """Attach a program to what arrives at an interface, under a name. Raises OSError."""
        qdisc = _TRAFFIC.pack(socket.AF_UNSPEC, interface, _CLSACT_HANDLE, _CLSACT, 0) + _string(_TCA_KIND, "clsact")
        with contextlib.suppress(FileExistsError):
            self.ask(_NEW_QDISC, _CREATE | _EXCLUSIVE | _ACKNOWLEDGE, qdisc)
        options = _attribute(_BPF_FD, _UINT.pack(program)) + _string(_BPF_NAME, name)
        options += _attribute(_BPF_FLAGS, _UINT.pack(_DIRECT))
        info = priority << 16 | socket.htons(_ALL_PROTOCOLS)
        body = _TRAFFIC.pack(socket.AF_UNSPEC, interface, 1, _INGRESS, info)
        body += _string(_TCA_KIND, "bpf") + _attribute(_TCA_OPTIONS, options)
        self.ask(_NEW_FILTER, _CREATE | _EXCLUSIVE | _ACKNOWLEDGE, body)

    def remove_filter(self, found: Filter) -> None:
        """Detach a program. Raises OSError; one that is gone already is none."""
        info = found.priority << 16 | socket.htons(_ALL_PROTOCOLS)
        body = _TRAFFIC.pack(socket.AF_UNSPEC, found.interface, found.handle, _INGRESS, info) + _string(
            _TCA_KIND, "bpf"
        )
        try:
            self.ask(_DEL_FILTER, _ACKNOWLEDGE, body)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENODEV, errno.EINVAL}:
                raise

    def ask(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send a request and return all that answers it, kind and body of each message."""
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            is_last = True
            for type_, flags_, sequence, answer in _messages(self._socket.recv(_LARGE)):
                if sequence != self._sequence:  # the rest of an answer that was given up
                    is_last = False
                    continue
                if type_ == _ERROR:
                    number = -_INT.unpack_from(answer)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return answers
                if type_ == _DONE:
                    return answers
                answers.append((type_, answer))
                is_last = not flags_ & 2  # NLM_F_MULTI
            if is_last:
                return answers


class Policies:
    """Asks how many policies of IPsec there are (ip-xfrm(8)). Owns a socket, where the kernel has any."""

    def __init__(self) -> None:
        """Open the socket. Raises OSError."""
        self._connection: Netlink | None = None
        try:
            self._connection = Netlink(_NETLINK_XFRM)
        except OSError as error:
            # Not in every kernel, nor for everybody whom a security module watches.
            if error.errno not in {errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES}:
                raise

    def exist(self) -> bool:
        """Return whether there are any. Raises OSError."""
        if self._connection is None:
            return False
        answers = self._connection.ask(_GET_POLICY_COUNTS, 0, _UINT.pack(0))
        counts = (_attributes(answer, _UINT.size).get(_POLICY_COUNTS, b"") for _, answer in answers)
        return any(any(count) for count in counts)

    def close(self) -> None:
        """Close the socket."""
        if self._connection is not None:
            self._connection.close()


class Watch:
    """Readable when interfaces or, where wanted, addresses and routes have changed. Owns a socket."""

    def __init__(self, *, routes: bool) -> None:
        """Begin to watch. Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_ROUTE
        )
        groups = _GROUP_LINK
        if routes:
            groups |= _GROUP_ADDRESS_V4 | _GROUP_ROUTE_V4 | _GROUP_ADDRESS_V6 | _GROUP_ROUTE_V6
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Take all news; what they are is to be asked for."""
        while True:
            try:
                self._socket.recv(_LARGE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more than there was room for: news all the same
                    raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield kind, flags, sequence number and body."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, start)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[start + _HEADER.size : start + length]
        start += _aligned(length)


def _attributes(data: bytes, start: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NESTED_MASK] = data[start + _ATTRIBUTE.size : start + length]
        start += _aligned(length)
    return found


def _attribute(kind: int, data: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(_aligned(length) - length)


def _string(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _link(answer: bytes) -> Link:
    _, kind, number, _, _ = _LINK.unpack_from(answer)
    found = _attributes(answer, _LINK.size)
    return Link(
        number, found[_LINK_NAME].rstrip(b"\0").decode(errors="replace"), kind, _UINT.unpack(found[_LINK_MTU])[0]
    )


def _route(answer: bytes) -> Route | None:
    kind = _ROUTE.unpack_from(answer)[7]
    found = _attributes(answer, _ROUTE.size)
    if kind not in {_UNICAST, _LOCAL} or _RTA_INTERFACE not in found:
        return None
    metrics = _attributes(found.get(_RTA_METRICS, b""), 0)
    mtu = _UINT.unpack(metrics[_METRIC_MTU])[0] if _METRIC_MTU in metrics else None
    interface = _UINT.unpack(found[_RTA_INTERFACE])[0]
    return Route(interface, kind == _LOCAL, mtu, found.get(_RTA_PREFERRED_SOURCE))


def _filter(answer: bytes) -> Filter | None:
    _, interface, handle, _, info = _TRAFFIC.unpack_from(answer)
    options = _attributes(_attributes(answer, _TRAFFIC.size).get(_TCA_OPTIONS, b""), 0)
    if _BPF_NAME not in options:
        return None
    return Filter(interface, info >> 16, handle, options[_BPF_NAME].rstrip(b"\0").decode(errors="replace"))
