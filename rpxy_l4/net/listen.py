"""Sockets to listen on: one per bind and slot, told apart from those of a second instance."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from rpxy_l4.addresses import parse_ip
from rpxy_l4.net.ancillary import IP_PKTINFO
from rpxy_l4.net.datagram import coalesce
from rpxy_l4.net.stream import KEEPALIVE_SECONDS
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport

ListeningSocket = socket.socket

_TRANSPORTS: Final = {
    # The protocol as well: a stream may be one of SCTP or MPTCP, too.
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): Transport.TCP,
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): Transport.UDP,
}


class BindError(Exception):
    """An address cannot be listened on. The text names it and says why."""

    def __init__(self, address: Bind | str, error: OSError) -> None:
        """Say what the system said, in its words."""
        reason = error.strerror or str(error)
        super().__init__(f"{address}: {reason[:1].lower()}{reason[1:]}")


def open_group(bind: Bind, slots: int, backlog: int, *, exclusive: bool) -> list[ListeningSocket]:
    """Return one listening, non-blocking socket per slot, in the order of the slots, all sharing one address.

    With ``exclusive`` an address that anybody else listens on is refused; SO_REUSEPORT alone would share its traffic
    with them without a word. Without it, only listeners of other users are refused: for an address that overlaps one
    we hold ourselves.

    Raises BindError; nothing stays open then.
    """
    group: list[ListeningSocket] = []
    try:
        for _ in range(slots):
            # The first one is bound alone and shared afterwards: that is the check, and it leaves no gap between
            # checking and binding.
            group.append(_open(bind, backlog, alone=exclusive and not group))
            group[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        for opened in group:
            opened.close()
        raise BindError(bind, error) from error
    return group


def adopt_group(bind: Bind, descriptors: Sequence[int]) -> list[ListeningSocket]:
    """Return sockets that listen on one address already, in their order, as :func:`open_group` would have made them.

    What waits in their queues stays there. The descriptors belong to the result.

    Raises BindError when one is something else or two are the same socket; the descriptors are closed then.
    """
    group: list[ListeningSocket] = []
    try:
        _check_group(bind, descriptors)
        for descriptor in descriptors:
            group.append(socket.socket(fileno=descriptor))
            group[-1].setblocking(False)
            _prepare(group[-1], bind)
    except OSError as error:
        for adopted in group:
            adopted.detach()
        for descriptor in set(descriptors):
            with suppress(OSError):
                os.close(descriptor)
        raise BindError(bind, error) from error
    return group


def _check_group(bind: Bind, descriptors: Sequence[int]) -> None:
    if any(identify(descriptor) != bind for descriptor in descriptors):
        raise OSError("not every socket listens there")
    if len({os.fstat(descriptor).st_ino for descriptor in descriptors}) < len(descriptors):
        raise OSError("two of the sockets are the same")


def identify(descriptor: int) -> Bind | None:
    """Return what a socket that somebody else opened listens on; it stays the caller's, and as it is.

    None unless it could be one of :func:`open_group`: bound to a port, over TCP listening and over UDP not connected,
    shared by SO_REUSEPORT, and over IPv6 for IPv6 alone. None also for what is no socket or not open.
    """
    try:
        known = socket.socket(fileno=descriptor)
    except (OSError, ValueError):
        return None
    try:
        return _identify(known)
    except (OSError, ValueError):  # an option that its family does not have, or an address with a zone
        return None
    finally:
        known.detach()


def _identify(known: socket.socket) -> Bind | None:
    transport = _TRANSPORTS.get((known.type, known.proto))
    if transport is None or known.family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    host, port = known.getsockname()[:2]
    if transport is Transport.TCP:
        listens = bool(known.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    else:
        listens = port != 0 and not _is_connected(known)
    shared = bool(known.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
    one_family = known.family == socket.AF_INET or bool(known.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return Bind(transport, parse_ip(host), port) if listens and shared and one_family else None


def _is_connected(known: socket.socket) -> bool:
    try:
        known.getpeername()
    except OSError:
        return False
    return True


def _open(bind: Bind, backlog: int, *, alone: bool) -> ListeningSocket:
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    kind = socket.SOCK_STREAM if bind.transport is Transport.TCP else socket.SOCK_DGRAM
    opened = socket.socket(family, kind)
    try:
        opened.setblocking(False)
        if family == socket.AF_INET6:
            # IPv4 has sockets of its own.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not alone:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _prepare(opened, bind)
        opened.bind((bind.host, bind.port))
        if bind.transport is Transport.TCP:
            opened.listen(backlog)
    except OSError:
        opened.close()
        raise
    return opened


def _prepare(opened: socket.socket, bind: Bind) -> None:
    if bind.transport is Transport.TCP:
        _prepare_tcp(opened)
    else:
        _prepare_udp(opened, bind)


def _prepare_tcp(opened: socket.socket) -> None:
    # Connections of an instance before us may linger on the port; a second listener is still refused.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Linux hands these to every accepted connection: system calls less for each.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _prepare_udp(opened: socket.socket, bind: Bind) -> None:
    # Never SO_REUSEADDR here: for UDP it would steal another program's datagrams.
    # Only on a wildcard address does a reply need to be told which address to leave from.
    if bind.host == "0.0.0.0":  # noqa: S104  compared, not bound
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    elif bind.host == "::":
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    coalesce(opened)
