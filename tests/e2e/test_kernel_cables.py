"""The kernel path over VLANs, and over cables that lose, delay, swap, double and damage packets.

Not every kernel has these; ``tests/machine`` runs this file on one that has.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.support.hosts import (
    CLIENT,
    PROXY,
    TARGET,
    Network,
    by_kernel,
    by_pieces,
    capture,
    exchange,
    http3_at,
    target_at,
    wait_for_lines,
    warm_up,
)
from tests.support.http3 import http3_get
from tests.support.peers import run
from tests.support.targets import digests, echo
from tests.support.tls_files import TlsFiles
from tests.support.udp_echo import ENOUGH, enter
from tests.support.waiting import eventually

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ENDS: Final = (("client", "cable0a"), ("proxy", "cable0b"), ("proxy", "cable1a"), ("target", "cable1b"))
ADDRESSES: Final = (
    (CLIENT[4], CLIENT[6]),
    (PROXY[4], PROXY[6]),
    ("10.2.0.2", "2001:db8:2::2"),
    (TARGET[4], TARGET[6]),
)
SIZE: Final = 1_000_000
BAD: Final = ("delay", "2ms", "1ms", "reorder", "25%", "loss", "1%", "duplicate", "1%")


def try_to(network: Network, name: str, what: str, *command: str) -> None:
    """Do at a host what its kernel may not be able to; the test is skipped then."""
    said = run("ip", "netns", "exec", network.nets[name], *command)
    if said.returncode != 0:
        pytest.skip(f"this kernel has no {what}: {said.stdout.strip()}")


@pytest.fixture
def tagged(network: Network) -> Network:
    """All packets between the hosts have the tag of a VLAN: 10 at the client's cable, and 11 at the target's."""
    for (name, cable), addresses in zip(ENDS, ADDRESSES, strict=True):
        number = "10" if "cable0" in cable else "11"
        interface = f"vlan{cable.removeprefix('cable')}"
        vlan = ("ip", "link", "add", "link", cable, "name", interface, "type", "vlan", "id", number)
        try_to(network, name, "VLANs", *vlan)
        network.ip(name, "address", "flush", "dev", cable)
        for address, length in zip(addresses, ("24", "64"), strict=True):
            nodad = () if length == "24" else ("nodad",)
            network.ip(name, "address", "add", f"{address}/{length}", "dev", interface, *nodad)
        network.ip(name, "link", "set", interface, "up")
    return network


def disturb(network: Network, *how: str) -> None:
    """Do this to all packets, in both directions of both cables."""
    for name, cable in ENDS:
        # What is joined would be lost at once, and swapped with nothing.
        network.run(name, "ethtool", "-K", cable, "tso", "off", "gso", "off", "gro", "off")
        try_to(network, name, "netem", "tc", "qdisc", "add", "dev", cable, "root", "netem", *how)


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_vlans_are_forwarded_by_the_kernel(tagged: Network, family: int, offload: str) -> None:
    """Whether devices put tags into packets and take them out, or the kernel has to."""
    for name, cable in ENDS:
        parts = [word for part in ("gso", "gro", "tso", "txvlan", "rxvlan") for word in (part, offload)]
        # The proxy finishes checksums, so that tcpdump sees them.
        tagged.run(name, "ethtool", "-K", cable, *parts, "tx", "off" if name == "proxy" else offload)
    data = random.Random(family).randbytes(SIZE)
    expected = f"one {SIZE} {hashlib.sha256(data).hexdigest()}".encode()
    with (
        target_at(tagged, TARGET[family], digests("one")) as target,
        tagged.echo(TARGET[family]) as datagrams,
        tagged.proxy(f'tcp_target = ["{target.text}"]\nudp_target = ["{datagrams.text}"]') as proxy,
        tagged.client(proxy, family) as client,
    ):
        assert "vlan0b" in proxy.wait_for("kernel path: in use")
        warm_up(tagged, proxy, PROXY[family])
        for _ in range(3):
            assert exchange(tagged, proxy, data, PROXY[family]) == expected
        for session in by_kernel(proxy, 3):
            assert (session["bytes_in"], session["bytes_out"]) == (str(SIZE), str(len(expected)))

        def are_forwarded() -> bool:
            before = tagged.in_kernel(proxy)
            enter(client)
            return tagged.in_kernel(proxy) >= before + ENOUGH

        eventually(are_forwarded, "datagrams are forwarded by the kernel")
        with (
            capture(tagged, "target", "cable1b", "vlan 11 and udp") as at_target,
            capture(tagged, "client", "cable0a", "vlan 10 and udp") as at_client,
        ):
            enter(client)
            for seen, end in (
                (at_target, f"> {TARGET[family]}.{datagrams.port}:"),
                (at_client, f" {PROXY[family]}.{proxy.port} > "),
            ):
                lines = wait_for_lines(seen, end, ENOUGH)
                assert [line for line in lines if "udp sum ok" not in line] == []


@pytest.mark.parametrize("family", [4, 6])
def test_connections_are_exact_over_bad_cables(network: Network, family: int) -> None:
    data = random.Random(family).randbytes(SIZE)
    with (
        target_at(network, TARGET[family], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy, PROXY[family])
        disturb(network, *BAD)
        for _ in range(3):
            assert by_pieces(network, proxy, data, PROXY[family]) == data
        for session in by_kernel(proxy, 3):
            assert (session["bytes_in"], session["bytes_out"]) == (str(SIZE), str(SIZE))


def test_an_http3_download_is_exact_over_bad_cables(network: Network, tls_files: Callable[[str], TlsFiles]) -> None:
    disturb(network, *BAD, "corrupt", "1%")
    with (
        http3_at(network, TARGET[4], tls_files("web.test")) as target,
        network.proxy(f'[protocols.web]\nprotocol = "quic"\ntarget = ["{target.text}"]\n') as proxy,
        network.at("client"),
    ):
        got = asyncio.run(http3_get(proxy.port, "web.test", ["/bytes/300000"], host=PROXY[4]))
        assert got.bodies == ("x" * 300_000,)
        eventually(lambda: network.in_kernel(proxy) > 150, "the kernel has forwarded")
