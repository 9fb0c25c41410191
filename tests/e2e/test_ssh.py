"""OpenSSH: its own client and server, with keys, commands and data both ways."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import StartProxy
from tests.support import openssh
from tests.support.openssh import Sshd
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.targets import HttpTarget


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with openssh.sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


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
