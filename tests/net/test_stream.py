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


def _outcome(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(5000)
    return stream.connect_error(sock)


def test_a_connection_to_a_listening_target_succeeds_without_delay_and_with_keepalive() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = stream.connect("127.0.0.1", server.getsockname()[1])
        assert _outcome(sock) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not sock.getblocking()
        sock.close()


def test_a_refused_connection_says_so() -> None:
    sock = stream.connect("127.0.0.1", free_port())

    assert stream.connect_result(_outcome(sock)) is ConnectResult.REFUSED
    sock.close()


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
    stream.reset_on_close(accepted)
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
