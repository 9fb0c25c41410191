"""openssl s_client and s_server, and curl over TLS: routing by SNI and ALPN, both and neither."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.hellos import RECORD_HEADER, openssl_hello, records
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, read_all, reports
from tests.support.tls_files import TlsFiles

CertificateOf = Callable[[str], TlsFiles]


@dataclass(frozen=True)
class OpensslServers:
    """Four s_server processes, told apart by the name in their certificate."""

    port_of: dict[str, int]

    def target(self, name: str) -> str:
        return f"127.0.0.1:{self.port_of[name]}"


@pytest.fixture(scope="module")
def servers(tls_files: CertificateOf) -> Iterator[OpensslServers]:
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name in ("both.test", "sni.test", "alpn.test", "any.test"):
            files, port = tls_files(name), free_port()
            arguments = ("-accept", f"127.0.0.1:{port}", "-cert", str(files.certificate), "-key", str(files.key))
            stack.enter_context(
                Program("openssl", "s_server", *arguments, "-alpn", "h2,http/1.1,imap", "-rev", tcp=port)
            )
            ports[name] = port
        yield OpensslServers(ports)


def config(servers: OpensslServers) -> str:
    """The entries stand in the reverse of the order they must be tried in."""
    return f"""
[protocols.any]
protocol = "tls"
target = ["{servers.target("any.test")}"]
[protocols.alpn]
protocol = "tls"
target = ["{servers.target("alpn.test")}"]
alpn = ["h2"]
[protocols.sni]
protocol = "tls"
target = ["{servers.target("sni.test")}"]
server_names = ["example.com", "example.org"]
[protocols.both]
protocol = "tls"
target = ["{servers.target("both.test")}"]
server_names = ["example.com"]
alpn = ["h2"]
"""


def s_client(proxy: Proxy, *arguments: str) -> str:
    """Do a handshake, send a line, and return the name in the certificate and the answer."""
    result = run("openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", *arguments, input="hello\nQ\n")
    subject = re.search(r"subject=CN = (\S+)", result.stdout)
    assert subject is not None, result.stdout
    return subject[1]


@pytest.mark.parametrize(
    ("arguments", "route"),
    [
        (("-servername", "example.com", "-alpn", "h2"), "both"),
        (("-servername", "EXAMPLE.com", "-alpn", "http/1.1,h2"), "both"),
        (("-servername", "example.com", "-alpn", "imap"), "sni"),
        (("-servername", "example.com"), "sni"),
        (("-servername", "example.org", "-alpn", "h2"), "sni"),
        (("-servername", "example.net", "-alpn", "h2"), "alpn"),
        (("-noservername", "-alpn", "h2"), "alpn"),
        (("-servername", "example.net"), "any"),
        (("-noservername",), "any"),
        (("-tls1_2", "-servername", "example.com"), "sni"),
        (("-servername", "example.com", "-split_send_frag", "512", "-max_send_frag", "512"), "sni"),
    ],
)
def test_the_more_specific_route_is_taken(
    start_proxy: StartProxy, servers: OpensslServers, arguments: tuple[str, ...], route: str
) -> None:
    proxy = start_proxy(config(servers))

    assert s_client(proxy, *arguments) == f"{route}.test"

    session = proxy.wait_for_session(route=route, detected="tls")
    if "-servername" in arguments:
        assert session["sni"] == arguments[arguments.index("-servername") + 1].lower()
    if "-alpn" in arguments:
        assert session["alpn"] == arguments[arguments.index("-alpn") + 1]


def test_tls_that_no_entry_matches_goes_to_the_default_target(start_proxy: StartProxy, servers: OpensslServers) -> None:
    proxy = start_proxy(f"""
tcp_target = ["{servers.target("any.test")}"]
[protocols.sni]
protocol = "tls"
target = ["{servers.target("sni.test")}"]
server_names = ["example.com"]
""")

    assert s_client(proxy, "-servername", "example.net") == "any.test"
    assert s_client(proxy, "-servername", "example.com") == "sni.test"
    assert proxy.wait_for_session(route="default")["detected"] == "tls"


def test_tls_that_no_entry_matches_is_dropped_without_a_default(
    start_proxy: StartProxy, servers: OpensslServers
) -> None:
    proxy = start_proxy(f"""
[protocols.sni]
protocol = "tls"
target = ["{servers.target("sni.test")}"]
server_names = ["example.com"]
""")

    result = run(
        "openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", "-servername", "example.net", input="Q\n"
    )

    assert "no peer certificate available" in result.stdout
    proxy.wait_for_sessions(1, event="refused", reason="no_route")
    assert proxy.metric("sessions_rejected_total", reason="no_route", protocol="tcp") == 1


def test_curl_speaks_http2_over_tls_through_the_proxy(start_proxy: StartProxy, tls_files: CertificateOf) -> None:
    files, port = tls_files("web.test"), free_port()
    with Program(
        "nghttpd", "--address=127.0.0.1", "--htdocs=/", str(port), str(files.key), str(files.certificate), tcp=port
    ):
        proxy = start_proxy(f"""
[protocols.web]
protocol = "tls"
target = ["127.0.0.1:{port}"]
server_names = ["web.test"]
alpn = ["h2"]
""")

        result = run(
            "curl",
            "--silent",
            "--show-error",
            "--http2",
            "--cacert",
            str(files.certificate),
            "--connect-to",
            f"web.test:443:127.0.0.1:{proxy.port}",
            "--write-out",
            "%{http_version} %{ssl_verify_result}",
            "--output",
            "/dev/null",
            "https://web.test/",
        )

        assert result.stdout == "2 0"
        assert proxy.wait_for_session(route="web")["sni"] == "web.test"


@pytest.mark.parametrize("sizes", [(), (1, 5), (1,) * 40, (100, 100)])
def test_a_hello_in_any_records_is_routed_and_reaches_the_target_unchanged(
    start_proxy: StartProxy, sizes: tuple[int, ...]
) -> None:
    hello = openssl_hello("example.com", ["h2"])
    first_flight = records(hello[RECORD_HEADER:], *sizes, len(hello))
    # What TLS 1.3 with early data sends in the same segment: change cipher spec, then application data.
    first_flight += b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x03abc"
    with TcpTarget(reports("right")) as right, TcpTarget(reports("wrong")) as wrong:
        proxy = start_proxy(f"""
tcp_target = ["{wrong.text}"]
[protocols.t]
protocol = "tls"
server_names = ["example.com"]
target = ["{right.text}"]
""")
        with proxy.connect() as client:
            client.sendall(first_flight)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"right\n" + first_flight
