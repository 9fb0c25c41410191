"""aioquic's HTTP/3 client and server through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from aioquic.quic.packet import QuicProtocolVersion

from tests.e2e.conftest import StartProxy
from tests.support.http3 import Http3Target, http3_get
from tests.support.targets import UdpTarget
from tests.support.tls_files import TlsFiles

# With the usual "h3" among these, a hello does not fit one datagram.
MANY_NAMES = ["h3", *(f"protocol-number-{number:012}" for number in range(80))]


@pytest.fixture(scope="module")
def targets(tls_files: Callable[[str], TlsFiles]) -> Iterator[dict[str, Http3Target]]:
    with (
        Http3Target("sni", tls_files("example.com")) as sni,
        Http3Target("any", tls_files("other.test")) as anything,
        Http3Target("alpn", tls_files("alpn.test"), alpn=["h3-29"]) as alpn,
        Http3Target("retry", tls_files("retry.test"), retry=True) as retry,
    ):
        yield {"sni": sni, "any": anything, "alpn": alpn, "retry": retry}


@pytest.fixture
def config(targets: dict[str, Http3Target]) -> Iterator[str]:
    with UdpTarget("not quic") as default:
        yield f"""
udp_target = ["{default.text}"]
[protocols.any]
protocol = "quic"
target = ["{targets["any"].text}"]
[protocols.alpn]
protocol = "quic"
alpn = ["h3-29"]
target = ["{targets["alpn"].text}"]
[protocols.sni]
protocol = "quic"
server_names = ["example.com"]
target = ["{targets["sni"].text}"]
idle_lifetime = 1
[protocols.retry]
protocol = "quic"
server_names = ["retry.test"]
target = ["{targets["retry"].text}"]
"""


def test_the_route_follows_the_name_and_the_protocol(start_proxy: StartProxy, config: str) -> None:
    proxy = start_proxy(config)

    async def scenario() -> None:
        assert (await http3_get(proxy.port, "example.com", ["/a", "/b"])).bodies == ("sni /a", "sni /b")
        assert (await http3_get(proxy.port, "elsewhere.test")).bodies == ("any /",)
        assert (await http3_get(proxy.port, None)).bodies == ("any /",)
        assert (await http3_get(proxy.port, "elsewhere.test", alpn=["h3-29"])).bodies == ("alpn /",)

    asyncio.run(scenario())

    session = proxy.wait_for_session(route="sni")
    assert (session["detected"], session["sni"], session["alpn"]) == ("quic", "example.com", "h3")


@pytest.mark.parametrize("version", [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2])
def test_both_versions_and_a_retry(start_proxy: StartProxy, config: str, version: QuicProtocolVersion) -> None:
    proxy = start_proxy(config)

    async def scenario() -> None:
        for name in ("retry", "sni"):
            host = {"retry": "retry.test", "sni": "example.com"}[name]
            answer = await http3_get(proxy.port, host, version=version)
            assert (answer.bodies, answer.version) == ((f"{name} /",), version)

    asyncio.run(scenario())


def test_a_hello_over_several_datagrams(start_proxy: StartProxy, config: str) -> None:
    proxy = start_proxy(config)

    answer = asyncio.run(http3_get(proxy.port, "example.com", alpn=MANY_NAMES))

    assert answer.bodies == ("sni /",)


def test_early_data_beside_the_initial(start_proxy: StartProxy, config: str) -> None:
    proxy = start_proxy(config)

    async def scenario() -> None:
        first = await http3_get(proxy.port, "example.com")
        assert first.ticket is not None
        again = await http3_get(proxy.port, "example.com", ["/early"], ticket=first.ticket)
        assert (again.bodies, again.early_data) == (("sni /early",), True)

    asyncio.run(scenario())


def test_megabytes_over_http3(start_proxy: StartProxy, config: str) -> None:
    proxy = start_proxy(config)

    answer = asyncio.run(http3_get(proxy.port, "example.com", ["/bytes/3000000"]))

    assert answer.bodies == ("x" * 3_000_000,)


def test_a_version_nobody_knows_is_negotiated_with_the_target_that_takes_any_name(
    start_proxy: StartProxy, config: str
) -> None:
    proxy = start_proxy(config)
    datagram = b"\xc0\x0a\x0a\x0a\x0a\x08destined\x06source" + bytes(1200)
    with proxy.udp() as client:
        client.send(datagram)

        # RFC 9000 section 17.2.1: version 0, the ids exchanged, then the versions that the server speaks.
        assert client.recv(2000)[1:].startswith(b"\0\0\0\0\x06source\x08destined")


def test_what_only_looks_like_quic_goes_to_the_default(start_proxy: StartProxy, config: str) -> None:
    proxy = start_proxy(config)
    for datagram in (b"\xc0\x0a\x0a\x0a\x0a", b"\xc3\0\0\0\1\x08" + bytes(1300), b"\x40" + bytes(100)):
        with proxy.udp() as client:
            client.send(datagram)

            assert client.recv(2000) == b"not quic:" + datagram
