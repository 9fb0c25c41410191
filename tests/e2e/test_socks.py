"""A SOCKS5 client (curl) and a SOCKS5 server (microsocks)."""

from __future__ import annotations

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.targets import HttpTarget


def test_curl_uses_the_socks_server_behind_the_proxy(start_proxy: StartProxy) -> None:
    port = free_port()
    with HttpTarget("web") as web, Program("microsocks", "-i", "127.0.0.1", "-p", str(port), tcp=port):
        proxy = start_proxy(f"""
[protocols.socks]
protocol = "socks5"
target = ["127.0.0.1:{port}"]
[protocols.web]
protocol = "http"
target = ["127.0.0.1:1"]
""")

        result = run(
            "curl", "--silent", "--show-error", "--socks5", f"127.0.0.1:{proxy.port}", f"http://{web.text}/inside"
        )

        assert result.stdout == "web /inside"
        assert proxy.wait_for_session(route="socks")["detected"] == "socks5"


def test_curl_with_a_password_is_socks_too(start_proxy: StartProxy) -> None:
    port = free_port()
    login = ("-u", "someone", "-P", "secret")
    with HttpTarget("web") as web, Program("microsocks", "-i", "127.0.0.1", "-p", str(port), *login, tcp=port):
        proxy = start_proxy(f'[protocols.socks]\nprotocol = "socks5"\ntarget = ["127.0.0.1:{port}"]\n')

        proxied = f"socks5h://someone:secret@127.0.0.1:{proxy.port}"
        result = run("curl", "--silent", "--show-error", "--proxy", proxied, f"http://{web.text}/inside")

        assert result.stdout == "web /inside"
