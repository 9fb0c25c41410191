"""Ends of a WireGuard tunnel: wireguard-go, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.peers import Program, run
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Tunnel:
    """One end: the interface in its namespace, and its public key."""

    netns: str
    interface: str
    public_key: str

    def set(self, *arguments: str) -> None:
        result = run("ip", "netns", "exec", self.netns, "wg", "set", self.interface, *arguments)
        assert result.returncode == 0, result.stdout


@contextlib.contextmanager
def tunnel(netns: str, interface: str, address: str, folder: Path) -> Iterator[Tunnel]:
    """One end, up but without a peer. Skips the test where there is no /dev/net/tun."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    private_key = run("wg", "genkey").stdout
    key_file = folder / f"{interface}.key"
    key_file.touch(mode=0o600)
    key_file.write_text(private_key)
    with Program("wireguard-go", "--foreground", interface, netns=netns):
        # Its control socket is named after the interface, in a folder that all namespaces share.
        eventually(
            lambda: run("ip", "netns", "exec", netns, "wg", "show", interface).returncode == 0, "wireguard-go answers"
        )
        end = Tunnel(netns, interface, run("wg", "pubkey", input=private_key).stdout.strip())
        end.set("private-key", str(key_file))
        for command in (("address", "add", address, "dev", interface), ("link", "set", interface, "up")):
            assert run("ip", "-n", netns, *command).returncode == 0
        yield end
