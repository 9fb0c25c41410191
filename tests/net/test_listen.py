from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from rpxy_l4.net.listen import BindError, ListeningSocket, adopt_group, identify, open_group
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport
from tests.support.descriptors import open_descriptors
from tests.support.ports import free_port

SLOTS: Final = 4
UDP_GRO: Final = 104
IP_PKTINFO: Final = 8

KINDS = [(Transport.TCP, "127.0.0.1"), (Transport.TCP, "::1"), (Transport.UDP, "127.0.0.1"), (Transport.UDP, "::1")]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def listen(stack: ExitStack, bind: Bind, slots: int = SLOTS, *, exclusive: bool = True) -> list[ListeningSocket]:
    return [stack.enter_context(held) for held in open_group(bind, slots, 64, exclusive=exclusive)]


@pytest.mark.parametrize(("transport", "host"), KINDS)
def test_all_sockets_of_a_group_share_the_traffic_and_never_block(
    stack: ExitStack, transport: Transport, host: str
) -> None:
    bind = Bind(transport, host, free_port())
    group = listen(stack, bind)
    clients = 100
    for _ in range(clients):
        client = stack.enter_context(socket.socket(group[0].family, group[0].type))
        client.connect((host, bind.port))
        if transport is Transport.UDP:
            client.send(b"x")

    got = [count_waiting(held, transport) for held in group]

    assert sum(got) == clients
    assert all(got)


def count_waiting(held: ListeningSocket, transport: Transport) -> int:
    count = 0
    while True:
        try:
            if transport is Transport.TCP:
                held.accept()[0].close()
            else:
                held.recv(1)
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize(("transport", "host"), KINDS)
def test_an_address_that_a_second_instance_shares_is_refused(stack: ExitStack, transport: Transport, host: str) -> None:
    bind = Bind(transport, host, free_port())
    listen(stack, bind)

    with pytest.raises(BindError) as caught:
        open_group(bind, SLOTS, 64, exclusive=True)
    assert str(caught.value) == f"{bind}: address already in use"


@pytest.mark.parametrize("transport", Transport)
def test_a_wildcard_over_an_address_of_somebody_else_is_refused(stack: ExitStack, transport: Transport) -> None:
    port = free_port()
    listen(stack, Bind(transport, "127.0.0.1", port))

    with pytest.raises(BindError):
        open_group(Bind(transport, "0.0.0.0", port), SLOTS, 64, exclusive=True)
    listen(stack, Bind(transport, "0.0.0.0", port), exclusive=False)


def test_connections_that_an_earlier_instance_left_behind_are_no_obstacle(stack: ExitStack) -> None:
    bind = Bind(Transport.TCP, "127.0.0.1", free_port())
    earlier = listen(stack, bind, 1)
    client = stack.enter_context(socket.create_connection((bind.host, bind.port)))
    accepted = stack.enter_context(earlier[0].accept()[0])
    earlier[0].close()

    listen(stack, bind)
    accepted.close()  # the side that closes first is left in TIME_WAIT
    client.close()


def test_ipv4_and_ipv6_wildcards_stand_side_by_side(stack: ExitStack) -> None:
    port = free_port()
    for transport in Transport:
        for host in ("0.0.0.0", "::"):
            listen(stack, Bind(transport, host, port))


def test_accepted_connections_inherit_keepalive_and_no_delay(stack: ExitStack) -> None:
    bind = Bind(Transport.TCP, "127.0.0.1", free_port())
    listening = listen(stack, bind, 1)[0]
    stack.enter_context(socket.create_connection((bind.host, bind.port)))
    accepted = stack.enter_context(listening.accept()[0])

    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(("host", "tells"), [("0.0.0.0", 1), ("127.0.0.1", 0), ("::", 1), ("::1", 0)])
def test_wildcard_udp_sockets_tell_which_address_the_client_used(stack: ExitStack, host: str, tells: int) -> None:
    held = listen(stack, Bind(Transport.UDP, host, free_port()), 1)[0]
    is_v6 = held.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) if is_v6 else (socket.IPPROTO_IP, IP_PKTINFO)

    assert held.getsockopt(level, option) == tells


def test_udp_datagrams_may_be_coalesced(stack: ExitStack) -> None:
    held = listen(stack, Bind(Transport.UDP, "127.0.0.1", free_port()), 1)[0]

    assert held.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1


def test_an_address_of_another_machine_is_refused() -> None:
    # TEST-NET-1, RFC 5737.
    with pytest.raises(BindError, match=r"^udp 192\.0\.2\.1:53: cannot assign requested address$"):
        open_group(Bind(Transport.UDP, "192.0.2.1", 53), 1, 64, exclusive=True)


def test_an_ipv6_address_is_shown_in_brackets(stack: ExitStack) -> None:
    bind = Bind(Transport.TCP, "::1", free_port())
    listen(stack, bind)

    with pytest.raises(BindError, match=rf"^tcp \[::1\]:{bind.port}: address already in use$"):
        open_group(bind, 1, 64, exclusive=True)


@pytest.mark.parametrize(("transport", "host"), [*KINDS, (Transport.TCP, "0.0.0.0"), (Transport.UDP, "::")])
def test_a_socket_of_a_group_is_identified(stack: ExitStack, transport: Transport, host: str) -> None:
    bind = Bind(transport, host, free_port())

    assert {identify(held.fileno()) for held in listen(stack, bind)} == {bind}


def shared(family: int, kind: int, protocol: int = 0) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return opened


def bound_only() -> socket.socket:
    opened = shared(socket.AF_INET, socket.SOCK_STREAM)
    opened.bind(("127.0.0.1", 0))
    return opened


def connected_datagrams() -> socket.socket:
    opened = shared(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    opened.connect(("127.0.0.1", 9))
    return opened


def of_both_families() -> socket.socket:
    opened = shared(socket.AF_INET6, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind(("::", 0))
    return opened


@pytest.mark.parametrize(
    "make",
    [
        bound_only,
        connected_datagrams,
        of_both_families,
        lambda: shared(socket.AF_INET, socket.SOCK_DGRAM),
        lambda: socket.create_server(("127.0.0.1", 0)),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    ],
    ids=["not listening", "connected", "both families", "not bound", "not shared", "unix"],
)
def test_what_no_group_would_have_is_nothing_to_listen_on(make: Callable[[], socket.socket]) -> None:
    with make() as other:
        assert identify(other.fileno()) is None
        assert other.fileno() >= 0
        os.fstat(other.fileno())


def test_what_is_no_socket_is_nothing_to_listen_on() -> None:
    with open(os.devnull) as file:  # noqa: PTH123  the descriptor is what is wanted
        assert identify(file.fileno()) is None
        os.fstat(file.fileno())
    assert identify(999_999) is None
    assert identify(-1) is None


@pytest.mark.parametrize("transport", Transport)
def test_an_adopted_group_has_what_waited_and_never_blocks(stack: ExitStack, transport: Transport) -> None:
    bind = Bind(transport, "127.0.0.1", free_port())
    group = listen(stack, bind)
    clients = 20
    for _ in range(clients):
        client = stack.enter_context(socket.socket(group[0].family, group[0].type))
        client.connect((bind.host, bind.port))
        if transport is Transport.UDP:
            client.send(b"x")

    adopted = [stack.enter_context(held) for held in adopt_group(bind, [os.dup(held.fileno()) for held in group])]
    for held in group:
        held.close()

    assert sum(count_waiting(held, transport) for held in adopted) == clients


def test_a_group_with_something_else_in_it_is_closed(stack: ExitStack) -> None:
    bind = Bind(Transport.TCP, "127.0.0.1", free_port())
    descriptors = [*(held.detach() for held in open_group(bind, 2, 16, exclusive=True)), os.open(os.devnull, 0)]

    with pytest.raises(BindError, match="not every socket listens there"):
        adopt_group(bind, descriptors)
    assert not set(descriptors) & open_descriptors()
    listen(stack, bind)
