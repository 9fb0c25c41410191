"""The demo's targets, beyond what its own clients ask of them."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rpxy_l4.demo import clients, scene
from rpxy_l4.demo.processes import running_targets
from tests.demo.conftest import Targets


def read_all(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as stream:
        return stream.read()


def test_a_kept_http_connection_serves_again(targets: Targets) -> None:
    with targets.connect(scene.WEB) as sock:
        sock.sendall(b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert answers.count(b"Hello from the HTTP target.\n") == 1


def test_ssh_says_goodbye_in_a_packet_that_an_ssh_client_understands(targets: Targets) -> None:
    with targets.connect(scene.SSH) as sock:
        sock.sendall(b"SSH-2.0-test\r\n")
        with sock.makefile("rb") as stream:
            assert stream.readline() == b"SSH-2.0-rpxy_l4_demo\r\n"
            sock.sendall(b"the first byte of a packet")
            length, padding, kind, reason, text_length = struct.unpack(">IBBII", stream.read(14))
            text = stream.read(text_length)
            rest = stream.read(length - 10 - text_length)
    assert (4 + length) % 8 == 0
    assert padding >= 4
    assert len(rest) == 4 + padding
    assert (kind, reason) == (1, 11)
    assert b"demo" in text


def test_socks5_refuses_a_client_that_wants_to_authenticate(targets: Targets) -> None:
    with targets.connect(scene.SOCKS5) as sock:
        sock.sendall(b"\x05\x01\x02")
        assert read_all(sock) == b"\x05\xff"


def test_socks5_refuses_everything_but_connect(targets: Targets) -> None:
    with targets.connect(scene.SOCKS5) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x02\x00\x01" + bytes(6))
        assert read_all(sock) == b"\x05\x00\x05\x07\x00\x01" + bytes(6)


@pytest.mark.parametrize("address", [b"\x01" + bytes(4), b"\x03\x01a", b"\x04" + bytes(16)])
def test_socks5_takes_every_kind_of_address(targets: Targets, address: bytes) -> None:
    with targets.connect(scene.SOCKS5) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00" + address + b"\x00\x50GET / HTTP/1.1\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(b"Hello from the SOCKS5 target.\n")


def test_wireguard_is_silent_to_strangers(targets: Targets) -> None:
    with targets.connect(scene.WIREGUARD) as stranger, targets.connect(scene.WIREGUARD) as second:
        stranger.send(b"\x01\0\0\0" + bytes(144))
        # What comes back to a later sender shows that the stranger's datagram was dealt with.
        clients.wireguard_handshake(second, bytes.fromhex(targets.served.wireguard_public_key))
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)


def test_the_private_key_is_readable_by_its_owner_only(targets: Targets) -> None:
    assert (targets.certificate.parent / "key.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rpxy_l4.demo.targets", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.slow
def test_without_aioquic_there_is_no_quic_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_aioquic(tmp_path, monkeypatch)
    with running_targets(tmp_path) as (_, served):
        assert scene.QUIC not in served.ports
        assert scene.WEB in served.ports


def hide_aioquic(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes do not find the part of it that the demo uses. (dnspython uses the rest where it is there.)"""
    (folder / "sitecustomize.py").write_text('import sys\nsys.modules["aioquic.asyncio"] = None\n')
    monkeypatch.setenv("PYTHONPATH", str(folder))
