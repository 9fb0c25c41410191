from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from rpxy_l4.control import Place
from rpxy_l4.net.listen import BindError
from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor.sockets import ListeningSockets
from rpxy_l4.verdict import Transport
from tests.support.ports import free_port

SLOTS = 2


@pytest.fixture
def sockets() -> Iterator[ListeningSockets]:
    held = ListeningSockets(SLOTS)
    yield held
    held.close_all()


def tcp(host: str, port: int) -> Bind:
    return Bind(Transport.TCP, host, port)


def can_connect(bind: Bind) -> bool:
    with socket.socket() as client:
        return client.connect_ex((bind.host, bind.port)) == 0


def test_each_slot_has_a_socket_of_its_own(sockets: ListeningSockets) -> None:
    port = free_port()
    binds = [tcp("127.0.0.1", port), Bind(Transport.UDP, "127.0.0.1", port)]
    sockets.open(binds, 16)

    descriptors = [
        number for slot in range(SLOTS) for number in sockets.descriptors([Place(slot, bind) for bind in binds])
    ]

    assert len(set(descriptors)) == SLOTS * len(binds)
    kinds = [
        socket.socket(fileno=socket.dup(number)) for number in sockets.descriptors([Place(1, bind) for bind in binds])
    ]
    assert [kind.type for kind in kinds] == [socket.SOCK_STREAM, socket.SOCK_DGRAM]
    for kind in kinds:
        kind.close()


def test_when_one_address_is_taken_none_is_opened(sockets: ListeningSockets) -> None:
    kept = tcp("127.0.0.1", free_port())
    sockets.open([kept], 16)
    with socket.create_server(("127.0.0.1", 0)) as other:
        free, taken = tcp("127.0.0.1", free_port()), tcp("127.0.0.1", other.getsockname()[1])

        with pytest.raises(BindError, match=f"tcp 127.0.0.1:{taken.port}: address already in use"):
            sockets.open([free, taken], 16)

    assert sockets.binds == {kept}
    assert can_connect(kept)
    assert not can_connect(free)


def test_a_listener_may_move_to_an_address_that_overlaps_its_old_one(sockets: ListeningSockets) -> None:
    port = free_port()
    sockets.open([tcp("127.0.0.1", port)], 16)
    sockets.open([tcp("0.0.0.0", port)], 16)
    sockets.close([tcp("127.0.0.1", port)])

    assert sockets.binds == {tcp("0.0.0.0", port)}
    assert can_connect(tcp("127.0.0.9", port))


def test_an_address_comes_back_while_a_worker_still_serves_flows_on_its_old_socket(sockets: ListeningSockets) -> None:
    bind = Bind(Transport.UDP, "127.0.0.1", free_port())
    sockets.open([bind], 16)
    with sockets.copy(bind):
        sockets.close([bind], until=30.0)
        sockets.open([bind], 16, now=29.0)

    assert sockets.binds == {bind}


@pytest.mark.parametrize("transport", Transport)
def test_an_address_that_was_given_up_is_somebody_elses(sockets: ListeningSockets, transport: Transport) -> None:
    bind = Bind(transport, "127.0.0.1", free_port())
    sockets.open([bind], 16)
    sockets.close([bind], until=30.0)
    second = ListeningSockets(SLOTS)
    second.open([bind], 16)

    try:
        # A TCP address is given up at once, a UDP address when no worker has flows on it any more.
        with pytest.raises(BindError):
            sockets.open([bind], 16, now=29.0 if transport is Transport.TCP else 30.0)
    finally:
        second.close_all()


def test_another_address_of_a_port_that_is_ours_is_not_shared_with_somebody_else(sockets: ListeningSockets) -> None:
    port = free_port()
    sockets.open([tcp("127.0.0.1", port)], 16)
    second = ListeningSockets(SLOTS)
    second.open([tcp("127.0.0.2", port)], 16)

    try:
        with pytest.raises(BindError):
            sockets.open([tcp("127.0.0.2", port)], 16)
    finally:
        second.close_all()


def test_what_waits_to_be_accepted_survives_a_change_of_the_backlog(sockets: ListeningSockets) -> None:
    bind = tcp("127.0.0.1", free_port())
    sockets.open([bind, Bind(Transport.UDP, "127.0.0.1", bind.port)], 16)
    clients = [socket.create_connection((bind.host, bind.port)) for _ in range(8)]
    sockets.set_backlog(32)

    accepted = 0
    for number in sockets.descriptors([Place(slot, bind) for slot in range(SLOTS)]):
        with socket.socket(fileno=socket.dup(number)) as listening:
            accepted += len(accept_all(listening))

    assert accepted == len(clients)
    for client in clients:
        client.close()


def accept_all(listening: socket.socket) -> list[str]:
    found: list[str] = []
    while True:
        try:
            connection, address = listening.accept()
        except BlockingIOError:
            return found
        connection.close()
        found.append(str(address))


def test_after_closing_nobody_listens(sockets: ListeningSockets) -> None:
    bind = tcp("127.0.0.1", free_port())
    sockets.open([bind], 16)
    sockets.close_all()

    assert sockets.binds == frozenset()
    assert not can_connect(bind)


@pytest.fixture
def before() -> Iterator[ListeningSockets]:
    """What another supervisor had."""
    held = ListeningSockets(SLOTS)
    yield held
    held.close_all()


def copies(held: ListeningSockets, *binds: Bind) -> list[tuple[Bind, int, int, int]]:
    """Copies of all of its sockets, the last slot first."""
    return [
        (bind, slot, SLOTS, os.dup(held.descriptors([Place(slot, bind)])[0]))
        for bind in binds
        for slot in reversed(range(SLOTS))
    ]


def inodes(held: ListeningSockets, bind: Bind) -> list[int]:
    return [os.fstat(held.descriptors([Place(slot, bind)])[0]).st_ino for slot in range(SLOTS)]


def test_whole_groups_are_adopted_each_socket_in_its_slot(sockets: ListeningSockets, before: ListeningSockets) -> None:
    port = free_port()
    binds = [Bind(transport, host, port) for transport in Transport for host in ("127.0.0.1", "::1")]
    before.open(binds, 16)
    places = {bind: inodes(before, bind) for bind in binds}
    offered = copies(before, *binds)
    before.close_all()

    assert sockets.adopt(offered, binds) == []
    assert {bind: inodes(sockets, bind) for bind in sockets.binds} == places
    assert not any(
        os.get_blocking(number)
        for slot in range(SLOTS)
        for number in sockets.descriptors([Place(slot, bind) for bind in binds])
    )


def test_a_group_that_is_not_wanted_or_not_whole_is_closed_and_said(
    sockets: ListeningSockets, before: ListeningSockets, caplog: pytest.LogCaptureFixture
) -> None:
    kept, gone, torn, doubled, moved, part = (tcp("127.0.0.1", port) for port in sorted(free_port() for _ in range(6)))
    before.open([kept, gone, torn, doubled, part], 16)
    offered = [
        *copies(before, kept, gone),
        (torn, 0, SLOTS, os.dup(before.descriptors([Place(0, torn)])[0])),
        *((doubled, slot, SLOTS, os.dup(before.descriptors([Place(0, doubled)])[0])) for slot in range(SLOTS)),
        *((moved, slot, SLOTS, number) for _, slot, _, number in copies(before, kept)),
        *((part, slot, SLOTS + 1, number) for _, slot, _, number in copies(before, part)),
    ]
    before.close_all()

    refused = sockets.adopt(offered, [kept, torn, doubled, moved, part])

    assert sockets.binds == {kept}
    twice = {bind: [(bind, 0), (bind, 1)] for bind in (gone, doubled, moved, part)}
    assert refused == [*twice[gone], (torn, 0), *twice[doubled], *twice[moved], *twice[part]]
    assert not any(can_connect(bind) for bind in (gone, torn, doubled, part))
    assert caplog.messages == [
        f"closing 2 sockets that were taken over: {gone}: it is not in the configuration",
        f"closing 1 sockets that were taken over: {torn}: for slots 0, not one for each of 2",
        f"closing 2 sockets that were taken over: {doubled}: two of the sockets are the same",
        f"closing 2 sockets that were taken over: {moved}: not every socket listens there",
        f"closing 2 sockets that were taken over: {part}: of 3 slots, not of 2",
    ]


def test_two_sockets_for_one_slot_are_one_too_many(sockets: ListeningSockets, before: ListeningSockets) -> None:
    bind = tcp("127.0.0.1", free_port())
    before.open([bind], 16)
    number = before.descriptors([Place(0, bind)])[0]

    assert sockets.adopt([*copies(before, bind), (bind, 0, SLOTS, os.dup(number))], [bind]) == [(bind, 0), (bind, 1)]
    assert sockets.binds == frozenset()


def test_adopted_sockets_are_served_and_let_go_of_like_others(
    sockets: ListeningSockets, before: ListeningSockets
) -> None:
    bind = tcp("127.0.0.1", free_port())
    before.open([bind], 16)
    sockets.adopt(copies(before, bind), [bind])
    before.close_all()
    sockets.set_backlog(32)

    assert can_connect(bind)
    sockets.close([bind])
    assert not can_connect(bind)
