"""/metrics as Prometheus sees it."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from tests.e2e.conftest import StartProxy
from tests.support.peers import run
from tests.support.targets import TcpTarget, UdpTarget, echo, read_all, read_exactly, reports
from tests.support.waiting import eventually

PROMISED: Final = {
    "build_info",
    "config_info",
    "config_last_reload_successful",
    "config_reloads_total",
    "workers",
    "worker_restarts_total",
    "sessions",
    "sessions_total",
    "sessions_closed_total",
    "sessions_rejected_total",
    "bytes_total",
    "datagrams_total",
    "datagrams_dropped_total",
    "detections_total",
    "session_duration_seconds_bucket",
    "kernel_path_info",
    "worker_kernel_flows",
    "kernel_datagrams_total",
    "kernel_connections",
    "kernel_connections_total",
}


def test_every_promised_metric_is_there_and_promtool_has_no_complaint(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target, UdpTarget() as udp_target:
        proxy = start_proxy(f"""
tcp_target = ["{target.text}"]
udp_target = ["{udp_target.text}"]
[protocols.web]
protocol = "http"
target = ["{target.text}"]
""")
        with proxy.connect() as client, proxy.udp() as flow:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            read_all(client)
            flow.send(b"x")
            assert flow.recv(10) == b"x"
        proxy.wait_for_metric("sessions_closed_total", 1)

        text = proxy.metrics_text()
        names = {name.removeprefix("rpxy_l4_") for name, _ in proxy.metrics()}
        assert names >= PROMISED
        checked = run("promtool", "check", "metrics", input=text)
        assert (checked.returncode, checked.stdout) == (0, "")


def test_the_numbers_are_those_of_all_workers_together(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, UdpTarget() as udp_target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nudp_target = ["{udp_target.text}"]\n')
        clients = [stack.enter_context(proxy.connect()) for _ in range(40)]
        flows = [stack.enter_context(proxy.udp()) for _ in range(40)]
        for client in [*clients, *flows]:
            client.send(b"12345")
            assert read_exactly(client, 5) == b"12345"

        tcp = {"route": "default", "protocol": "tcp", "target": target.text}
        udp = {"route": "default", "protocol": "udp", "target": udp_target.text}
        for labels in (tcp, udp):
            proxy.wait_for_metric("bytes_total", 200, **labels, direction="out")
            assert proxy.metric("sessions", **labels) == 40
            assert proxy.metric("sessions_total", **labels) == 40
            assert proxy.metric("bytes_total", **labels, direction="in") == 200
        assert proxy.metric("datagrams_total", **udp, direction="in") == 40
        assert proxy.metric("detections_total", protocol="tcp", result="skipped") == 40
        assert proxy.metric("workers", state="ready") == 2
        per_worker = [proxy.metric("worker_sessions", worker=str(number), protocol="tcp") for number in (1, 2)]
        assert sum(per_worker) == 40
        assert min(per_worker) > 0  # the kernel spreads clients over the workers

        for client in clients:
            client.close()
        eventually(lambda: proxy.metric("sessions", protocol="tcp") == 0, "all have ended")
        assert proxy.metric("sessions_closed_total", **tcp, reason="client_eof") == 40
        assert proxy.metric("session_duration_seconds_count", protocol="tcp") == 40


def test_no_label_holds_what_a_client_sent(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'[protocols.web]\nprotocol = "http"\ntarget = ["{target.text}"]\n')
        with proxy.connect() as client:
            client.sendall(b"GET /secret-path HTTP/1.1\r\nHost: secret-host\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            read_all(client)
        proxy.wait_for_metric("sessions_closed_total", 1)

        assert "secret" not in proxy.metrics_text()
