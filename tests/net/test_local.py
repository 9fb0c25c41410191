from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpxy_l4.net.local import LocalListener, connect

Publish = Callable[[Path], LocalListener]


@pytest.fixture
def published() -> Iterator[Publish]:
    """Makes listeners, and closes them."""
    with contextlib.ExitStack() as stack:

        def publish(path: Path) -> LocalListener:
            listener = LocalListener.prepare(str(path))
            stack.callback(listener.close)
            listener.publish()
            return listener

        yield publish


def test_packets_go_both_ways_and_keep_their_bounds(tmp_path: Path, published: Publish) -> None:
    listener = published(tmp_path / "s")
    with connect(listener.path, 1.0) as client:
        server = listener.accept()
        assert server is not None
        client.send(b"one")
        client.send(b"two")
        assert server.receive(100) == b"one"
        assert server.receive(1) == b"t"
        with pytest.raises(BlockingIOError):
            server.receive(100)
        assert server.send(b"three")
        assert client.receive(100) == b"three"
        server.close()
        assert client.receive(100) == b""
        assert not client.send(b"nobody")
    assert listener.accept() is None


def test_nobody_can_connect_before_it_is_published_nor_anybody_else_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = LocalListener.prepare(str(path))
    assert not path.exists()
    listener.publish()
    listener.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.unlink()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_what_was_not_published_leaves_nothing(tmp_path: Path) -> None:
    LocalListener.prepare(str(tmp_path / "s")).withdraw()

    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_the_name_that_a_dead_process_left_is_taken(tmp_path: Path, published: Publish) -> None:
    published(tmp_path / "s").close()
    listener = published(tmp_path / "s")

    connect(listener.path, 1.0).close()


def test_the_name_of_a_living_one_is_not(tmp_path: Path, published: Publish) -> None:
    listener = published(tmp_path / "s")
    with pytest.raises(OSError, match="in use") as caught:
        LocalListener.prepare(listener.path)

    assert caught.value.errno == errno.EADDRINUSE
    connect(listener.path, 1.0).close()


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(OSError, match="no socket"):
        LocalListener.prepare(str(path))

    assert path.read_text() == "mine"


def test_a_socket_of_another_kind_is_somebodys(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            LocalListener.prepare(str(tmp_path / "s"))


def test_a_name_that_is_somebody_elses_by_now_is_left(tmp_path: Path, published: Publish) -> None:
    listener = published(tmp_path / "s")
    (tmp_path / "s").unlink()
    other = published(tmp_path / "s")
    listener.unlink()

    connect(other.path, 1.0).close()


def test_a_listener_taken_over_takes_its_name_away(tmp_path: Path, published: Publish) -> None:
    listener = published(tmp_path / "s")
    other = LocalListener.of(listener.path, os.dup(listener.fileno()))
    other.unlink()
    other.close()

    assert not (tmp_path / "s").exists()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalListener.prepare(str(tmp_path / "none" / "s"))
