"""OpenSSH: its own client and server, with keys, commands and data both ways."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, program, run
from tests.support.ports import free_port
from tests.support.targets import HttpTarget

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

    def client(self, port: int, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        """The ssh command that goes to ``port`` instead, trusting only this server's key."""
        return [
            "ssh",
            *("-F", "none", "-p", str(port), "-i", str(self.folder / "user_key"), "-o", "IdentitiesOnly=yes"),
            *("-o", "BatchMode=yes", "-o", "HostKeyAlias=proxied", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "GlobalKnownHostsFile=none"),
            *options,
            f"{getpass.getuser()}@127.0.0.1",
            *command,
        ]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("sshd")
    port = free_port()
    for name in ("host_key", "user_key"):
        assert run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)).returncode == 0
    (folder / "known_hosts").write_text("proxied " + (folder / "host_key.pub").read_text())
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd(8) as root wants its privilege separation folder
    with Program(program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config"), tcp=port):
        yield Sshd(port, folder)


def config(sshd: Sshd, web: HttpTarget) -> str:
    return f"""
[protocols.shell]
protocol = "ssh"
target = ["127.0.0.1:{sshd.port}"]
[protocols.web]
protocol = "http"
target = ["{web.text}"]
"""


def test_a_command_runs_over_ssh_beside_http_on_the_same_port(start_proxy: StartProxy, sshd: Sshd) -> None:
    with HttpTarget("web") as web:
        proxy = start_proxy(config(sshd, web))

        result = run(*sshd.client(proxy.port, "echo", "from the shell"))
        assert (result.returncode, result.stdout) == (0, "from the shell\n")

        assert run("curl", "--silent", f"http://127.0.0.1:{proxy.port}/").stdout == "web /"
        assert proxy.wait_for_session(route="shell")["detected"] == "ssh"


def test_megabytes_go_through_a_command_and_back(start_proxy: StartProxy, sshd: Sshd) -> None:
    text = "".join(f"line {number}\n" for number in range(400_000))
    with HttpTarget("web") as web:
        proxy = start_proxy(config(sshd, web))

        result = run(*sshd.client(proxy.port, "cat"), input=text)

        assert result.stdout == text


def test_a_tunnel_inside_ssh_carries_a_socks_client(start_proxy: StartProxy, sshd: Sshd) -> None:
    with HttpTarget("web") as web, contextlib.ExitStack() as stack:
        proxy = start_proxy(config(sshd, web))
        port = free_port()
        stack.enter_context(Program(*sshd.client(proxy.port, options=("-N", "-D", f"127.0.0.1:{port}")), tcp=port))

        result = run("curl", "--silent", "--socks5-hostname", f"127.0.0.1:{port}", f"http://{web.text}/inside")

        assert result.stdout == "web /inside"
