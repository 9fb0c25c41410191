"""Sockets to listen on: one per bind and slot, told apart from those of a second instance."""

from __future__ import annotations

import os
import socket

from rpxy_l4.net.ancillary import IP_PKTINFO
from rpxy_l4.net.datagram import coalesce
from rpxy_l4.net.stream import KEEPALIVE_SECONDS
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport

ListeningSocket = socket.socket


class BindError(Exception):
    """An address cannot be listened on. The text names it and says why."""

    def __init__(self, bind: Bind, error: OSError) -> None:
        """Say what the system said, in its words."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{bind}: {reason[:1].lower()}{reason[1:]}")
        self.bind = bind


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
        if bind.transport is Transport.TCP:
            _prepare_tcp(opened)
        else:
            _prepare_udp(opened, bind)
        opened.bind((bind.host, bind.port))
        if bind.transport is Transport.TCP:
            opened.listen(backlog)
    except OSError:
        opened.close()
        raise
    return opened


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
