"""A flood of new flows must not cost what is there already."""

from __future__ import annotations

import contextlib
import socket

from tests.e2e.conftest import StartProxy
from tests.support.flood import UdpFlood
from tests.support.targets import TcpTarget, UdpTarget, echo, read_exactly
from tests.support.waiting import eventually


def test_flows_leave_the_descriptors_that_a_reload_needs(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as tcp, UdpTarget() as udp:
        config = (
            f'workers = 1\nudp_max_connections = 10000\nudp_idle_lifetime = 60\ntcp_target = ["{tcp.text}"]\n'
            f'udp_target = ["{udp.text}"]\n'
        )
        proxy = start_proxy(config, max_files=(256, 256))
        with proxy.connect() as session:
            session.sendall(b"x")
            assert session.recv(1) == b"x"
            clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(400)]
            for client in clients:
                client.sendto(b"x", proxy.address)
            proxy.wait_for_metric("datagrams_dropped_total", 100, reason="resources")
            proxy.reload(f'listen_address_v4 = ["127.0.0.1", "127.0.0.2"]\n{config}', generation=2)
            session.sendall(b"y")
            assert session.recv(1) == b"y"
            for client in clients:
                client.close()


def test_a_flood_from_made_up_addresses_costs_nothing_that_is_known(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as tcp, UdpTarget() as udp, contextlib.ExitStack() as stack:
        proxy = start_proxy(
            f'udp_max_connections = 200\nudp_idle_lifetime = 60\ntcp_target = ["{tcp.text}"]\n'
            f'udp_target = ["{udp.text}"]\n'
        )
        session = stack.enter_context(proxy.connect())
        known = [stack.enter_context(proxy.udp()) for _ in range(8)]

        def use_all(data: bytes) -> None:
            session.sendall(data)
            for client in known:
                client.send(data)
            assert read_exactly(session, len(data)) == data
            for client in known:
                assert client.recv(100) == data

        use_all(b"first")
        use_all(b"second")
        of_known = proxy.metric("sessions_total", protocol="udp")
        flood = stack.enter_context(UdpFlood(proxy.address))
        for number in range(50):
            # No more at once than a socket of the usual size holds. Those that are known may be served by the kernel:
            # an answer to them does not tell that the others have been received.
            flood.send(100)
            use_all(b"%d" % number)
            eventually(lambda: proxy.metric("sessions_total", protocol="udp") == 8 + flood.sent, "all are received")

        assert of_known == 8
        assert proxy.metric("sessions_closed_total", protocol="udp", reason="evicted") >= flood.sent - 200
        assert proxy.metric("sessions", protocol="udp") <= 250, "no worker knows what another one does at the same time"
        assert proxy.metric("datagrams_dropped_total") == 0
        # Half of the places is nothing that anybody lacks.
        eventually(lambda: proxy.metric("sessions", protocol="udp") <= 100, timeout=7.0)
        assert proxy.metric("sessions_closed_total", protocol="udp", reason="unconfirmed") >= 90
        use_all(b"last")
