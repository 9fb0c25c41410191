"""The two logs: where they go, how they are rotated, and that nobody can flood them."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from pathlib import Path

from tests.e2e.conftest import StartProxy
from tests.support.hellos import openssl_hello
from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, UdpTarget, read_all, reports
from tests.support.waiting import eventually


def one_session(proxy: Proxy) -> None:
    with proxy.connect() as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"here\n"


def test_log_dir_holds_both_logs_and_usr1_opens_them_again(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with TcpTarget(reports("here")) as target:
        proxy = Proxy(tmp_path, f'tcp_target = ["{target.text}"]\n', arguments=("--log-dir", str(logs)))
        proxy.start()
        eventually((logs / "rpxy-l4.log").exists, "the log exists")
        eventually(lambda: "generation 1 applied on" in (logs / "rpxy-l4.log").read_text(), "it serves")
        one_session(proxy)
        access = logs / "access.log"
        eventually(lambda: access.read_text().count("event=session") == 1, "the first session is logged")

        for name in ("access.log", "rpxy-l4.log"):
            (logs / name).rename(logs / f"{name}.1")
        proxy.signal(signal.SIGUSR1)
        eventually(access.exists, "the log was opened again")
        # Each process opens for itself; sessions go on until every worker has a line in the new file.
        workers: set[str] = set()

        def both_wrote() -> bool:
            one_session(proxy)
            workers.update(line.rpartition("worker=")[2] for line in access.read_text().splitlines())
            return len(workers) == 2

        eventually(both_wrote, "both workers write to the new file")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_end() == 0
        assert (logs / "rpxy-l4.log").exists()
        assert proxy.log() == []
        assert proxy.access_lines() == []


def test_an_access_line_holds_all_that_is_known(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'[protocols.secure]\nprotocol = "tls"\ntarget = ["localhost:{target.port}"]\n')
        hello = openssl_hello("Example.COM", ["h2", "http/1.1"])
        with proxy.connect() as client:
            source = client.getsockname()[1]
            client.sendall(hello)
            client.shutdown(socket.SHUT_WR)
            read_all(client)

        session = proxy.wait_for_session()
        expected = {
            "event": "session",
            "client": f"127.0.0.1:{source}",
            "listener": f":{proxy.port}",
            "transport": "tcp",
            "detected": "tls",
            "sni": "example.com",
            "alpn": "h2,http/1.1",
            "route": "secure",
            "target": f"localhost:{target.port}",
            "bytes_in": str(len(hello)),
            "bytes_out": str(len("here\n") + len(hello)),
            "reason": "client_eof",
        }
        assert {key: session.get(key) for key in expected} == expected
        assert {"ts", "detect_ms", "connect_ms", "duration_ms", "worker"} <= session.keys()


def test_a_flood_of_bad_clients_does_not_flood_the_log(start_proxy: StartProxy) -> None:
    proxy = start_proxy('[protocols.shell]\nprotocol = "ssh"\ntarget = ["127.0.0.1:1"]\n')
    for _ in range(400):
        with proxy.connect() as client:
            client.sendall(b"\x00garbage")
    proxy.wait_for_metric("sessions_rejected_total", 400, reason="no_route")

    assert 0 < len(proxy.access_lines()) <= 100
    assert len(proxy.log()) < 30


def test_what_a_client_sends_cannot_forge_a_line(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'[protocols.secure]\nprotocol = "tls"\ntarget = ["{target.text}"]\n')
        with proxy.connect() as client:
            client.sendall(openssl_hello("example.com", ["x\nevent=session route=forged y", 'a"b\x1b[31m']))
            client.shutdown(socket.SHUT_WR)
            read_all(client)

        session = proxy.wait_for_session(route="secure")
        assert "\x1b" not in session["alpn"]
        assert len(proxy.access_lines()) == 1


def test_a_reader_that_does_not_read_stops_nothing(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\nworkers = 1\n', reads_access_log=False)
        for _ in range(1000):  # a pipe holds 64 KiB, some 250 lines
            one_session(proxy)

        assert proxy.wait_for_metric("log_lines_dropped_total", 1, stream="access")


def test_a_reload_turns_the_access_log_on_and_off_for_the_sessions_that_begin_after_it(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target, UdpTarget() as udp_target:
        routes = (
            f'udp_target = ["{udp_target.text}"]\nudp_idle_lifetime = "1ms"\n'
            f'[protocols.shell]\nprotocol = "ssh"\ntarget = ["{target.text}"]\n'
        )
        proxy = start_proxy(f"access_log = false\n{routes}")

        def begin_session() -> socket.socket:
            before = proxy.metric("sessions_total", protocol="tcp")
            client = proxy.connect()
            client.sendall(b"SSH-2.0-it\r\n")
            proxy.wait_for_metric("sessions_total", before + 1, protocol="tcp")
            return client

        def finish(client: socket.socket) -> None:
            with client:
                client.shutdown(socket.SHUT_WR)
                read_all(client)

        def one_of_each(nth: int) -> None:
            """A TCP session, a refused one and a UDP flow; the nth of each that ended."""
            finish(begin_session())
            with proxy.connect() as client:
                client.sendall(b"\x00garbage")
                read_all(client)
            with proxy.udp() as client:
                client.send(b"x")
                client.recv(100)
            proxy.wait_for_metric("sessions_closed_total", nth, protocol="tcp")
            proxy.wait_for_metric("sessions_closed_total", nth, protocol="udp")
            proxy.wait_for_metric("sessions_rejected_total", nth, reason="no_route")

        without = begin_session()
        one_of_each(1)
        proxy.reload(f"access_log = true\n{routes}", generation=2)
        logged = begin_session()
        one_of_each(2)
        proxy.reload(f"access_log = false\n{routes}", generation=3)
        one_of_each(3)
        finish(without)
        finish(logged)
        proxy.wait_for_metric("sessions_closed_total", 5, protocol="tcp")

        proxy.signal(signal.SIGTERM)
        assert proxy.wait_end() == 0
        lines = Counter((line["event"], line["transport"]) for line in proxy.access_lines())
        assert lines == {("session", "tcp"): 2, ("refused", "tcp"): 1, ("session", "udp"): 1}
