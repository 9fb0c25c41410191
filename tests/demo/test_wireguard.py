"""The handshake agrees with itself, refuses what is not meant for it, and agrees with a real WireGuard."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.demo import scene, wireguard
from rpxy_l4.demo.wireguard import INITIATION_BYTES, RESPONSE_BYTES, HandshakeError, Initiator, respond
from tests.support.netns import Namespaces
from tests.support.peers import Program, program, run
from tests.support.waiting import eventually

ROOT = Path(__file__).parent.parent.parent
NOW = 1_700_000_000.25

OURS, THEIRS = X25519PrivateKey.generate(), X25519PrivateKey.generate()


def initiator() -> Initiator:
    return Initiator(OURS, THEIRS.public_key(), 0x01020304, NOW)


def test_both_sides_agree() -> None:
    ours = initiator()
    response = respond(THEIRS, ours.initiation, 7)
    assert len(ours.initiation) == INITIATION_BYTES
    assert len(response) == RESPONSE_BYTES
    ours.finish(response)


def test_the_messages_carry_their_types_and_the_receivers_index() -> None:
    ours = initiator()
    assert ours.initiation[:8] == bytes([1, 0, 0, 0, 4, 3, 2, 1])
    assert respond(THEIRS, ours.initiation, 7)[:12] == bytes([2, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1])


def test_an_initiation_for_another_key_is_refused() -> None:
    with pytest.raises(HandshakeError, match="not an initiation for this key"):
        respond(OURS, initiator().initiation, 7)


def test_a_response_to_another_initiation_is_refused() -> None:
    response = respond(THEIRS, initiator().initiation, 7)
    with pytest.raises(HandshakeError, match="does not decrypt"):
        initiator().finish(response)


@given(at=st.integers(0, INITIATION_BYTES - 17), bit=st.integers(0, 7))
def test_an_initiation_with_any_bit_changed_is_refused(at: int, bit: int) -> None:
    changed = bytearray(initiator().initiation)
    changed[at] ^= 1 << bit
    with pytest.raises(HandshakeError):
        respond(THEIRS, bytes(changed), 7)


@given(at=st.integers(0, RESPONSE_BYTES - 17), bit=st.integers(0, 7))
def test_a_response_with_any_bit_changed_is_refused(at: int, bit: int) -> None:
    ours = initiator()
    changed = bytearray(respond(THEIRS, ours.initiation, 7))
    changed[at] ^= 1 << bit
    with pytest.raises(HandshakeError):
        ours.finish(bytes(changed))


def test_a_key_of_small_order_is_refused() -> None:
    unsigned = b"\1\0\0\0" + bytes(112)
    initiation = unsigned + wireguard._mac1(THEIRS.public_key(), unsigned) + bytes(16)
    with pytest.raises(HandshakeError, match="not usable"):
        respond(THEIRS, initiation, 7)


@given(data=st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(HandshakeError):
        respond(THEIRS, data, 7)
    with pytest.raises(HandshakeError):
        initiator().finish(data)


@pytest.mark.netns
@pytest.mark.e2e
@pytest.mark.slow
def test_a_real_wireguard_completes_its_handshake_with_the_demos_target(tmp_path: Path) -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    interface = f"wgd{os.getpid() % 100_000}"
    key_file = tmp_path / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(run("wg", "genkey").stdout)
    with Namespaces("demo") as nets:
        inside = (program("ip"), "netns", "exec", nets["demo"])
        targets = [*inside, sys.executable, "-m", "rpxy_l4.demo.targets", str(tmp_path)]
        with (
            subprocess.Popen(targets, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
            Program("wireguard-go", "--foreground", interface, netns=nets["demo"]),
        ):
            assert process.stdout is not None
            served = json.loads(process.stdout.readline())
            peer = base64.b64encode(bytes.fromhex(served["wireguard_public_key"])).decode()
            endpoint = f"127.0.0.1:{served['ports'][scene.WIREGUARD]}"
            eventually(lambda: run(*inside, "wg", "show", interface).returncode == 0, "wireguard-go answers")
            for command in (
                ("wg", "set", interface, "private-key", str(key_file)),
                ("wg", "set", interface, "peer", peer, "endpoint", endpoint, "persistent-keepalive", "1"),
                ("ip", "link", "set", interface, "up"),
            ):
                assert run(*inside, *command).returncode == 0
            # "<public key> <unix time>"; 0 before the first handshake.
            eventually(
                lambda: int(run(*inside, "wg", "show", interface, "latest-handshakes").stdout.split()[1]),
                "the handshake completes",
            )
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
