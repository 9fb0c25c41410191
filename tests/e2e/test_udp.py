"""The UDP path: flows, addresses, endings, and datagrams that arrive as they were sent."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
from typing import Final

from tests.e2e.conftest import StartProxy
from tests.support.ports import free_port
from tests.support.targets import UdpTarget
from tests.support.waiting import PATIENCE, pass_time

UDP_SEGMENT: Final = 103
"""Socket option of udp(7) that Python has no name for: one write becomes datagrams of this size."""

WIREGUARD_INITIATION: Final = b"\1\0\0\0" + bytes(range(144))


def ask(client: socket.socket, data: bytes) -> bytes:
    """Send a datagram and return the next one that comes."""
    client.send(data)
    return client.recv(65_536)


def test_datagrams_go_to_the_default_target_and_back(start_proxy: StartProxy) -> None:
    with UdpTarget("echo") as target:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\nudp_idle_lifetime = 1\n')
        with proxy.udp() as client:
            assert ask(client, b"one") == b"echo:one"
            assert ask(client, b"three") == b"echo:three"
            source = client.getsockname()[1]

        session = proxy.wait_for_session(transport="udp")
        assert session["client"] == f"127.0.0.1:{source}"
        assert (session["route"], session["target"]) == ("default", target.text)
        assert (session["datagrams_in"], session["datagrams_out"]) == ("2", "2")
        assert (session["bytes_in"], session["bytes_out"]) == ("8", "18")
        assert session["reason"] == "idle"
        assert len(target.sources) == 1


def test_wireguard_is_recognised_and_the_rest_goes_to_the_default(start_proxy: StartProxy) -> None:
    with UdpTarget("wg") as wireguard, UdpTarget("other") as other:
        proxy = start_proxy(f"""
udp_target = ["{other.text}"]
[protocols.vpn]
protocol = "wireguard"
target = ["{wireguard.text}"]
idle_lifetime = 1
""")
        with proxy.udp() as client, proxy.udp() as stranger:
            assert ask(client, WIREGUARD_INITIATION) == b"wg:" + WIREGUARD_INITIATION
            # What follows in a flow belongs to it, whatever it looks like.
            assert ask(client, b"data") == b"wg:data"
            assert ask(stranger, WIREGUARD_INITIATION[:-1]) == b"other:" + WIREGUARD_INITIATION[:-1]

        assert proxy.wait_for_session(route="vpn")["detected"] == "wireguard"


def test_what_nothing_matches_is_dropped_without_a_default(start_proxy: StartProxy) -> None:
    with UdpTarget() as target:
        proxy = start_proxy(f'[protocols.vpn]\nprotocol = "wireguard"\ntarget = ["{target.text}"]\n')
        with proxy.udp() as client:
            client.send(b"nothing we know")
            proxy.wait_for_metric("datagrams_dropped_total", 1, reason="no_route")
            assert ask(client, WIREGUARD_INITIATION) == WIREGUARD_INITIATION

        assert len(target.received) == 1


def test_the_answer_comes_from_the_address_the_client_used(start_proxy: StartProxy) -> None:
    with UdpTarget() as target:
        proxy = start_proxy(
            f'listen_address_v4 = "0.0.0.0"\nlisten_address_v6 = "::"\nudp_target = ["{target.text}"]\n'
        )
        for host in ("127.0.0.1", "127.0.0.7", "127.9.9.9", "::1"):
            with proxy.udp(host) as client:  # connected: an answer from elsewhere would not be received
                assert ask(client, host.encode()) == host.encode()


def test_one_client_socket_and_two_of_our_addresses_are_two_flows(start_proxy: StartProxy) -> None:
    with UdpTarget() as target, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        proxy = start_proxy(f'listen_address_v4 = "0.0.0.0"\nudp_target = ["{target.text}"]\n')
        client.settimeout(PATIENCE)
        for host in ("127.0.0.1", "127.0.0.7"):
            client.sendto(host.encode(), (host, proxy.port))
            assert client.recvfrom(100) == (host.encode(), (host, proxy.port))

        assert len(target.sources) == 2


def test_ipv6_clients_and_targets(start_proxy: StartProxy) -> None:
    with UdpTarget("six", host="::1") as target:
        proxy = start_proxy(f'listen_address_v6 = "::1"\nudp_target = ["{target.text}"]\n')
        for host in ("::1", "127.0.0.1"):
            with proxy.udp(host) as client:
                assert ask(client, b"x") == b"six:x"


def test_a_target_may_be_a_name(start_proxy: StartProxy) -> None:
    with UdpTarget("named") as target:
        proxy = start_proxy(f'udp_target = ["localhost:{target.port}"]\n')
        with proxy.udp() as client:
            assert ask(client, b"x") == b"named:x"


def test_datagrams_of_any_size_arrive_as_they_were_sent(start_proxy: StartProxy) -> None:
    chance = random.Random(3)
    sizes = [0, 1, 1199, 1200, 1201, 1472, 1473, 9000, 65_507]
    with UdpTarget() as target:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\n')
        with proxy.udp() as client:
            for size in sizes:
                data = chance.randbytes(size)
                assert ask(client, data) == data

        assert [len(data) for _, data in target.received] == sizes


def test_a_burst_keeps_its_order_and_its_borders(start_proxy: StartProxy) -> None:
    # Equal sizes are what the kernel merges; a shorter one ends a merge, a longer one begins another. Few enough that
    # they fit a socket's buffer, even where nobody has time to read meanwhile.
    burst = [bytes([number]) * (900 if number % 10 else 100 + number) for number in range(40)]
    with UdpTarget() as target:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\n')
        with proxy.udp() as client:
            assert ask(client, b"first") == b"first"
            for data in burst:
                client.send(data)
            answers = [client.recv(65_536) for _ in burst]

        assert target.wait_for(1 + len(burst))[1:] == burst
        assert answers == burst


def test_a_segmented_write_of_the_client_arrives_as_single_datagrams(start_proxy: StartProxy) -> None:
    parts = [bytes([number]) * 1200 for number in range(30)] + [b"short"]
    with UdpTarget() as target:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\n')
        with proxy.udp() as client:
            assert ask(client, b"first") == b"first"
            client.sendmsg([b"".join(parts)], [(socket.IPPROTO_UDP, UDP_SEGMENT, (1200).to_bytes(2, "little"))])
            answers = [client.recv(65_536) for _ in parts]

        assert target.wait_for(1 + len(parts))[1:] == parts
        assert answers == parts


def test_either_direction_keeps_a_flow_alive(start_proxy: StartProxy) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(PATIENCE)
        proxy = start_proxy(f'udp_target = ["127.0.0.1:{target.getsockname()[1]}"]\nudp_idle_lifetime = 1\n')
        with proxy.udp() as client:
            client.send(b"subscribe")
            _, flow = target.recvfrom(100)
            for number in range(8):  # 3.2 s, three lifetimes, in which only the target speaks
                pass_time(0.4)
                target.sendto(b"%d" % number, flow)
                assert client.recv(100) == b"%d" % number

        assert proxy.wait_for_session()["datagrams_out"] == "8"


def test_flows_beyond_the_limit_are_refused_until_one_has_ended(start_proxy: StartProxy) -> None:
    with UdpTarget() as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\nudp_max_connections = 3\nudp_idle_lifetime = 1\n')
        for _ in range(3):
            client = stack.enter_context(proxy.udp())
            # Twice: a client that has sent but once gives way.
            assert ask(client, b"x") == ask(client, b"x") == b"x"
        with proxy.udp() as fourth:
            fourth.send(b"too many")
            proxy.wait_for_metric("datagrams_dropped_total", 1, reason="limit")
            proxy.wait_for_sessions(3, reason="idle")
            assert ask(fourth, b"now") == b"now"


def test_an_icmp_error_from_a_target_ends_nothing(start_proxy: StartProxy) -> None:
    port = free_port()
    proxy = start_proxy(f'udp_target = ["127.0.0.1:{port}"]\n')
    with proxy.udp() as client:
        client.send(b"nobody there")
        proxy.wait_for_metric("datagrams_dropped_total", 1, reason="icmp")
        with UdpTarget("back", port=port) as target:
            assert ask(client, b"hello again") == b"back:hello again"
            assert len(target.sources) == 1


def test_a_client_that_went_away_harms_no_other_flow(start_proxy: StartProxy) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(PATIENCE)
        proxy = start_proxy(f'udp_target = ["127.0.0.1:{target.getsockname()[1]}"]\nworkers = 1\n')
        with proxy.udp() as staying:
            staying.send(b"staying")
            _, flow = target.recvfrom(100)
            with proxy.udp() as leaving:
                leaving.send(b"leaving")
                _, dead_flow = target.recvfrom(100)
            for number in range(20):
                target.sendto(b"to nobody", dead_flow)  # comes back as port unreachable
                target.sendto(b"%d" % number, flow)
                assert staying.recv(100) == b"%d" % number


def test_source_ip_keeps_a_client_on_one_target(start_proxy: StartProxy) -> None:
    with UdpTarget("a") as a, UdpTarget("b") as b:
        proxy = start_proxy(f'udp_target = ["{a.text}", "{b.text}"]\nudp_load_balance = "source_ip"\n')
        seen: dict[str, set[bytes]] = {}
        for number in range(1, 17):
            source = f"127.0.0.{number}"
            for _ in range(3):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(PATIENCE)
                    client.bind((source, 0))
                    client.connect(proxy.address)
                    seen.setdefault(source, set()).add(ask(client, b"x"))

    assert all(len(names) == 1 for names in seen.values())
    assert set.union(*seen.values()) == {b"a:x", b"b:x"}


def test_a_target_that_refuses_is_passed_over_before_the_client_notices(start_proxy: StartProxy) -> None:
    dead = free_port()
    with UdpTarget("alive") as alive:
        proxy = start_proxy(f'udp_target = ["127.0.0.1:{dead}", "{alive.text}"]\nudp_idle_lifetime = 1\n')
        with proxy.udp() as client:
            client.send(b"one")
            assert client.recv(100) == b"alive:one"
            client.send(b"two")
            assert client.recv(100) == b"alive:two"
        proxy.wait_for(f"target 127.0.0.1:{dead} (127.0.0.1) refuses datagrams")
        line = proxy.wait_for_session(transport="udp")
        assert (line["target"], line["tries"], line["datagrams_in"]) == (alive.text, "2", "2")
        assert proxy.metric("sessions_closed_total", target=f"127.0.0.1:{dead}", reason="connect_refused") == 1
        assert proxy.metric("sessions", protocol="udp") == 0


def test_a_quiet_flow_does_not_hold_up_a_stop(start_proxy: StartProxy) -> None:
    with UdpTarget("t") as target:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\nudp_idle_lifetime = 3600\ndrain_timeout = "1h"\n')
        with proxy.udp() as client:
            for _ in range(2):  # the second confirms the flow, which would end by itself otherwise
                client.send(b"one")
                assert client.recv(100) == b"t:one"
            proxy.signal(signal.SIGTERM)
            # Sooner than the hour, once the flow has been quiet for a few seconds.
            assert proxy.wait_end() == 0
        assert proxy.wait_for_session(transport="udp")["reason"] == "drain"
