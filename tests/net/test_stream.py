from __future__ import annotations

import errno
import os
import select
import socket

import pytest

from rpxy_l4.endings import ConnectResult
from rpxy_l4.net import stream
from rpxy_l4.net.stream import PipePool
from tests.support.ports import free_port


def _outcome(descriptor: int) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    assert poll.poll(5000)
    return stream.connect_error(descriptor)


def test_a_connection_to_a_listening_target_succeeds_without_delay_and_with_keepalive_when_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        descriptor = stream.connect("127.0.0.1", server.getsockname()[1])
        assert _outcome(descriptor) == 0
        stream.keep_alive(descriptor)
        with socket.socket(fileno=descriptor) as sock:
            assert stream.local_address(descriptor) == sock.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == stream.KEEPALIVE_SECONDS
            assert not os.get_blocking(descriptor)
            assert not os.get_inheritable(descriptor)


def test_an_accepted_descriptor_comes_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        descriptor, address = stream.acceptor(server)()
        with socket.socket(fileno=descriptor) as accepted:
            assert address == client.getsockname() == accepted.getpeername()
            assert not os.get_inheritable(descriptor)


def test_a_refused_connection_says_so() -> None:
    descriptor = stream.connect("127.0.0.1", free_port())

    assert stream.connect_result(_outcome(descriptor)) is ConnectResult.REFUSED
    os.close(descriptor)


@pytest.mark.parametrize(
    ("number", "result"),
    [
        (0, ConnectResult.OK),
        (errno.ECONNREFUSED, ConnectResult.REFUSED),
        (errno.ETIMEDOUT, ConnectResult.TIMEOUT),
        (errno.ENETUNREACH, ConnectResult.UNREACHABLE),
        (errno.EHOSTUNREACH, ConnectResult.UNREACHABLE),
        (errno.EADDRNOTAVAIL, ConnectResult.PORTS_EXHAUSTED),
        (errno.EACCES, ConnectResult.OTHER),
    ],
)
def test_every_errno_has_a_result(number: int, result: ConnectResult) -> None:
    assert stream.connect_result(number) is result


def test_a_reset_on_close_reaches_the_other_end() -> None:
    near, far = socket.create_server(("127.0.0.1", 0)), socket.socket()
    far.connect(near.getsockname())
    accepted, _ = near.accept()
    stream.reset_on_close(accepted.fileno())
    accepted.close()

    with pytest.raises(ConnectionResetError):
        far.recv(1)
    near.close()
    far.close()


def test_an_empty_pipe_is_used_again_and_a_full_one_is_not() -> None:
    pool = PipePool(1)
    first = pool.take()
    assert first is not None
    pool.give_back(first, empty=True)
    second = pool.take()
    assert second is first
    os.write(second.write_end, b"stale")
    pool.give_back(second, empty=False)
    third = pool.take()
    assert third is not None
    assert third is not first
    assert pool.lent == 1
    pool.give_back(third, empty=True)
    third.close()
