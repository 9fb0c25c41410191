"""Reloads: by signal and by a changed file, good and bad, with traffic that must not notice."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.targets import TcpTarget, UdpTarget, answers, echo, endpoint, read_all, read_exactly, reports
from tests.support.udp_echo import UdpEcho, ask
from tests.support.waiting import eventually, pass_time


def tcp_answer(proxy: Proxy, host: str = "127.0.0.1", port: int | None = None) -> bytes:
    with socket.create_connection((host, port or proxy.port)) as client:
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def test_new_sessions_take_the_new_configuration_and_open_ones_keep_theirs(start_proxy: StartProxy) -> None:
    with (
        TcpTarget(answers("old")) as old_tcp,
        TcpTarget(answers("new")) as new_tcp,
        UdpTarget("old") as old_udp,
        UdpTarget("new") as new_udp,
    ):
        proxy = start_proxy(f'tcp_target = ["{old_tcp.text}"]\nudp_target = ["{old_udp.text}"]\n')
        with proxy.connect() as tcp, proxy.udp() as udp:
            tcp.sendall(b"1")
            assert read_exactly(tcp, 5) == b"old\n1"
            udp.send(b"1")
            assert udp.recv(100) == b"old:1"

            proxy.reload(f'tcp_target = ["{new_tcp.text}"]\nudp_target = ["{new_udp.text}"]\n', 2)

            tcp.sendall(b"2")
            assert read_exactly(tcp, 1) == b"2"
            udp.send(b"2")
            assert udp.recv(100) == b"old:2"
            assert len(old_udp.sources) == 1
            with proxy.connect() as again, proxy.udp() as udp_again:
                again.sendall(b"3")
                assert read_exactly(again, 5) == b"new\n3"
                udp_again.send(b"3")
                assert udp_again.recv(100) == b"new:3"

        proxy.wait_for_metric("config_reloads_total", 1, result="success")
        assert proxy.metric("config_info", generation="2") == 1
        assert proxy.metric("worker_restarts_total") == 0


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


@pytest.mark.parametrize("replace", [in_place, by_rename])
def test_a_changed_file_is_noticed(start_proxy: StartProxy, replace: Callable[[Path, str], None]) -> None:
    with TcpTarget(reports("old")) as old, TcpTarget(reports("new")) as new:
        proxy = start_proxy(f'tcp_target = ["{old.text}"]\nwatch = true\n')
        assert tcp_answer(proxy) == b"old\n"

        replace(proxy.path, proxy.complete(f'tcp_target = ["{new.text}"]\nwatch = true\n'))

        proxy.wait_for("generation 2 applied on")
        assert tcp_answer(proxy) == b"new\n"


def test_a_swapped_symbolic_link_is_noticed(tmp_path: Path) -> None:
    # How a mounted Kubernetes ConfigMap changes: config.toml -> ..data/config.toml, ..data -> folder of a version.
    with TcpTarget(reports("old")) as old, TcpTarget(reports("new")) as new:
        proxy = Proxy(tmp_path, f'tcp_target = ["{old.text}"]\nwatch = true\n')
        for version, target in (("v1", old), ("v2", new)):
            (tmp_path / version).mkdir()
            text = proxy.complete(f'tcp_target = ["{target.text}"]\nwatch = true\n')
            (tmp_path / version / "config.toml").write_text(text)
        data, fresh = tmp_path / "..data", tmp_path / "..fresh"
        data.symlink_to("v1")
        proxy.path.unlink()
        proxy.path.symlink_to("..data/config.toml")
        with proxy:
            assert tcp_answer(proxy) == b"old\n"

            fresh.symlink_to("v2")
            fresh.rename(data)

            proxy.wait_for("generation 2 applied on")
            assert tcp_answer(proxy) == b"new\n"


def test_the_same_content_again_changes_nothing(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        config = f'tcp_target = ["{target.text}"]\nwatch = true\n'
        proxy = start_proxy(config)

        in_place(proxy.path, proxy.complete(config))

        proxy.wait_for_metric("config_reloads_total", 1, result="unchanged")
        assert proxy.metric("config_info", generation="1") == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("tcp_target = [\n", ":"),
        ('tcp_targt = ["127.0.0.1:1"]\n', 'unknown key "tcp_targt"; did you mean "tcp_target"?'),
        ('tcp_target = "no array"\n', "tcp_target"),
        ('tcp_target = ["127.0.0.1:99999"]\n', "tcp_target"),
        ('[protocols.web]\nprotocol = "htp"\ntarget = ["127.0.0.1:1"]\n', 'did you mean "http"?'),
        ('[protocols.a]\nprotocol = "ssh"\ntarget = ["127.0.0.1:1"]\n' * 2, ":"),
        ("", "target"),
    ],
)
def test_a_bad_file_is_reported_and_changes_nothing(start_proxy: StartProxy, bad: str, message: str) -> None:
    with TcpTarget(answers("good")) as tcp_target, UdpTarget("good") as udp_target:
        proxy = start_proxy(f'tcp_target = ["{tcp_target.text}"]\nudp_target = ["{udp_target.text}"]\n')
        proxy.expect_trouble("error")
        with proxy.connect() as tcp, proxy.udp() as udp:
            tcp.sendall(b"1")
            assert read_exactly(tcp, 6) == b"good\n1"
            udp.send(b"1")
            assert udp.recv(100) == b"good:1"

            proxy.path.write_text(f"listen_port = {proxy.port}\n{bad}")
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_metric("config_reloads_total", 1, result="failure")
            proxy.wait_for("config.toml:")
            proxy.wait_for(message)

            tcp.sendall(b"2")
            assert read_exactly(tcp, 1) == b"2"
            udp.send(b"2")
            assert udp.recv(100) == b"good:2"
            with proxy.connect() as again:
                again.sendall(b"3")
                assert read_exactly(again, 6) == b"good\n3"

        assert len(udp_target.sources) == 1
        assert proxy.metric("config_last_reload_successful") == 0
        assert proxy.metric("config_info", generation="1") == 1
        assert proxy.get("/readyz")[0] == 200


def test_a_good_file_after_a_bad_one_is_taken(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("old")) as old, TcpTarget(reports("new")) as new:
        proxy = start_proxy(f'tcp_target = ["{old.text}"]\nwatch = true\n')
        proxy.expect_trouble("error")
        in_place(proxy.path, "listen_port = \n")
        proxy.wait_for_metric("config_reloads_total", 1, result="failure")

        in_place(proxy.path, proxy.complete(f'tcp_target = ["{new.text}"]\nwatch = true\n'))

        proxy.wait_for("applied on", count=2)
        assert tcp_answer(proxy) == b"new\n"
        assert proxy.metric("config_last_reload_successful") == 1


def test_a_missing_file_changes_nothing(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        proxy.expect_trouble("error")
        proxy.path.unlink()
        proxy.signal(signal.SIGHUP)

        proxy.wait_for_metric("config_reloads_total", 1, result="failure")
        assert tcp_answer(proxy) == b"here\n"


def test_listeners_are_added_and_removed_beside_one_that_stays(start_proxy: StartProxy) -> None:
    with TcpTarget(answers("tcp")) as tcp_target, UdpTarget("udp") as udp_target:
        targets = f'tcp_target = ["{tcp_target.text}"]\nudp_target = ["{udp_target.text}"]\n'
        proxy = start_proxy(f'listen_address_v4 = ["127.0.0.3", "127.0.0.4"]\n{targets}')
        with (
            proxy.udp("127.0.0.3") as staying,
            socket.create_connection(("127.0.0.4", proxy.port), 10) as on_removed,
        ):
            staying.send(b"1")
            assert staying.recv(100) == b"udp:1"
            on_removed.sendall(b"1")
            assert read_exactly(on_removed, 5) == b"tcp\n1"

            proxy.reload(f'listen_address_v4 = ["127.0.0.3", "127.0.0.5"]\n{targets}', 2)

            staying.send(b"2")
            assert staying.recv(100) == b"udp:2"
            assert len(udp_target.sources) == 1
            on_removed.sendall(b"2")
            assert read_exactly(on_removed, 1) == b"2"
            with socket.create_connection(("127.0.0.5", proxy.port), 10) as on_added:
                on_added.sendall(b"3")
                assert read_exactly(on_added, 5) == b"tcp\n3"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.4", proxy.port))


def test_the_port_moves(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        before, after = proxy.port, free_port()

        proxy.reload(f'listen_port = {after}\ntcp_target = ["{target.text}"]\n', 2)

        assert tcp_answer(proxy, port=after) == b"here\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", before))
        assert proxy.wait_for_session()["listener"] == f":{after}"


def test_an_address_that_cannot_be_bound_is_a_bad_file(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target, socket.create_server(("127.0.0.1", 0)) as taken:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        proxy.expect_trouble("error")

        proxy.write(f'listen_port = {taken.getsockname()[1]}\ntcp_target = ["{target.text}"]\n')
        proxy.signal(signal.SIGHUP)

        proxy.wait_for_metric("config_reloads_total", 1, result="failure")
        assert tcp_answer(proxy) == b"here\n"


def test_a_removed_side_stops_and_an_added_one_starts(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("tcp")) as tcp_target, UdpTarget("udp") as udp_target:
        proxy = start_proxy(f'tcp_target = ["{tcp_target.text}"]\n')

        proxy.reload(f'udp_target = ["{udp_target.text}"]\n', 2)

        with proxy.udp() as client:
            client.send(b"x")
            assert client.recv(100) == b"udp:x"
        with pytest.raises(ConnectionRefusedError):
            proxy.connect()


def test_connections_made_during_reloads_are_all_served(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        configs = [
            f'listen_address_v4 = ["127.0.0.1", "127.0.0.{9 - even}"]\ntcp_target = ["{target.text}"]\n'
            for even in (0, 1)
        ]
        proxy = start_proxy(configs[0])
        for generation in range(2, 12):
            proxy.write(configs[(generation + 1) % 2])
            proxy.signal(signal.SIGHUP)
            for _ in range(20):
                assert tcp_answer(proxy) == b"here\n"
            proxy.wait_for(f"generation {generation} applied on")


@pytest.mark.parametrize("way", ["keep", "drain"])
def test_sessions_of_a_target_that_has_left_end_when_they_are_to_and_no_others(
    start_proxy: StartProxy, way: str
) -> None:
    with TcpTarget(echo) as stays, TcpTarget(echo) as leaves, UdpEcho() as udp, contextlib.ExitStack() as stack:

        def config(*targets: TcpTarget) -> str:
            listed = ", ".join(f'"{target.text}"' for target in targets)
            return (
                f'tcp_target = [{listed}]\ntcp_load_balance = "source_socket"\nudp_target = ["127.0.0.1:{udp.port}"]\n'
                f'drain_timeout = "1s"\non_route_removed = "{way}"\n'
            )

        def ask_all(clients: list[socket.socket]) -> None:
            for client in clients:
                client.sendall(b"x")
                assert read_exactly(client, 1) == b"x"

        proxy = start_proxy(config(stays, leaves))
        clients = [stack.enter_context(proxy.connect()) for _ in range(20)]
        flow = stack.enter_context(proxy.udp())
        ask_all(clients)
        port = ask(flow, b"one")
        on_leaving = proxy.metric("sessions", target=leaves.text)
        assert 0 < on_leaving < 20

        proxy.reload(config(stays), 2)
        if way == "keep":
            pass_time(1.5)  # past the drain timeout
            ask_all(clients)
            return
        ask_all(clients)
        ended = proxy.wait_for_sessions(int(on_leaving), reason="drain")
        assert {session["target"] for session in ended} == {leaves.text}
        addresses = {session["client"] for session in ended}
        gone = [client for client in clients if endpoint(*client.getsockname()) in addresses]
        assert len(gone) == on_leaving
        for client in gone:
            assert client.recv(1) == b""
        ask_all([client for client in clients if client not in gone])
        assert ask(flow, b"two") == port

        proxy.reload(config(stays).replace(f"127.0.0.1:{udp.port}", "127.0.0.1:1"), 3)
        assert proxy.wait_for_session(transport="udp", reason="drain")["target"] == f"127.0.0.1:{udp.port}"


def test_a_target_that_comes_back_in_time_has_not_been_away(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target:
        rest = 'drain_timeout = "1s"\non_route_removed = "drain"\n'
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n{rest}')
        with proxy.connect() as client:
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            proxy.reload(f'tcp_target = ["127.0.0.1:1"]\n{rest}', 2)
            proxy.reload(f'tcp_target = ["{target.text}"]\n{rest}', 3)
            pass_time(2.2)  # past the drain timeout, and the second in which workers look
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"


def test_series_of_a_removed_route_stay(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("web")) as web, TcpTarget(reports("other")) as other:
        with_route = f'[protocols.web]\nprotocol = "http"\ntarget = ["{web.text}"]\n'
        proxy = start_proxy(f'tcp_target = ["{other.text}"]\n{with_route}')
        with proxy.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            read_all(client)
        proxy.wait_for_metric("sessions_closed_total", 1, route="web")

        proxy.reload(f'tcp_target = ["{other.text}"]\n', 2)

        assert proxy.metric("sessions_closed_total", route="web") == 1
        eventually(lambda: proxy.metric("config_info", generation="2") == 1)
