"""Flows that are decided go on in the kernel: between hosts, with everything that can be unusual about a packet."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import re
import signal
import socket
from collections.abc import Callable
from typing import Final

import pytest

from rpxy_l4.kernel.netlink import Netlink
from tests.support import seccomp
from tests.support.hosts import (
    LOCAL,
    PROXY,
    TARGET,
    Network,
    capture,
    control,
    http3_at,
    interfaces,
    status,
    tunnel_to_proxy,
    wait_for_lines,
)
from tests.support.http3 import http3_get
from tests.support.kernel_path import attached_to, needs_links, way
from tests.support.netns import Namespaces, inside
from tests.support.peers import Program, run
from tests.support.proxy import Proxy, process_state
from tests.support.seccomp import Rule, deny
from tests.support.tls_files import TlsFiles
from tests.support.udp_echo import ENOUGH, UdpEcho, ask, enter
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.netns

BPF_LINK_CREATE: Final = 28


@pytest.mark.parametrize("place", [LOCAL, TARGET], ids=["local", "remote"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_goes_on_in_the_kernel_and_is_counted_like_any_other(
    network: Network, family: int, place: dict[int, str]
) -> None:
    with (
        network.echo(place[family]) as target,
        network.proxy(f'kernel_path = "on"\nudp_target = ["{target.text}"]') as proxy,
        network.client(proxy, family) as client,
    ):
        assert f"kernel path: in use: {way()} on cable0b, cable1a, lo" in proxy.wait_for("kernel path")
        port = enter(client)
        for number in range(100):
            assert ask(client, b"x" * number) == port
        eventually(lambda: network.metric(proxy, "datagrams_total") == 2 * (100 + ENOUGH), "all are counted")
        assert network.in_kernel(proxy) >= 200
        assert network.metric(proxy, "worker_kernel_flows") == 1
        proxy.signal(signal.SIGTERM)
        session = proxy.wait_for_session(transport="udp")
    assert (session["datagrams_in"], session["datagrams_out"]) == (str(100 + ENOUGH),) * 2
    assert int(session["bytes_in"]) == sum(len(b"%d" % number) for number in range(ENOUGH)) + 4950


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_on_the_proxys_own_host_is_served_by_the_kernel_too(network: Network, family: int) -> None:
    for place in (LOCAL, TARGET):
        with (
            network.echo(place[family]) as target,
            network.proxy(f'udp_target = ["{target.text}"]') as proxy,
            network.at("proxy"),
        ):
            for host in (LOCAL[family], PROXY[family]):
                with proxy.udp(host) as client:
                    before = network.in_kernel(proxy)
                    enter(client)
                    enter(client)
                    eventually(lambda: network.in_kernel(proxy) >= before + 2 * ENOUGH, f"{host} is served")  # noqa: B023


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("family", [4, 6])
def test_whatever_is_sent_arrives_with_valid_checksums(network: Network, family: int, offload: str) -> None:
    """Also where the sender leaves the checksum to be finished by a device, and the proxy's device does it."""
    for name, interface, tx in (
        ("client", "cable0a", offload),
        ("proxy", "cable0b", "off"),
        ("proxy", "cable1a", "off"),
        ("target", "cable1b", offload),
    ):
        network.run(name, "ethtool", "-K", interface, "tx", tx, "gso", tx, "gro", tx)
    rng = random.Random(3)
    longest = 1472 if family == 4 else 1452
    # The port that comes back takes six bytes.
    payloads = [rng.randbytes(rng.choice((0, 1, 2, 17, 500, longest - 6))) for _ in range(300)]
    with (
        network.echo(TARGET[family]) as target,
        network.proxy(f'udp_target = ["{target.text}"]') as proxy,
        network.client(proxy, family) as client,
        capture(network, "target", "cable1b") as at_target,
        capture(network, "client", "cable0a") as at_client,
    ):
        port = enter(client)
        for payload in payloads:
            assert ask(client, payload) == port
        eventually(lambda: network.in_kernel(proxy) >= 600, "the kernel has forwarded")
        for seen, end in (
            (at_target, f"> {TARGET[family]}.{target.port}:"),
            (at_client, f" {PROXY[family]}.{proxy.port} > "),
        ):
            lines = wait_for_lines(seen, end, 300 + ENOUGH)
            assert [line for line in lines if "udp sum ok" not in line] == []


def test_a_datagram_that_is_too_long_for_the_way_goes_by_the_sockets(network: Network) -> None:
    for name, interface in (("proxy", "cable1a"), ("target", "cable1b")):
        network.ip(name, "link", "set", interface, "mtu", "1300")
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'udp_target = ["{target.text}"]\n{control(network)}') as proxy,
        network.client(proxy) as client,
    ):
        port = enter(client)
        for length in (100, 1272 - 6, 1273, 1400, 5000, 100):
            assert ask(client, bytes(length)) == port
        assert "too big" in status(network)
        assert "fragment" in status(network), "of 5000 bytes, or of the answers"


@pytest.mark.alone
def test_a_router_that_wants_shorter_packets_is_heeded(network: Network) -> None:
    """The path to the target is narrower than each of its ends: the router in between says so (ICMP)."""
    with Namespaces("far") as more:
        far = more["far"]
        number_of_cables = ("link", "add", "wide", "netns", network.nets["target"], "mtu", "1280", "type", "veth")
        assert run("ip", *number_of_cables, "peer", "name", "narrow", "netns", far, "mtu", "1280").returncode == 0
        network.ip("target", "address", "add", "10.3.0.1/24", "dev", "wide")
        network.ip("target", "link", "set", "wide", "up")
        network.run("target", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for words in (
            ("address", "add", "10.3.0.2/24", "dev", "narrow"),
            ("link", "set", "narrow", "up"),
            ("route", "add", "default", "via", "10.3.0.1"),
        ):
            assert run("ip", "-n", far, *words).returncode == 0
        network.nets.lead("proxy", "10.3.0.0/24", via=TARGET[4])
        with inside(far):
            target = UdpEcho("10.3.0.2")
        with (
            target,
            network.proxy(f'udp_target = ["{target.text}"]\n{control(network)}') as proxy,
            network.client(proxy) as client,
        ):
            # As QUIC does: nobody but the sender may cut.
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            port = enter(client)
            client.settimeout(0.5)
            for length in (1000, 1400, 1400, 1400):
                with contextlib.suppress(TimeoutError):
                    assert ask(client, bytes(length)) == port
            client.settimeout(PATIENCE)
            assert ask(client, b"1" + bytes(1390)) == port, "cut by the proxy, who knows by now"

            def is_told() -> bool:
                # The flow may have entered anew, as the path to the target has changed, and is not forwarded before a
                # whole packet of each direction: long answers come as fragments.
                assert ask(client, b"1") == port
                return ask(client, b"1" + bytes(1390)) == port and "too big" in status(network)

            eventually(is_told, "the kernel leaves it to the sockets")


def test_an_odd_packet_of_a_flow_in_the_kernel_is_served_all_the_same(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'udp_target = ["{target.text}"]\n{control(network)}') as proxy,
        network.client(proxy) as client,
    ):
        port = enter(client)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x07\x07\x04\0\0\0\0\0")  # record route
        assert ask(client, b"with options") == port
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"")
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        assert ask(client, b"at the end of its hops") == port
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        assert ask(client, b"in pieces" * 1000) == port
        left = status(network)
        assert all(why in left for why in ("options", "hop limit", "fragment")), left
        assert ask(client, b"as usual") == port


def test_differentiated_services_and_congestion_marks_are_kept(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'udp_target = ["{target.text}"]') as proxy,
        network.client(proxy) as client,
        capture(network, "target", "cable1b") as seen,
    ):
        enter(client)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB9)
        enter(client)
        marked = wait_for_lines(seen, "tos 0xb9,ECT(1)", ENOUGH)
    assert all("> 10.2.0.1" in line for line in marked)


def test_a_flow_follows_its_route_to_another_interface(network: Network) -> None:
    network.nets.join("proxy", "10.4.0.2/24", "target", "10.4.0.1/24")
    network.ip("target", "address", "add", "10.9.0.1/32", "dev", "lo")
    network.ip("proxy", "route", "add", "10.9.0.1/32", "via", "10.2.0.1", "src", "10.2.0.2")
    for name in ("proxy", "target"):
        network.run(name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2")
    with (
        network.echo("10.9.0.1") as target,
        network.proxy(f'udp_target = ["{target.text}"]') as proxy,
        network.client(proxy) as client,
    ):
        port = enter(client)
        before = network.in_kernel(proxy)
        network.ip("proxy", "route", "replace", "10.9.0.1/32", "via", "10.4.0.1", "src", "10.2.0.2")
        network.ip("target", "link", "set", "cable1b", "down")
        network.ip("target", "route", "add", "10.2.0.2/32", "via", "10.4.0.2")

        def is_answered() -> bool:
            client.settimeout(0.2)
            try:
                return ask(client, b"there?") == port
            except TimeoutError:
                return False

        eventually(is_answered, "the other way is taken")
        with contextlib.suppress(TimeoutError):
            while client.recv(100):  # answers to what had to wait
                pass
        client.settimeout(PATIENCE)
        assert enter(client) == port
        assert enter(client) == port
        eventually(lambda: network.in_kernel(proxy) > before, "by the kernel again")


def test_targets_that_refuse_are_left_for_others_as_ever(network: Network) -> None:
    """An ICMP error about a packet that the kernel forwarded arrives at the flow's socket."""
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'udp_target = ["{target.text}"]') as proxy,
        network.client(proxy) as client,
    ):
        port = enter(client)
        target.close()
        for _ in range(3):
            client.send(b"anybody there?")
            proxy.wait_for("refuses datagrams")
        with network.at("target"):
            again = UdpEcho(TARGET[4], target.port)
        with again:
            client.send(b"now?")
            assert client.recv(100) == b"%d now?" % port


def test_a_reload_takes_flows_out_and_puts_them_in_again(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'udp_target = ["{target.text}"]') as proxy,
        network.client(proxy) as client,
    ):
        head = 'listen_address_v4 = "0.0.0.0"\nlisten_ipv6 = true\n'
        port = enter(client)
        proxy.reload(f'{head}kernel_path = "off"\nudp_target = ["{target.text}"]', 2)
        proxy.wait_for("kernel path: not used: the configuration has no use for it")
        with network.at("proxy"):
            eventually(lambda: attached_to(1) == [], "it is taken away")
        before = eventually(lambda: network.in_kernel(proxy), "what there was is counted")
        assert enter(client) == port
        eventually(lambda: network.metric(proxy, "worker_kernel_flows") == 0, "none is in there")
        assert network.in_kernel(proxy) == before

        proxy.reload(f'{head}kernel_path = "on"\nudp_target = ["{target.text}"]', 3)
        assert enter(client) == port
        eventually(lambda: network.metric(proxy, "worker_kernel_flows") == 1, "in the kernel again")


def test_one_route_can_stay_out(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(
            f'kernel_path = "off"\nudp_target = ["{target.text}"]\n[protocols.wg]\nprotocol = "wireguard"\n'
            f'target = ["{target.text}"]\nkernel_path = "auto"\n'
        ) as proxy,
        network.client(proxy) as plain,
        network.client(proxy) as vpn,
    ):
        for _ in range(3):
            enter(plain)
        assert ask(vpn, b"\1" + bytes(147))
        for _ in range(3):
            enter(vpn)
        eventually(lambda: network.metric(proxy, "worker_kernel_flows") == 1, "one flow is in")


def test_a_worker_that_dies_leaves_nothing_in_the_kernel(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'workers = 1\nudp_target = ["{target.text}"]') as proxy,
        network.client(proxy) as client,
    ):
        proxy.expect_trouble("has died")
        port = enter(client)
        enter(client)
        (pid,) = proxy.worker_pids().values()
        eventually(lambda: process_state(pid) == "S", "what its sockets sent is counted, too")
        run("kill", "-9", str(pid))
        proxy.wait_for("worker 1 is process")
        eventually(lambda: proxy.worker_pids().get(1, pid) != pid and network.metric(proxy, "workers") == 1)
        # All that the dead one's flow forwarded is counted, and its client goes to the same target from another port.
        client.settimeout(PATIENCE)
        assert {ask(client, b"again") for _ in range(ENOUGH)} != {port}
        eventually(lambda: network.metric(proxy, "datagrams_total") == 6 * ENOUGH, "nothing is lost to the books")


def test_more_workers_and_another_program_keep_every_flow(network: Network) -> None:
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'workers = 1\nslots = 4\nudp_target = ["{target.text}"]') as proxy,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(network.client(proxy)) for _ in range(12)]
        ports = [enter(client) for client in clients]
        proxy.signal(signal.SIGTTIN)
        proxy.wait_for("slots have moved")
        eventually(lambda: network.metric(proxy, "worker_kernel_flows") == 12, "all are in the kernel still")
        assert [ask(client, b"moved") for client in clients] == ports
        proxy.signal(signal.SIGUSR2)
        proxy.wait_for("upgraded to version")
        assert [enter(client) for client in clients] == ports
        assert [enter(client) for client in clients] == ports
        eventually(lambda: network.metric(proxy, "worker_kernel_flows") == 12, "all are in the kernel again")
        total = 12 * (3 * ENOUGH + 1)
        eventually(lambda: network.metric(proxy, "datagrams_total") == 2 * total, "nothing is lost to the books")


NOT_TO_BE_HAD: Final[dict[str, tuple[list[Rule], str]]] = {
    "sandbox": ([deny("bpf", errno.EPERM)], "it needs the capabilities CAP_BPF and CAP_NET_ADMIN"),
    "no such call": ([deny("bpf")], "this kernel, or a sandbox, has no bpf(2)"),
    "old kernel": ([deny("bpf", errno.EINVAL)], "Invalid argument"),
}


@pytest.mark.skipif(not seccomp.is_supported(), reason="the numbers of system calls are not known")
@pytest.mark.parametrize("name", NOT_TO_BE_HAD)
def test_where_it_cannot_be_had_the_service_is_the_same(network: Network, name: str) -> None:
    rules, why = NOT_TO_BE_HAD[name]
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(
            f'udp_target = ["{target.text}"]\n{control(network)}', launcher=seccomp.arguments(rules)
        ) as proxy,
        network.client(proxy) as client,
    ):
        assert why in proxy.wait_for("kernel path: not used")
        assert enter(client) == enter(client)
        assert status(network) == f"kernel path:   not used: {why}"


@pytest.mark.skipif(not seccomp.is_supported(), reason="the numbers of system calls are not known")
def test_on_a_kernel_without_links_filters_do_the_same_and_are_gone_at_the_end(network: Network) -> None:
    launcher = seccomp.arguments([Rule("bpf", errno.EINVAL, ((0, BPF_LINK_CREATE),))])
    with network.echo(TARGET[4]) as target:
        with (
            network.proxy(f'kernel_path = "on"\nudp_target = ["{target.text}"]', launcher=launcher) as proxy,
            network.client(proxy) as client,
        ):
            proxy.wait_for("kernel path: in use: clsact on cable0b, cable1a, lo")
            port = enter(client)
            assert enter(client) == port
            eventually(lambda: network.in_kernel(proxy) >= 2 * ENOUGH, "the kernel forwards")
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("upgraded to version")
            assert enter(client) == port
            with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
                assert [len(netlink.filters(link.number)) for link in netlink.links()] == [1, 1, 1]
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            assert [netlink.filters(link.number) for link in netlink.links()] == [[], [], []]


def test_on_insists(network: Network) -> None:
    """Without the privileges, a start is refused, and so is a reload."""
    launcher = ("setpriv", "--bounding-set=-bpf,-sys_admin,-net_admin", "--inh-caps=-bpf,-sys_admin,-net_admin")
    why = 'kernel_path = "on" is not possible: it needs the capabilities CAP_BPF and CAP_NET_ADMIN'
    with network.echo(TARGET[4]) as target:
        with (
            network.proxy(f'udp_target = ["{target.text}"]', launcher=launcher) as proxy,
            network.client(proxy) as client,
        ):
            proxy.expect_trouble("the configuration was not reloaded")
            proxy.wait_for("kernel path: not used: it needs the capabilities")
            port = enter(client)
            proxy.write(f'listen_address_v4 = "0.0.0.0"\nkernel_path = "on"\nudp_target = ["{target.text}"]')
            proxy.signal(signal.SIGHUP)
            proxy.wait_for(why)
            assert enter(client) == port
        refused = Proxy(
            network.folder, f'kernel_path = "on"\nudp_target = ["{target.text}"]', netns=network.nets["proxy"],
            launcher=launcher,
        )  # fmt: skip
        refused.start()
        assert refused.wait_end() == 69
        assert refused.log() == [f"rpxy-l4: {why}"]


def test_two_capabilities_are_enough(network: Network) -> None:
    """And one more, to come to the files of this test; on old kernels, CAP_PERFMON and the limit of locked memory."""
    major, minor, *_ = map(int, re.findall("[0-9]+", os.uname().release))
    old = "" if (major, minor) >= (6, 12) else ",+perfmon"
    launcher = (
        *("sh", "-c", 'ulimit -l unlimited 2>/dev/null; exec "$@"', "sh"),
        "setpriv",
        "--inh-caps=-all",
        f"--bounding-set=-all,+bpf,+net_admin,+dac_override{old}",
    )
    with (
        network.echo(TARGET[4]) as target,
        network.proxy(f'kernel_path = "on"\nudp_target = ["{target.text}"]', launcher=launcher) as proxy,
        network.client(proxy) as client,
    ):
        assert ("without CAP_PERFMON" in proxy.wait_for("kernel path: in use")) == (not old)
        enter(client)
        enter(client)
        eventually(lambda: network.in_kernel(proxy) >= 2 * ENOUGH, "the kernel forwards")


@pytest.mark.parametrize("place", [LOCAL, TARGET], ids=["local", "remote"])
def test_an_http3_download_is_exact_while_packets_are_lost(
    network: Network, place: dict[int, str], tls_files: Callable[[str], TlsFiles]
) -> None:
    """One in a hundred, on both sides of the proxy."""
    rules = (
        "table inet loss { chain lossy { type filter hook input priority 0; "
        "meta l4proto udp numgen random mod 100 < 1 counter drop\n}\n}"
    )
    for name in ("client", "target"):
        network.run(name, "nft", rules)
    with (
        http3_at(network, place[4], tls_files("web.test")) as target,
        network.proxy(f'[protocols.web]\nprotocol = "quic"\ntarget = ["{target.text}"]\n') as proxy,
        network.at("client"),
    ):
        got = asyncio.run(http3_get(proxy.port, "web.test", ["/bytes/1000000"], host=PROXY[4]))
        assert got.bodies == ("x" * 1_000_000,)
        eventually(lambda: network.in_kernel(proxy) > 500, "the kernel has forwarded")
    assert "packets 0 bytes 0" not in network.run("client", "nft", "list", "ruleset")


@pytest.mark.alone
def test_iperf3_sends_bursts_through_the_kernel(network: Network) -> None:
    with Program("iperf3", "--server", "--bind", TARGET[4], tcp=5201, netns=network.nets["target"]):
        target = f"{TARGET[4]}:5201"
        with network.proxy(f'tcp_target = ["{target}"]\nudp_target = ["{target}"]\n') as proxy:
            said = network.run(
                *("client", "iperf3", "--client", PROXY[4], "--port", str(proxy.port), "--udp", "--bitrate", "100M"),
                *("--time", "1", "--length", "1200", "--json"),
            )
            sums = json.loads(said)["end"]["sum"]
            assert sums["packets"] > 1000
            assert sums["lost_percent"] < 1


@pytest.mark.parametrize("place", [LOCAL, TARGET], ids=["local", "remote"])
def test_clients_behind_a_tunnel_are_served_by_the_kernel(network: Network, place: dict[int, str]) -> None:
    """Packets of a tunnel's interface have no hardware addresses; where they leave, they need some."""
    with (
        tunnel_to_proxy(network) as host,
        network.echo(place[4]) as target,
        network.proxy(f'kernel_path = "on"\nudp_target = ["{target.text}"]') as proxy,
        network.at("client"),
        proxy.udp(host) as client,
    ):
        port = enter(client)
        assert enter(client) == port
        eventually(lambda: network.in_kernel(proxy) >= 2 * ENOUGH, "the kernel forwards")


def test_where_addresses_are_translated_the_sockets_go_on(network: Network) -> None:
    """The proxy's target is a port that this host translates to another address, as for a container."""
    rules = (
        "table ip translation {\nchain out {\ntype nat hook output priority -100\n"
        "ip daddr 127.0.0.1 udp dport 7777 dnat to 10.2.0.1:7778\n}\n"
        "chain post {\ntype nat hook postrouting priority 100\nip daddr 10.2.0.1 masquerade\n}\n}"
    )
    network.run("proxy", "nft", rules)
    network.run("proxy", "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    with network.at("target"):
        target = UdpEcho(TARGET[4], 7778)
    with (
        target,
        network.proxy(f'udp_target = ["127.0.0.1:7777"]\n{control(network)}') as proxy,
        network.client(proxy) as client,
    ):
        proxy.admin_port = 9448
        port = enter(client)
        assert enter(client) == port
        assert "unproven" in status(network)
        eventually(lambda: network.metric(proxy, "datagrams_total") == 4 * ENOUGH, "all by the sockets")
        assert network.in_kernel(proxy) == 0


def test_nothing_stays_in_the_kernel(network: Network) -> None:
    with network.echo(TARGET[4]) as target:
        with network.proxy(f'udp_target = ["{target.text}"]') as proxy, network.client(proxy) as client:
            enter(client)
            with network.at("proxy"):
                assert [len(attached_to(number)) for number in interfaces()] == [1, 1, 1]
        with network.at("proxy"):
            assert [attached_to(number) for number in interfaces()] == [[], [], []]


def test_nothing_stays_in_the_kernel_when_all_are_killed(network: Network) -> None:
    needs_links()
    with network.echo(TARGET[4]) as target:
        with network.proxy(f'udp_target = ["{target.text}"]') as proxy, network.client(proxy) as client:
            proxy.expect_trouble("the supervisor is gone")
            enter(client)
            run("kill", "-9", *map(str, (proxy.pid, *proxy.worker_pids().values())))
            proxy.wait_end()
        with network.at("proxy"):
            eventually(lambda: [attached_to(number) for number in interfaces()] == [[], [], []], "all is as before")
