from __future__ import annotations

import os
import resource
import socket

import pytest

from rpxy_l4.net.connection_inbox import ConnectionInbox, InboxEntry, pair

LONGEST = ("0000:0000:0000:0000:0000:ffff:255.255.255.255", 65_535)


@pytest.mark.parametrize("client", [("192.0.2.1", 1), ("2001:db8::1", 443), LONGEST])
def test_a_connection_arrives_with_its_clients_address(client: tuple[str, int]) -> None:
    inbox, entry = pair()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert entry.send(sock.fileno(), client)
        assert entry.waiting() == 1
        descriptor, address = inbox.receive()
        assert entry.waiting() == 0
        with socket.socket(fileno=descriptor) as same:
            assert same.getsockname() == sock.getsockname()
    assert address == client
    with pytest.raises(BlockingIOError):
        inbox.receive()
    inbox.close()
    entry.close()


def test_a_full_inbox_takes_nothing_more_and_counts_rightly() -> None:
    inbox, entry = pair()
    count = 0
    while entry.send(0, LONGEST):
        count += 1

    assert count > 100
    assert entry.waiting() == count
    inbox.close()
    entry.close()


def test_what_is_queued_outlives_the_copy_of_one_process_and_the_stop() -> None:
    inbox, entry = pair()
    copy, other_entry = ConnectionInbox.of(os.dup(inbox.socket.fileno())), InboxEntry.of(os.dup(entry.socket.fileno()))
    assert other_entry.send(0, LONGEST)
    inbox.close()
    other_entry.close()
    copy.stop()

    assert not entry.send(0, LONGEST)
    os.close(copy.receive()[0])
    with pytest.raises(BlockingIOError):
        copy.receive()
    copy.close()
    entry.close()


def test_a_connection_that_finds_no_descriptor_is_an_error_and_the_next_one_arrives() -> None:
    inbox, entry = pair()
    for _ in range(2):
        assert entry.send(0, LONGEST)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="a connection is lost"):
            inbox.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    os.close(inbox.receive()[0])
    inbox.close()
    entry.close()
