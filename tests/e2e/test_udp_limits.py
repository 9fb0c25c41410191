"""A flood of new flows must not cost what is there already."""

from __future__ import annotations

import socket

from tests.e2e.conftest import StartProxy
from tests.support.targets import TcpTarget, UdpTarget, echo


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
