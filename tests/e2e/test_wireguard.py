"""A real tunnel: two wireguard-go processes in namespaces of their own, and the proxy in a third one between them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.netns import Namespaces
from tests.support.peers import run
from tests.support.targets import UdpTarget
from tests.support.wireguard import tunnel

SERVER_PORT = 51820


@pytest.mark.netns
@pytest.mark.slow
def test_a_tunnel_runs_through_the_proxy(start_proxy: StartProxy, tmp_path: Path) -> None:
    mark = os.getpid() % 100_000
    with Namespaces("client", "proxy", "server") as nets, UdpTarget() as unused:
        nets.join("client", "10.77.1.1/24", "proxy", "10.77.1.2/24")
        nets.join("proxy", "10.77.2.2/24", "server", "10.77.2.1/24")
        proxy = start_proxy(
            f"""
listen_address_v4 = "0.0.0.0"
udp_target = ["{unused.text}"]
[protocols.vpn]
protocol = "wireguard"
target = ["10.77.2.1:{SERVER_PORT}"]
idle_lifetime = 2
""",
            netns=nets["proxy"],
        )
        with (
            tunnel(nets["server"], f"wgs{mark}", "10.88.0.1/24", tmp_path) as server,
            tunnel(nets["client"], f"wgc{mark}", "10.88.0.2/24", tmp_path) as client,
        ):
            server.set("listen-port", str(SERVER_PORT), "peer", client.public_key, "allowed-ips", "10.88.0.2/32")
            endpoint = f"10.77.1.2:{proxy.port}"
            client.set("peer", server.public_key, "allowed-ips", "10.88.0.1/32", "endpoint", endpoint)

            inside = ("ip", "netns", "exec", nets["client"])
            pinged = run(*inside, "ping", "-c", "10", "-i", "0.05", "-W", "10", "10.88.0.1")
            assert re.search(r"10 packets transmitted, 10 received, 0% packet loss", pinged.stdout), pinged.stdout
            large = run(*inside, "ping", "-c", "3", "-i", "0.05", "-s", "20000", "10.88.0.1")
            assert "3 received" in large.stdout, large.stdout

        session = proxy.wait_for_session(route="vpn")
        assert session["detected"] == "wireguard"
        assert session["client"].startswith("10.77.1.1:")
        assert int(session["datagrams_in"]) > 13
