"""TCP connections that go through the kernel from their first packet on, between hosts."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Final

import pytest

from rpxy_l4.balance import rank
from rpxy_l4.kernel.netlink import Netlink
from rpxy_l4.snapshot import LoadBalance, Target
from tests.support import openssh, seccomp
from tests.support.descriptors import no_more_descriptors
from tests.support.hosts import (
    CLIENT,
    LOCAL,
    OTHER,
    PROXY,
    TARGET,
    Network,
    by_kernel,
    by_pieces,
    capture,
    connect,
    control,
    exchange,
    status,
    target_at,
    tunnel_to_proxy,
    wait_for_lines,
    warm_up,
)
from tests.support.kernel_path import attached_to, needs_links
from tests.support.netns import Namespaces, inside
from tests.support.peers import Program, run
from tests.support.proxy import process_title
from tests.support.resources import open_links
from tests.support.seccomp import Rule
from tests.support.targets import TcpTarget, answers, digests, echo, read_all, read_exactly, reset
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.netns

SIZE: Final = 3_000_000
HEAD: Final = 'listen_address_v4 = "0.0.0.0"\nlisten_ipv6 = true\n'
"""What :meth:`Network.proxy` adds to a configuration, for those of a reload."""
BPF_LINK_CREATE: Final = 28
MOVING: Final = "10.9.0.1"
TO_TARGET: Final = (("target", "cable1b"), ("proxy", "cable1a"))
"""The ends of a cable."""


class Handed:
    """A handler that hands its connections to the test, which closes them."""

    def __init__(self) -> None:
        self._connections: SimpleQueue[socket.socket] = SimpleQueue()

    def __call__(self, connection: socket.socket) -> None:
        self._connections.put(connection.dup())

    def next(self) -> socket.socket:
        connection = self._connections.get(timeout=PATIENCE)
        connection.settimeout(PATIENCE)
        return connection


def goes_on(client: socket.socket, data: bytes) -> None:
    """What is sent comes back."""
    client.sendall(data)
    assert read_exactly(client, len(data)) == data


@pytest.mark.parametrize("place", [LOCAL, TARGET], ids=["local", "remote"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_goes_by_the_kernel_and_is_counted_like_any_other(
    network: Network, family: int, place: dict[int, str]
) -> None:
    data = random.Random(1).randbytes(SIZE)
    expected = f"one {SIZE} {hashlib.sha256(data).hexdigest()}".encode()
    with (
        target_at(network, place[family], digests("one")) as target,
        network.proxy(f'kernel_path = "on"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        assert "TCP: 896 connections at most" in proxy.wait_for("kernel path: in use")
        warm_up(network, proxy, PROXY[family])
        for _ in range(5):
            assert exchange(network, proxy, data, PROXY[family]) == expected
        for session in by_kernel(proxy, 5):
            assert session["client"].rpartition(":")[0].strip("[]") == CLIENT[family]
            assert session["target"] == target.text
            assert (session["route"], session["detected"], session["reason"]) == ("default", "skipped", "client_eof")
            assert (session["bytes_in"], session["bytes_out"]) == (str(SIZE), str(len(expected)))
            assert float(session["duration_ms"]) >= float(session["connect_ms"]) >= 0
        eventually(lambda: network.metric(proxy, "sessions_total") == 6, "all are counted")
        assert network.metric(proxy, "kernel_connections_total") == 5
        assert network.metric(proxy, "kernel_connections") == network.metric(proxy, "sessions") == 0
        with network.at("proxy"):
            assert proxy.metric("bytes_total", direction="in") == 5 * SIZE + 5
            assert proxy.metric("sessions_closed_total", reason="client_eof") == 6
            assert proxy.metric("target_connects_total", result="ok") == 6
            assert proxy.metric("session_duration_seconds_count") == 6
            assert proxy.metric("target_connect_duration_seconds_count") == 6
            assert proxy.metric("detections_total", result="skipped") == 6


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_on_the_proxys_own_host_is_served_by_the_kernel_too(network: Network, family: int) -> None:
    with (
        target_at(network, LOCAL[family], echo) as near,
        network.proxy(f'tcp_target = ["{near.text}"]') as proxy,
    ):
        for host in (LOCAL[family], PROXY[family]):
            warm_up(network, proxy, host, at="proxy")
            assert exchange(network, proxy, b"to here" * 1000, host, at="proxy") == b"to here" * 1000
        assert {session["bytes_in"] for session in by_kernel(proxy, 2)} == {"7000"}


def set_offloads(network: Network, of_ends: str) -> None:
    """Also where ends leave a checksum to be finished by a device, the proxy's device does it."""
    for name, interface, tx in (
        ("client", "cable0a", of_ends),
        ("proxy", "cable0b", "off"),
        ("proxy", "cable1a", "off"),
        ("target", "cable1b", of_ends),
    ):
        # What ends receive is not joined: tcpdump shall see it as it is on the wire.
        gro = tx if name == "proxy" else "off"
        network.run(name, "ethtool", "-K", interface, "tx", tx, "gso", tx, "gro", gro, "tso", tx)


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("family", [4, 6])
def test_whatever_is_sent_arrives_with_valid_checksums(network: Network, family: int, offload: str) -> None:
    set_offloads(network, offload)
    data = random.Random(2).randbytes(100_000)
    with (
        target_at(network, TARGET[family], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy, PROXY[family])
        with (
            capture(network, "target", "cable1b", "tcp") as at_target,
            capture(network, "client", "cable0a", "tcp") as at_client,
        ):
            assert exchange(network, proxy, data, PROXY[family]) == data
            by_kernel(proxy)
            for seen, end in (
                (at_target, f"> {TARGET[family]}.{target.port}:"),
                (at_client, f" {PROXY[family]}.{proxy.port} > "),
            ):
                lines = wait_for_lines(seen, end, 5)
                assert [line for line in lines if "(correct)" not in line] == []


@pytest.mark.parametrize("policy", [LoadBalance.SOURCE_IP, LoadBalance.SOURCE_SOCKET])
@pytest.mark.parametrize("family", [4])
def test_the_kernel_chooses_the_target_that_user_space_would(
    two_targets: Network, policy: LoadBalance, family: int
) -> None:
    network, rng = two_targets, random.Random(5)
    with (
        target_at(network, TARGET[family], answers("one")) as one,
        target_at(network, OTHER, answers("two")) as two,
        network.proxy(f'tcp_target = ["{one.text}", "{two.text}"]\ntcp_load_balance = "{policy}"') as proxy,
    ):
        targets = tuple(Target(each.text, each.host, each.port, is_name=False) for each in (one, two))
        for number in range(24):
            network.ip("client", "address", "add", f"10.1.0.{100 + number}/24", "dev", "cable0a")
        found = set()
        for number in range(24):
            host = f"10.1.0.{100 + number}"
            for port in rng.sample(range(20_000, 30_000), 3):
                with network.at("client"):
                    client = socket.create_connection((PROXY[4], proxy.port), PATIENCE, (host, port))
                with client:
                    client.sendall(b"x")
                    name = read_exactly(client, 3)
                expected = rank(policy, targets, host, port, random.Random(0))[0]
                assert name == (b"one" if expected is targets[0] else b"two")
                found.add(name)
        assert found == {b"one", b"two"}
        by_kernel(proxy, 40)


def test_random_and_none_choose_as_they_say(two_targets: Network) -> None:
    network = two_targets
    with (
        target_at(network, TARGET[4], answers("one")) as one,
        target_at(network, OTHER, answers("two")) as two,
        network.proxy(f'tcp_target = ["{one.text}", "{two.text}"]\ntcp_load_balance = "random"') as proxy,
    ):
        names = [exchange(network, proxy)[:3] for _ in range(40)]
        assert 5 < names.count(b"one") < 35
        by_kernel(proxy, 20)
        proxy.reload(f'{HEAD}tcp_target = ["{two.text}", "{one.text}"]\n', 2)
        assert {exchange(network, proxy)[:3] for _ in range(10)} == {b"two"}
        by_kernel(proxy, 25)


def test_a_target_that_refuses_is_left_for_another_and_found_again(two_targets: Network) -> None:
    network = two_targets
    with (
        target_at(network, OTHER, answers("two")) as two,
        contextlib.ExitStack() as stack,
    ):
        one = stack.enter_context(target_at(network, TARGET[4], answers("one")))
        with network.proxy(f'tcp_target = ["{one.text}", "{two.text}"]\n{control(network)}') as proxy:
            warm_up(network, proxy)
            assert exchange(network, proxy)[:3] == b"one"
            by_kernel(proxy, 1)
            stack.close()
            assert [exchange(network, proxy)[:3] for _ in range(5)] == [b"two"] * 5
            assert "1 refused" in status(network)
            with target_at(network, TARGET[4], answers("one"), one.port):
                assert [exchange(network, proxy)[:3] for _ in range(3)] == [b"one"] * 3
                by_kernel(proxy, 3, target=one.text)


@pytest.mark.slow
def test_a_target_that_is_silent_is_left_for_another(two_targets: Network) -> None:
    """It takes the client's second SYN after the first to be sure."""
    network = two_targets
    with (
        target_at(network, TARGET[4], answers("one")) as one,
        target_at(network, OTHER, answers("two")) as two,
        network.proxy(
            f'tcp_target = ["{one.text}", "{two.text}"]\ntcp_connect_timeout = "300ms"\n{control(network)}'
        ) as proxy,
    ):
        warm_up(network, proxy)
        assert exchange(network, proxy)[:3] == b"one"
        rule = f"tcp dport {one.port} drop"
        network.run(
            "target", "nft", f"table inet deaf {{ chain in {{ type filter hook input priority 0; {rule}\n}}\n}}"
        )
        assert exchange(network, proxy)[:3] == b"two"
        assert exchange(network, proxy)[:3] == b"two"
        network.run("target", "nft", "delete", "table", "inet", "deaf")
        proxy.admin_port = 9448
        assert exchange(network, proxy)[:3] == b"one"
        with network.at("proxy"):
            eventually(lambda: proxy.metric("target_connects_total", result="timeout") >= 2, "it is counted")


def test_each_end_of_a_connection_is_told_for_what_it_is(network: Network) -> None:
    handed = Handed()
    with (
        target_at(network, TARGET[4], handed) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        with connect(network, proxy) as client:
            handed.next().close()
            assert client.recv(1) == b""
        for reason in ("client_eof", "target_eof", "client_reset", "target_reset"):
            client = connect(network, proxy)
            server = handed.next()
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            first, second = (client, server) if reason.startswith("client") else (server, client)
            if reason.endswith("reset"):
                reset(first)
                with pytest.raises(ConnectionResetError):
                    second.recv(100)
            else:
                first.shutdown(socket.SHUT_WR)
                assert second.recv(100) == b""
                second.sendall(b"one thing more")
                assert first.recv(100) == b"one thing more"
                first.close()
            second.close()
            (session,) = by_kernel(proxy, 1, reason=reason)
            more = {"client_eof": (8, 20), "target_eof": (22, 6)}.get(reason, (8, 6))
            assert (int(session["bytes_in"]), int(session["bytes_out"])) == more
        eventually(lambda: network.metric(proxy, "kernel_connections_total") == 4, "all are counted")
        assert network.metric(proxy, "kernel_connections") == 0


def test_a_port_that_a_target_remembers_is_its_clients_again(network: Network) -> None:
    """TIME_WAIT at the target: a client's port leads to the same port there, and nobody else's does."""
    seen: list[tuple[str, int]] = []

    def says_and_closes(connection: socket.socket) -> None:
        seen.append(connection.getpeername())
        connection.sendall(b"done")

    with (
        target_at(network, TARGET[4], says_and_closes) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        with connect(network, proxy) as client:
            assert read_all(client) == b"done"
        network.run("client", "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1")
        ports = []
        for port in (20_001, 20_002, 20_001, 20_001, 20_002):
            with connect(network, proxy, port=port) as client:
                assert read_all(client) == b"done"
            ports.append(seen[-1][1])
            by_kernel(proxy, len(ports))
        assert ports[0] == ports[2] == ports[3]
        assert ports[1] == ports[4] != ports[0]


def test_no_more_connections_than_the_limit_are_open(network: Network) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_max_connections = 80\ntcp_target = ["{target.text}"]\n{control(network)}') as proxy,
        contextlib.ExitStack() as stack,
    ):
        warm_up(network, proxy)
        proxy.wait_for_sessions(1)
        for _ in range(80):
            client = stack.enter_context(connect(network, proxy))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        proxy.admin_port = 9448
        eventually(lambda: network.metric(proxy, "kernel_connections") == 16, "near the limit, user space counts")
        with pytest.raises(ConnectionResetError), connect(network, proxy) as client:
            client.recv(1)
        assert "65 limit" in status(network)


def test_connections_outlive_a_reload_a_worker_and_the_kernel_path_being_turned_off(network: Network) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'workers = 1\ntcp_target = ["{target.text}"]') as proxy,
    ):
        proxy.expect_trouble("has died")
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            goes_on(client, b"before")
            proxy.reload(f'{HEAD}workers = 1\ntcp_target = ["{target.text}"]\ntcp_backlog = 99', 2)
            goes_on(client, b"after a reload")
            (pid,) = proxy.worker_pids().values()
            run("kill", "-9", str(pid))
            proxy.wait_for("worker 1 is process")
            goes_on(client, b"without the worker")
            proxy.reload(f'{HEAD}workers = 1\ntcp_target = ["{target.text}"]\nkernel_path = "off"', 3)
            proxy.wait_for("kernel path: not used")
            goes_on(client, b"turned off")
            eventually(lambda: network.metric(proxy, "sessions") == 1, "it is counted as open")
            assert exchange(network, proxy, b"new") == b"new"
            proxy.reload(f'{HEAD}workers = 1\ntcp_target = ["{target.text}"]', 4)
            goes_on(client, b"turned on")
            warm_up(network, proxy)
            assert exchange(network, proxy, b"new again") == b"new again"
        (session,) = by_kernel(proxy, 1, bytes_in=str(len("beforeafter a reloadwithout the workerturned offturned on")))
        assert session["reason"] == "client_eof"
        by_kernel(proxy, 1, bytes_in="9")
        eventually(lambda: network.metric(proxy, "sessions") == 0, "nothing is left open in the books")
        with network.at("proxy"):
            eventually(lambda: len(attached_to(1)) == 1, "the program of before is gone")


def test_a_limit_beyond_the_table_has_another_one_beside_it(network: Network) -> None:
    with target_at(network, TARGET[4], echo) as target:

        def config(most: int) -> str:
            return f'{HEAD}tcp_max_connections = {most}\ntcp_target = ["{target.text}"]'

        with network.proxy(f'tcp_max_connections = 1000\ntcp_target = ["{target.text}"]') as proxy:
            warm_up(network, proxy)
            with connect(network, proxy) as client, network.at("proxy"):
                for generation, most, programs in ((2, 4000, 1), (3, 5000, 2), (4, 8000, 2), (5, 500, 2)):
                    proxy.reload(config(most), generation)
                    goes_on(client, b"still there")
                    assert len(attached_to(1)) == programs, most
                    warm_up(network, proxy)
                    assert exchange(network, proxy) == b"hello"
            by_kernel(proxy, 1, bytes_in="44")
            with network.at("proxy"):
                eventually(lambda: len(attached_to(1)) == 1, "the one of before is gone")
            by_kernel(proxy, 4, bytes_in="5")
            eventually(lambda: network.metric(proxy, "sessions") == 0, "nothing is left open in the books")


def test_connections_outlive_an_upgrade(network: Network) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'workers = 1\ntcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            goes_on(client, b"before")
            for count in (1, 2):
                proxy.signal(signal.SIGUSR2)
                proxy.wait_for("upgraded to version", count=count)
                goes_on(client, b"after")
                warm_up(network, proxy)
                assert exchange(network, proxy, b"new") == b"new"
                eventually(lambda: network.metric(proxy, "sessions") == 1, "it is counted as open")
        by_kernel(proxy, 1, bytes_in="16", reason="client_eof")
        by_kernel(proxy, 2, bytes_in="3")
        eventually(lambda: network.metric(proxy, "sessions") == 0, "nothing is left open in the books")
        assert network.metric(proxy, "sessions_total") == 6


def test_nothing_is_lost_while_everything_changes(network: Network) -> None:
    """Connections that come and go, and some that stay, over reloads, more and fewer workers and an upgrade."""
    over, failures, exchanges = threading.Event(), SimpleQueue[str](), itertools.count()

    def comes_and_goes(data: bytes) -> None:
        while not over.is_set():
            try:
                with connect(network, proxy) as client:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    if read_all(client) != data:
                        failures.put("not exact")
                next(exchanges)
            except OSError as error:
                failures.put(f"{error!r}")

    def stays(data: bytes) -> None:
        try:
            with connect(network, proxy) as client:
                while not over.is_set():
                    client.sendall(data)
                    if read_exactly(client, len(data)) != data:
                        failures.put("a long one is not exact")
                client.shutdown(socket.SHUT_WR)
                if client.recv(1):
                    failures.put("a long one has no end")
        except OSError as error:
            failures.put(f"a long one: {error!r}")

    rng = random.Random(8)
    config = f'{HEAD}workers = 2\nslots = 4\ndrain_timeout = "10s"\n'
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'workers = 2\nslots = 4\ndrain_timeout = "10s"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        threads = [
            threading.Thread(target=job, args=(rng.randbytes(size),))
            for job, size in ((comes_and_goes, 100), (comes_and_goes, 30_000), (stays, 1000), (stays, 60_000))
        ]
        for thread in threads:
            thread.start()
        try:
            for generation in (2, 3):
                proxy.reload(f'{config}tcp_target = ["{target.text}"]\ntcp_backlog = {100 + generation}', generation)
            proxy.signal(signal.SIGTTIN)
            proxy.wait_for("slots have moved")
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("upgraded to version")
            proxy.reload(f'{config}tcp_target = ["{target.text}"]\nkernel_path = "off"', 5)
            proxy.reload(f'{config}tcp_target = ["{target.text}"]', 6)
            so_far = next(exchanges)
            eventually(lambda: next(exchanges) > so_far + 100, "it goes on")
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert failures.empty(), failures.get()
        eventually(lambda: network.metric(proxy, "sessions") == 0, "nothing is left open in the books")
        assert network.metric(proxy, "sessions_total") == network.metric(proxy, "sessions_closed_total")
        assert network.metric(proxy, "kernel_connections_total") > 50


def test_a_stop_waits_for_connections_and_then_ends_them(network: Network) -> None:
    with target_at(network, TARGET[4], echo) as target:
        for patience, is_ended_by_us in (("30s", False), ("500ms", True)):
            config = f'drain_timeout = "{patience}"\ntcp_target = ["{target.text}"]'
            with network.proxy(config) as proxy:
                warm_up(network, proxy)
                with connect(network, proxy) as client:
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
                    proxy.signal(signal.SIGTERM)
                    proxy.wait_for("draining 1 sessions")
                    if not is_ended_by_us:
                        eventually(lambda: network.metric(proxy, "kernel_connections") == 1, "it says so")
                        client.sendall(b"y")
                        assert client.recv(1) == b"y"
                        client.close()
                    assert proxy.wait_end() == 0
                    (session,) = by_kernel(proxy)
                    assert session["reason"] == ("drain" if is_ended_by_us else "client_eof")
                    if is_ended_by_us:
                        client.sendall(b"z")
                        with pytest.raises(ConnectionResetError):
                            client.recv(1)


def test_connections_of_a_removed_target_end_after_the_drain_timeout(two_targets: Network) -> None:
    network = two_targets
    more = 'drain_timeout = "300ms"\non_route_removed = "drain"\n'
    with (
        target_at(network, TARGET[4], echo) as one,
        target_at(network, OTHER, echo) as two,
        network.proxy(f'{more}tcp_target = ["{one.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.reload(f'{HEAD}{more}tcp_target = ["{two.text}"]', 2)
            (session,) = by_kernel(proxy, 1, reason="drain")
            assert (session["target"], session["bytes_in"]) == (one.text, "1")
            client.sendall(b"y")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_removed_target_is_remembered_over_an_upgrade(two_targets: Network) -> None:
    network = two_targets
    more = 'drain_timeout = "2s"\non_route_removed = "drain"\n'
    with (
        target_at(network, TARGET[4], echo) as one,
        target_at(network, OTHER, echo) as two,
        network.proxy(f'{more}tcp_target = ["{one.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.reload(f'{HEAD}{more}tcp_target = ["{two.text}"]', 2)
            proxy.signal(signal.SIGUSR2)
            proxy.wait_for("upgraded to version")
            by_kernel(proxy, 1, reason="drain", target=one.text)


def test_ends_that_finish_at_once_lose_nothing(network: Network) -> None:
    """The client's last data is lost behind us, while the target finishes, too."""
    handed = Handed()
    with (
        target_at(network, TARGET[4], handed) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        with connect(network, proxy) as client:
            handed.next().close()
            assert client.recv(1) == b""
        with connect(network, proxy) as client:
            server = handed.next()
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            drop = "table inet deaf { chain in { type filter hook input priority 0; meta l4proto tcp drop\n}\n}"
            network.run("target", "nft", drop)
            client.sendall(b"y" * 3000)
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b"", "the client has its end, and acknowledges it"
            network.run("target", "nft", "delete", "table", "inet", "deaf")
            assert read_all(server) == b"y" * 3000
            server.close()
        by_kernel(proxy, 1, bytes_in="3001")


@pytest.mark.parametrize("family", [4, 6])
def test_ends_send_no_longer_segments_than_both_ways_take(network: Network, family: int) -> None:
    for name, interface in (("proxy", "cable1a"), ("target", "cable1b")):
        network.ip(name, "link", "set", interface, "mtu", "1300")
    data = random.Random(3).randbytes(500_000)
    with (
        target_at(network, TARGET[family], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]\n{control(network)}') as proxy,
    ):
        warm_up(network, proxy, PROXY[family])
        assert exchange(network, proxy, data, PROXY[family]) == data
        by_kernel(proxy)
        assert "too big" not in status(network)


@pytest.mark.parametrize("side", ["client", "target"])
def test_a_router_that_wants_shorter_packets_is_heard_by_the_end_that_it_means(network: Network, side: str) -> None:
    """Path MTU discovery: the way behind the neighbour is narrow, and only its router knows."""
    with Namespaces("far") as more:
        far, near = more["far"], network.nets[side]
        cable = ("link", "add", "wide", "netns", near, "mtu", "1280", "type", "veth")
        assert run("ip", *cable, "peer", "name", "narrow", "netns", far, "mtu", "1280").returncode == 0
        network.ip(side, "address", "add", "10.7.0.1/24", "dev", "wide")
        network.ip(side, "link", "set", "wide", "up")
        network.run(side, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for words in (
            ("address", "add", "10.7.0.2/24", "dev", "narrow"),
            ("link", "set", "narrow", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", "10.7.0.1"),
        ):
            assert run("ip", "-n", far, *words).returncode == 0
        network.nets.lead("proxy", "10.7.0.0/24", via=CLIENT[4] if side == "client" else TARGET[4])
        # It says what it takes (MSS) as if all the way were as wide as its neighbours'.
        assert run("ip", "-n", far, "route", "replace", "default", "via", "10.7.0.1", "advmss", "1460").returncode == 0
        data = random.Random(4).randbytes(400_000)
        with contextlib.ExitStack() as stack:
            if side == "target":
                with inside(far):
                    target = TcpTarget(echo, "10.7.0.2")
                stack.enter_context(target)
            else:
                target = stack.enter_context(target_at(network, TARGET[4], echo))
            proxy = stack.enter_context(network.proxy(f'tcp_target = ["{target.text}"]'))
            for _ in range(2):
                with inside(far if side == "client" else network.nets["client"]):
                    client = socket.create_connection((PROXY[4], proxy.port), PATIENCE)
                with client:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    assert read_all(client) == data
            by_kernel(proxy)


def becomes_narrower(network: Network, client: socket.socket, cable: Iterable[tuple[str, str]], data: bytes) -> None:
    """Have a cable take less from now on; what is sent then comes back all the same."""
    for name, interface in cable:
        network.ip(name, "link", "set", interface, "mtu", "1300")
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    assert read_exactly(client, len(data)) == data
    thread.join(PATIENCE)


@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("side", ["client", "target"])
def test_open_connections_go_on_where_the_way_becomes_narrower(
    network: Network, side: str, family: int, offload: str
) -> None:
    """Nobody but this host knows, and there is no socket here that would say so."""
    set_offloads(network, offload)
    cable = TO_TARGET if side == "target" else (("client", "cable0a"), ("proxy", "cable0b"))
    data = random.Random(5).randbytes(300_000)
    with (
        target_at(network, TARGET[family], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]\n{control(network)}') as proxy,
    ):
        warm_up(network, proxy, PROXY[family])
        with connect(network, proxy, PROXY[family]) as client:
            for _ in range(2):
                goes_on(client, data[:100])
            becomes_narrower(network, client, cable, data)
        by_kernel(proxy, 1, bytes_in=str(len(data) + 200), bytes_out=str(len(data) + 200))
        assert "too big" in status(network)


def lead_to_moving_target(network: Network) -> None:
    """Have the target have an address behind its own."""
    network.ip("target", "address", "add", f"{MOVING}/32", "dev", "lo")
    network.ip("proxy", "route", "add", f"{MOVING}/32", "via", "10.2.0.1", "src", "10.2.0.2")
    for name in ("proxy", "target"):
        network.run(name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2")


def move_route(network: Network) -> None:
    """Lead to it, and back, by the second cable between proxy and target."""
    network.ip("proxy", "route", "replace", f"{MOVING}/32", "via", "10.4.0.1", "src", "10.2.0.2")
    network.ip("target", "link", "set", "cable1b", "down")
    network.ip("target", "route", "add", "10.2.0.2/32", "via", "10.4.0.2")


@pytest.mark.parametrize("what", ["off", "larger", "upgrade", "off and upgrade"])
def test_connections_of_before_follow_their_route_to_a_new_interface(network: Network, what: str) -> None:
    """Their program begins nothing any more, and another one may be there."""
    lead_to_moving_target(network)
    with (
        target_at(network, MOVING, echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            goes_on(client, b"one way")
            keys = "tcp_max_connections = 9000" if what == "larger" else 'kernel_path = "off"'
            if what != "upgrade":
                proxy.reload(f'{HEAD}{keys}\ntcp_target = ["{target.text}"]', 2)
            if "upgrade" in what:
                proxy.signal(signal.SIGUSR2)
                proxy.wait_for("upgraded to version")
            network.nets.join("proxy", "10.4.0.2/24", "target", "10.4.0.1/24")
            move_route(network)
            goes_on(client, b"another")
        by_kernel(proxy, 1, bytes_in="14")
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            counts = [0 if "off" in what else 1] * len(numbers := [link.number for link in netlink.links()])
            eventually(lambda: [len(attached_to(number)) for number in numbers] == counts, "that of before is gone")


def test_clients_behind_a_tunnel_hear_that_the_way_becomes_narrower(network: Network) -> None:
    """Packets of a tunnel's interface have no hardware addresses."""
    data = random.Random(6).randbytes(300_000)
    with (
        tunnel_to_proxy(network) as host,
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]\n{control(network)}') as proxy,
    ):
        warm_up(network, proxy, host)
        with connect(network, proxy, host) as client:
            goes_on(client, data[:100])
            becomes_narrower(network, client, TO_TARGET, data)
        by_kernel(proxy, 1, bytes_in=str(len(data) + 100))
        assert "too big" in status(network)


def test_a_connection_is_exact_while_packets_are_lost(network: Network) -> None:
    """One in a hundred, in all four places; both ends send them again."""
    rules = (
        "table inet loss { chain lossy { type filter hook input priority 0; "
        "meta l4proto tcp numgen random mod 100 < 1 counter drop\n}\n}"
    )
    data = random.Random(6).randbytes(2_000_000)
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        for name, interface in (("client", "cable0a"), ("target", "cable1b")):
            network.run(name, "nft", rules)
            # Otherwise these are a few packets of 64 KiB, of which none may be lost.
            network.run(name, "ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off")
        for _ in range(3):
            assert by_pieces(network, proxy, data) == data
        # Not what was sent, but what has arrived.
        for session in by_kernel(proxy, 3):
            assert (session["bytes_in"], session["bytes_out"]) == ("2000000", "2000000")
    assert "packets 0 bytes 0" not in network.run("client", "nft", "list", "ruleset")


def test_what_a_packet_filter_lets_not_in_is_not_let_in_by_the_kernel(network: Network) -> None:
    rules = "table inet wall { chain in { type filter hook input priority 0; ip saddr 10.1.0.66 counter drop\n}\n}"
    network.ip("client", "address", "add", "10.1.0.66/24", "dev", "cable0a")
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        network.run("proxy", "nft", rules)
        warm_up(network, proxy)
        assert exchange(network, proxy) == b"hello"
        by_kernel(proxy)
        with network.at("client"), pytest.raises(TimeoutError):
            socket.create_connection((PROXY[4], proxy.port), 2.0, ("10.1.0.66", 0))


def test_where_a_targets_address_is_translated_the_sockets_go_on(network: Network) -> None:
    rules = (
        "table ip translation {\nchain out {\ntype nat hook output priority -100\n"
        "ip daddr 127.0.0.1 tcp dport 7777 dnat to 10.2.0.1:7778\n}\n"
        "chain post {\ntype nat hook postrouting priority 100\nip daddr 10.2.0.1 masquerade\n}\n}"
    )
    network.run("proxy", "nft", rules)
    network.run("proxy", "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    with (
        target_at(network, TARGET[4], echo, 7778),
        network.proxy(f'tcp_target = ["127.0.0.1:7777"]\n{control(network)}') as proxy,
    ):
        for _ in range(5):
            assert exchange(network, proxy) == b"hello"
        assert len(proxy.wait_for_sessions(5)) == 5
        assert "4 target" in status(network)
        proxy.admin_port = 9448
        assert network.metric(proxy, "kernel_connections_total") == 0


def test_a_connection_follows_its_route_to_another_interface(network: Network) -> None:
    network.nets.join("proxy", "10.4.0.2/24", "target", "10.4.0.1/24")
    lead_to_moving_target(network)
    with (
        target_at(network, MOVING, echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            goes_on(client, b"one way")
            move_route(network)
            goes_on(client, b"another")
        by_kernel(proxy, 1, bytes_in="14")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('[protocols.web]\nprotocol = "http"\ntarget = ["127.0.0.1:1"]', "protocols are detected"),
        ('tcp_send_proxy_protocol = "v2"', "PROXY headers are read or written"),
        ("tcp_max_new_per_second = 100", "tcp_max_new_per_second is kept"),
    ],
)
def test_what_needs_user_space_stays_there(network: Network, config: str, why: str) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]\nudp_target = ["{target.text}"]\n{config}') as proxy,
    ):
        assert f"TCP: no connections, as {why}" in proxy.wait_for("kernel path: in use")
        for _ in range(3):
            assert exchange(network, proxy).endswith(b"hello")
        assert {session["worker"] for session in proxy.wait_for_sessions(3)} <= {"1", "2"}


def test_ipsec_policies_keep_connections_in_user_space(network: Network) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'tcp_target = ["{target.text}"]\n{control(network)}') as proxy,
    ):
        network.run("proxy", "ip", "xfrm", "policy", "add", "src", "10.99.0.0/24", "dst", "10.98.0.0/24", "dir", "out")
        eventually(lambda: "as this host has policies of IPsec" in status(network), "it is noticed")
        for _ in range(3):
            assert exchange(network, proxy) == b"hello"
        network.run("proxy", "ip", "xfrm", "policy", "flush")
        eventually(lambda: "896 connections at most" in status(network), "it is noticed")
        warm_up(network, proxy)
        assert exchange(network, proxy) == b"hello"
        by_kernel(proxy)
        assert len(proxy.wait_for_sessions(5)) == 5


@pytest.mark.skipif(not seccomp.is_supported(), reason="the numbers of system calls are not known")
def test_on_a_kernel_without_links_connections_outlive_an_upgrade_too(network: Network) -> None:
    launcher = seccomp.arguments([Rule("bpf", 22, ((0, BPF_LINK_CREATE),))])
    with target_at(network, TARGET[4], echo) as target:
        with network.proxy(f'tcp_target = ["{target.text}"]', launcher=launcher) as proxy:
            proxy.wait_for("kernel path: in use: clsact")
            warm_up(network, proxy)
            with connect(network, proxy) as client:
                goes_on(client, b"before")
                proxy.signal(signal.SIGUSR2)
                proxy.wait_for("upgraded to version")
                goes_on(client, b"after")
            by_kernel(proxy, 1, bytes_in="11")
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            assert [netlink.filters(link.number) for link in netlink.links()] == [[], [], []]


def test_ssh_goes_by_the_kernel(network: Network) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(openssh.sshd(network.folder, netns=network.nets["proxy"]))
        proxy = stack.enter_context(network.proxy(f'tcp_target = ["127.0.0.1:{server.port}"]'))
        for number in range(2):
            said = network.run("client", *server.client(proxy.port, f"echo over {number}", host=PROXY[4]))
            assert said == f"over {number}\n"
        by_kernel(proxy)


def test_iperf3_goes_by_the_kernel_both_ways(network: Network) -> None:
    with (
        Program("iperf3", "--server", "--bind", TARGET[4], tcp=5201, netns=network.nets["target"]),
        network.proxy(f'tcp_target = ["{TARGET[4]}:5201"]') as proxy,
    ):
        for way in ((), ("--reverse",)):
            said = network.run(
                *("client", "iperf3", "--client", PROXY[4], "--port", str(proxy.port), "--time", "1", "--json"),
                *("--parallel", "4", *way),
            )
            assert json.loads(said)["end"]["sum_received"]["bytes"] > 10_000_000
        assert any(int(session["bytes_in"]) > 1_000_000 for session in by_kernel(proxy, 8))


def test_signals_do_not_keep_it_from_being_loaded(network: Network) -> None:
    """The kernel's verifier gives up when one comes."""
    over = threading.Event()

    def sends() -> None:
        while not over.wait(0.005):
            proxy.signal(signal.SIGUSR1)

    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'kernel_path = "off"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        thread = threading.Thread(target=sends)
        thread.start()
        try:
            for generation in range(2, 8):
                way = "off" if generation % 2 else "on"
                proxy.reload(f'{HEAD}kernel_path = "{way}"\ntcp_target = ["{target.text}"]', generation)
        finally:
            over.set()
            thread.join(PATIENCE)
        assert not [line for line in proxy.log() if "refuses the program" in line]


@pytest.mark.parametrize("then", ["drain", "serve"])
def test_connections_outlive_the_supervisor(network: Network, then: str) -> None:
    needs_links()
    keys = 'drain_timeout = "60s"\n'
    network.ip("proxy", "link", "add", "early", "type", "veth", "peer", "early2")
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'{keys}on_supervisor_loss = "{then}"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        proxy.expect_trouble("the supervisor is gone")
        workers = proxy.worker_pids().values()
        children = list(proxy.children())
        # What workers hold changes with the interfaces.
        network.ip("proxy", "link", "delete", "early")
        network.ip("proxy", "link", "add", "late", "type", "veth", "peer", "late2")
        with network.at("proxy"):
            late = socket.if_nametoindex("late")
            eventually(lambda: attached_to(late), "it is attached there")
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            goes_on(client, b"before")
            proxy.signal(signal.SIGKILL)
            proxy.wait_for("the supervisor is gone", count=2)
            goes_on(client, b"alone")
            if then == "serve":
                for _ in range(3):
                    assert exchange(network, proxy, b"new") == b"new"
                assert len(proxy.wait_for_sessions(4)) == 4, "all of them by the sockets"
                goes_on(client, b"beside others")
                for pid in workers:
                    os.kill(pid, signal.SIGTERM)
            proxy.wait_for("finishing the TCP sessions that are open", count=2)
            goes_on(client, b"in the end")
            with network.at("proxy"):
                assert attached_to(late)
        eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            numbers = [link.number for link in netlink.links()]
            eventually(lambda: [attached_to(number) for number in numbers] == [[]] * 5, "all is as before")


@pytest.mark.skipif(not seccomp.is_supported(), reason="the numbers of system calls are not known")
def test_on_a_kernel_without_links_connections_outlive_the_supervisor_until_the_next_start(network: Network) -> None:
    keys = 'drain_timeout = "60s"\n'
    launcher = seccomp.arguments([Rule("bpf", 22, ((0, BPF_LINK_CREATE),))])
    with target_at(network, TARGET[4], echo) as target:
        with network.proxy(f'{keys}tcp_target = ["{target.text}"]', launcher=launcher) as proxy:
            proxy.expect_trouble("the supervisor is gone")
            children = list(proxy.children())
            warm_up(network, proxy)
            with connect(network, proxy) as client:
                goes_on(client, b"there")
                proxy.signal(signal.SIGKILL)
                # Long before the drain timeout: it does not depend on them.
                eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")
                goes_on(client, b"still there")
        with network.proxy(f'kernel_path = "off"\ntcp_target = ["{target.text}"]'):
            pass
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            assert [netlink.filters(link.number) for link in netlink.links()] == [[], [], []]


def test_what_could_not_be_held_for_want_of_descriptors_is_held_later(network: Network) -> None:
    needs_links()
    keys = 'workers = 1\ndrain_timeout = "60s"\n'
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'{keys}kernel_path = "off"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        proxy.expect_trouble("the supervisor is gone|out of descriptors")
        (pid,) = proxy.worker_pids().values()
        children = list(proxy.children())
        with no_more_descriptors(pid):
            proxy.write(f'{HEAD}{keys}tcp_target = ["{target.text}"]')
            proxy.signal(signal.SIGHUP)
            proxy.wait_for("out of descriptors")
        proxy.wait_for("generation 2 applied on")
        eventually(lambda: open_links(pid).count("anon_inode:bpf_link") == 3, "it holds one for each interface")
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.signal(signal.SIGKILL)
            proxy.wait_for("the supervisor is gone")
            client.sendall(b"y")
            assert client.recv(1) == b"y"
        eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")


def test_without_a_supervisor_connections_beside_those_in_the_kernel_have_the_whole_limit(network: Network) -> None:
    needs_links()
    keys = 'tcp_max_connections = 100\non_supervisor_loss = "serve"\n'
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'{keys}tcp_target = ["{target.text}"]\n{control(network)}') as proxy,
        contextlib.ExitStack() as stack,
    ):
        proxy.expect_trouble("the supervisor is gone")
        workers = proxy.worker_pids().values()
        warm_up(network, proxy)
        with contextlib.ExitStack() as early:
            for _ in range(20):
                early.enter_context(connect(network, proxy))
            proxy.admin_port = 9448
            eventually(lambda: network.metric(proxy, "kernel_connections") == 20, "they are in the kernel, and counted")
            proxy.signal(signal.SIGKILL)
            proxy.wait_for("the supervisor is gone", count=2)
        for _ in range(100):
            client = stack.enter_context(connect(network, proxy))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def test_without_a_supervisor_connections_end_with_the_drain_timeout(network: Network) -> None:
    needs_links()
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'drain_timeout = "300ms"\ntcp_target = ["{target.text}"]') as proxy,
    ):
        proxy.expect_trouble("the supervisor is gone")
        children = list(proxy.children())
        warm_up(network, proxy)
        with connect(network, proxy) as client:
            proxy.signal(signal.SIGKILL)
            proxy.wait_for("closing what is still open: 1 sessions", count=2)
            eventually(lambda: not any(process_title(pid) for pid in children), "the children have ended")
            with network.at("proxy"):
                eventually(lambda: not attached_to(1), "nobody holds it any more")
            client.sendall(b"late")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_what_workers_hold_keeps_nothing_in_the_kernel_that_the_supervisor_has_ended(network: Network) -> None:
    with (
        target_at(network, TARGET[4], echo) as target,
        network.proxy(f'workers = 1\ntcp_target = ["{target.text}"]') as proxy,
    ):
        warm_up(network, proxy)
        assert exchange(network, proxy) == b"hello"
        by_kernel(proxy, 1)
        (pid,) = proxy.worker_pids().values()
        os.kill(pid, signal.SIGSTOP)
        try:
            proxy.write(f'{HEAD}workers = 1\nkernel_path = "off"\ntcp_target = ["{target.text}"]')
            proxy.signal(signal.SIGHUP)
            proxy.wait_for("kernel path: not used")
            with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
                assert [attached_to(link.number) for link in netlink.links()] == [[], [], []]
        finally:
            os.kill(pid, signal.SIGCONT)
        proxy.wait_for("generation 2 applied")


def test_nothing_stays_in_the_kernel_when_all_are_killed(network: Network) -> None:
    needs_links()
    with target_at(network, TARGET[4], echo) as target:
        with network.proxy(f'tcp_target = ["{target.text}"]') as proxy:
            proxy.expect_trouble("the supervisor is gone")
            warm_up(network, proxy)
            exchange(network, proxy)
            run("kill", "-9", *map(str, (proxy.pid, *proxy.worker_pids().values())))
            proxy.wait_end()
        with network.at("proxy"), contextlib.closing(Netlink()) as netlink:
            numbers = [link.number for link in netlink.links()]
            eventually(lambda: [attached_to(number) for number in numbers] == [[], [], []], "all is as before")
