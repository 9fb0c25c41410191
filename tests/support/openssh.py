"""OpenSSH's server for the user who runs the tests, and the command of a client that trusts only it."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import Program, program, run
from tests.support.ports import free_port

SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@dataclass(frozen=True)
class Sshd:
    """A running server that lets this user in with one key."""

    port: int
    folder: Path

    def client(self, port: int, *command: str, host: str = "127.0.0.1", options: tuple[str, ...] = ()) -> list[str]:
        """The ssh command that goes to this address instead, trusting only this server's key."""
        return [
            "ssh",
            *("-F", "none", "-p", str(port), "-i", str(self.folder / "user_key"), "-o", "IdentitiesOnly=yes"),
            *("-o", "BatchMode=yes", "-o", "HostKeyAlias=proxied", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "GlobalKnownHostsFile=none"),
            *options,
            f"{getpass.getuser()}@{host}",
            *command,
        ]


@contextlib.contextmanager
def sshd(folder: Path, netns: str | None = None) -> Iterator[Sshd]:
    """A server on the loopback, of a network namespace or of the tests' own, with keys made in the folder."""
    port = free_port()
    for name in ("host_key", "user_key"):
        assert run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)).returncode == 0
    (folder / "known_hosts").write_text("proxied " + (folder / "host_key.pub").read_text())
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd(8) as root wants its privilege separation folder
    with Program(program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config"), tcp=port, netns=netns):
        yield Sshd(port, folder)
