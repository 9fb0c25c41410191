"""The TCP path: what is sent, in which order, by whom first, and what happens when somebody ends or refuses."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import threading
import time

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.hellos import openssl_hello
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.targets import (
    HttpTarget,
    TcpTarget,
    answers,
    digests,
    echo,
    read_all,
    read_exactly,
    reports,
    speaks_first,
)
from tests.support.waiting import PATIENCE, eventually, pass_time

BANNER = b"220 mail.test ESMTP ready\r\n"
HTTP_ROUTE = '[protocols.web]\nprotocol = "http"\ntarget = ["127.0.0.1:1"]\n'
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


# Who speaks first, and when.


def test_a_server_that_speaks_first_does_so_at_once_where_nothing_is_to_be_detected(start_proxy: StartProxy) -> None:
    with TcpTarget(speaks_first(BANNER)) as mail:
        proxy = start_proxy(f'tcp_target = ["{mail.text}"]\ntcp_detect_timeout = "60s"\n')
        with proxy.connect() as client:
            assert client.recv(100) == BANNER
            client.sendall(b"QUIT\r\n")
            assert client.recv(100) == b"QUIT\r\n"

        assert proxy.wait_for_session(route="default")["detected"] == "skipped"


def test_a_server_that_speaks_first_does_so_after_the_timeout_where_something_is_to_be_detected(
    start_proxy: StartProxy,
) -> None:
    with TcpTarget(speaks_first(BANNER)) as mail:
        proxy = start_proxy(f'tcp_target = ["{mail.text}"]\ntcp_detect_timeout = "300ms"\n{HTTP_ROUTE}')
        began = time.monotonic()
        with proxy.connect() as client:
            assert client.recv(100) == BANNER
        assert 0.25 < time.monotonic() - began < 3

        assert proxy.wait_for_session(route="default")["detected"] == "timeout"


def test_a_silent_client_is_closed_after_the_timeout_where_there_is_no_default(start_proxy: StartProxy) -> None:
    proxy = start_proxy(f'tcp_detect_timeout = "200ms"\n{HTTP_ROUTE}')
    with proxy.connect() as client:
        assert client.recv(100) == b""

    proxy.wait_for_sessions(1, event="refused", reason="detect_timeout")


def test_what_arrived_before_the_timeout_reaches_the_default_target(start_proxy: StartProxy) -> None:
    with TcpTarget(answers("default")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_detect_timeout = "200ms"\n{HTTP_ROUTE}')
        with proxy.connect() as client:
            client.sendall(b"GE")
            assert read_exactly(client, 10) == b"default\nGE"


def test_a_hundred_silent_clients_hinder_nobody(start_proxy: StartProxy) -> None:
    with HttpTarget("web") as web, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'[protocols.web]\nprotocol = "http"\ntarget = ["{web.text}"]\n')
        for _ in range(100):
            stack.enter_context(proxy.connect())
        with proxy.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            assert read_all(client).endswith(b"web /")


def test_a_flood_of_half_hellos_pushes_out_only_its_own(start_proxy: StartProxy) -> None:
    with HttpTarget("web") as web, TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(
            f'tcp_max_connections = 40\ntcp_detect_timeout = "60s"\n[protocols.web]\nprotocol = "http"\n'
            f'target = ["{web.text}"]\n[protocols.ssh]\nprotocol = "ssh"\ntarget = ["{target.text}"]\n'
        )
        kept = stack.enter_context(proxy.connect())
        kept.sendall(b"SSH-2.0-x\r\n")
        assert read_exactly(kept, 11) == b"SSH-2.0-x\r\n"
        for _ in range(20):
            for _ in range(10):
                stack.enter_context(proxy.connect()).sendall(b"GET / HT")
            kept.sendall(b"x")
            assert read_exactly(kept, 1) == b"x"
            with proxy.connect() as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
                assert read_all(client).endswith(b"web /")

        # A quarter of the limit for each of two workers.
        proxy.wait_for_metric("sessions_rejected_total", 180, protocol="tcp", reason="evicted")
        assert proxy.metric("sessions_rejected_total", protocol="tcp", reason="limit") == 0
        assert proxy.metric("worker_sessions", protocol="tcp") <= 21


# Half-close and endings.


def test_the_clients_half_close_reaches_the_target_and_its_answer_still_comes(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("got")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        with proxy.connect() as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"got\nabc"

        session = proxy.wait_for_session()
        assert (session["reason"], session["bytes_in"], session["bytes_out"]) == ("client_eof", "3", "7")


def test_a_half_close_before_the_verdict_loses_nothing(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("got")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_detect_timeout = "60s"\n{HTTP_ROUTE}')
        with proxy.connect() as client:
            client.sendall(b"GET")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"got\nGET"


def test_the_targets_half_close_reaches_the_client_whose_data_still_goes(start_proxy: StartProxy) -> None:
    received: list[bytes] = []

    def ends_first(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_all(connection))

    with TcpTarget(ends_first) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        with proxy.connect() as client:
            assert read_all(client) == b"bye"
            client.sendall(b"still here")
            client.shutdown(socket.SHUT_WR)
            assert proxy.wait_for_session()["reason"] == "target_eof"

        assert received == [b"still here"]


def test_a_reset_by_the_client_resets_the_target(start_proxy: StartProxy) -> None:
    errors: list[BaseException | None] = []

    def expects_reset(connection: socket.socket) -> None:
        connection.sendall(b"x")
        try:
            read_all(connection)
            errors.append(None)
        except ConnectionResetError as error:
            errors.append(error)

    with TcpTarget(expects_reset) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        client = proxy.connect()
        assert client.recv(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()

        assert proxy.wait_for_session()["reason"] == "client_reset"
        eventually(lambda: errors, "the target saw the end")


def test_a_reset_by_the_target_is_the_reason_in_the_log(start_proxy: StartProxy) -> None:
    def resets(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    with TcpTarget(resets) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        with proxy.connect() as client, contextlib.suppress(ConnectionResetError):
            client.sendall(b"x")
            assert read_all(client) == b""

        assert proxy.wait_for_session()["reason"] == "target_reset"


# Exact bytes.


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts_and_sizes_arrive_exactly(start_proxy: StartProxy, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(3_000_000)
    cuts = sorted(chance.sample(range(len(data)), 200))
    with TcpTarget(echo) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n{HTTP_ROUTE}')
        with proxy.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def send() -> None:
                for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                    client.sendall(data[start:end])
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert read_all(client) == data
            sender.join()

        session = proxy.wait_for_session()
        assert (session["bytes_in"], session["bytes_out"]) == (str(len(data)), str(len(data)))


def test_bulk_in_one_direction_arrives_exactly(start_proxy: StartProxy) -> None:
    data = random.Random(7).randbytes(8_000_000) * 8
    with TcpTarget(digests("sum")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        with proxy.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            name, size, digest = read_all(client).split()

    assert (name, int(size), digest.decode()) == (b"sum", len(data), hashlib.sha256(data).hexdigest())


def test_a_slow_reader_holds_the_sender_back_and_gets_everything(start_proxy: StartProxy) -> None:
    size = 64_000_000
    sent = 0

    def floods(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(1)
        block = bytes(1_000_000)
        while sent < size:
            connection.sendall(block)
            sent += len(block)

    with TcpTarget(floods) as target, TcpTarget(echo) as other:
        proxy = start_proxy(
            f'tcp_target = ["{target.text}"]\nworkers = 1\n[protocols.o]\nprotocol = "ssh"\ntarget = ["{other.text}"]\n'
        )
        with proxy.connect() as slow, proxy.connect() as quick:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            slow.sendall(b"x")
            # One worker serves both: the stalled client must not stall the other one.
            quick.sendall(b"SSH-2.0-test\r\n")
            assert quick.recv(100) == b"SSH-2.0-test\r\n"
            pass_time(0.3)
            assert sent < size
            received = 0
            while data := slow.recv(1 << 20):
                received += len(data)

        assert received == size


def test_many_connections_at_once_each_get_their_own_bytes(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\n')
        clients = [stack.enter_context(proxy.connect()) for _ in range(300)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        for number, client in enumerate(clients):
            assert read_exactly(client, len(b"%d\n" % number)) == b"%d\n" % number


# Targets.


def test_a_target_that_refuses_is_followed_by_the_next_before_the_client_notices(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("second")) as second:
        refusing = f"127.0.0.1:{free_port()}"
        proxy = start_proxy(f'tcp_target = ["{refusing}", "{second.text}"]\n')
        with proxy.connect() as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"second\nabc"

        assert proxy.wait_for_session()["target"] == second.text
        assert proxy.metric("target_connects_total", target=refusing, result="refused") == 1
        assert proxy.metric("target_connects_total", target=second.text, result="ok") == 1


def test_a_target_that_does_not_answer_is_followed_by_the_next(start_proxy: StartProxy) -> None:
    # A queue of one that nobody empties: the kernel drops further SYNs silently.
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        contextlib.ExitStack() as stack,
        TcpTarget(reports("second")) as second,
    ):
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        stuck = f"127.0.0.1:{full.getsockname()[1]}"
        proxy = start_proxy(f'tcp_target = ["{stuck}", "{second.text}"]\ntcp_connect_timeout = "300ms"\n')
        with proxy.connect() as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"second\nabc"

        assert proxy.wait_for_session()["target"] == second.text
        assert proxy.metric("target_connects_total", target=stuck, result="timeout") == 1


def test_the_client_is_closed_when_every_target_refuses(start_proxy: StartProxy) -> None:
    proxy = start_proxy(f'tcp_target = ["127.0.0.1:{free_port()}", "127.0.0.1:{free_port()}"]\n')
    with proxy.connect() as client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""

    assert proxy.wait_for_session()["reason"] == "connect_refused"


def test_a_target_may_be_a_name(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("named")) as target:
        proxy = start_proxy(f'tcp_target = ["localhost:{target.port}"]\n')
        with proxy.connect() as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"named\nabc"

        assert proxy.wait_for_session()["target"] == f"localhost:{target.port}"


def test_source_ip_keeps_a_client_on_one_target_and_spreads_the_rest(start_proxy: StartProxy) -> None:
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(TcpTarget(reports(f"t{number}"))) for number in range(3)]
        listed = ", ".join(f'"{target.text}"' for target in targets)
        proxy = start_proxy(f'tcp_target = [{listed}]\ntcp_load_balance = "source_ip"\n')
        seen: dict[str, set[bytes]] = {}
        for number in range(1, 21):
            source = f"127.0.0.{number}"
            for _ in range(3):
                with proxy.connect(source) as client:
                    client.shutdown(socket.SHUT_WR)
                    seen.setdefault(source, set()).add(read_all(client))

    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == 3


def test_without_balancing_the_first_target_serves(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("first")) as first, TcpTarget(reports("second")) as second:
        proxy = start_proxy(f'tcp_target = ["{first.text}", "{second.text}"]\n')
        for _ in range(10):
            with proxy.connect() as client:
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"first\n"


# Addresses.


def test_ipv6_clients_and_targets(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("six"), host="::1") as target:
        proxy = start_proxy(f'listen_address_v6 = "::1"\ntcp_target = ["{target.text}"]\n')
        for host in ("::1", "127.0.0.1"):
            with socket.create_connection((host, proxy.port)) as client:
                client.sendall(b"abc")
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"six\nabc"

        clients = [session["client"] for session in proxy.wait_for_sessions(2)]
        assert sorted(client.rpartition(":")[0] for client in clients) == ["127.0.0.1", "[::1]"]


def test_several_addresses_are_listened_on_and_no_other(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("here")) as target:
        proxy = start_proxy(f'listen_address_v4 = ["127.0.0.3", "127.0.0.4"]\ntcp_target = ["{target.text}"]\n')
        for host in ("127.0.0.3", "127.0.0.4"):
            with socket.create_connection((host, proxy.port)) as client:
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"here\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))


# Limits.


def test_connections_beyond_the_limit_are_refused_until_one_ends(start_proxy: StartProxy) -> None:
    with TcpTarget(answers("served")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_max_connections = 2\n')
        with proxy.connect() as first, proxy.connect() as second:
            for client in (first, second):
                client.sendall(b"x")
                assert read_exactly(client, 8) == b"served\nx"
            with pytest.raises(ConnectionResetError), proxy.connect() as third:  # already while it connects, perhaps
                third.recv(1)
            proxy.wait_for_metric("sessions_rejected_total", 1, reason="limit", protocol="tcp")
        proxy.wait_for_sessions(2)
        with proxy.connect() as fourth:
            fourth.sendall(b"x")
            assert read_exactly(fourth, 8) == b"served\nx"


def test_connections_beyond_the_limit_wait_for_their_turn_where_they_are_told_to(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_max_connections = 4\ntcp_at_limit = "wait"\n')
        clients = [stack.enter_context(proxy.connect()) for _ in range(40)]
        for client in clients:
            client.sendall(b"x")
        left = set(clients)
        while left:
            # Whoever is served, in whichever worker, leaves, and is followed by another one.
            ready, _, _ = select.select(left, [], [], PATIENCE)
            assert ready
            for client in ready:
                assert client.recv(1) == b"x"
                client.close()
                left.discard(client)

        assert target.accepted == 40
        assert proxy.metric("sessions_rejected_total", protocol="tcp") == 0


def test_new_connections_beyond_the_rate_are_reset(start_proxy: StartProxy) -> None:
    with TcpTarget(echo) as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_max_new_per_second = 5\n')
        kept = stack.enter_context(proxy.connect())
        kept.sendall(b"x")
        assert read_exactly(kept, 1) == b"x"
        for _ in range(50):
            with contextlib.suppress(ConnectionResetError):
                stack.enter_context(proxy.connect())
        proxy.wait_for_metric("sessions_rejected_total", 35, protocol="tcp", reason="rate")
        kept.sendall(b"x")
        assert read_exactly(kept, 1) == b"x"
        # As soon as there is a token again.
        eventually(lambda: _is_served(proxy))


def _is_served(proxy: Proxy) -> bool:
    with contextlib.suppress(ConnectionError), proxy.connect() as client:
        client.sendall(b"x")
        return client.recv(1) == b"x"
    return False


# The PROXY protocol.


def test_version_1_names_the_client_to_the_target(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("p")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_send_proxy_protocol = "v1"\n')
        with proxy.connect("127.0.0.9") as client:
            source = client.getsockname()[1]
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            expected = f"p\nPROXY TCP4 127.0.0.9 127.0.0.1 {source} {proxy.port}\r\nabc"
            assert read_all(client) == expected.encode()


def test_version_2_names_the_client_to_the_target(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("p")) as target:
        proxy = start_proxy(f'tcp_target = ["{target.text}"]\ntcp_send_proxy_protocol = "v2"\n')
        with proxy.connect("127.0.0.9") as client:
            source = client.getsockname()[1]
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            header = (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + socket.inet_aton("127.0.0.9") + socket.inet_aton("127.0.0.1")
            )
            assert read_all(client) == b"p\n" + header + struct.pack(">HH", source, proxy.port) + b"abc"


RECEIVING = 'tcp_recv_proxy_protocol = true\ntcp_trusted_proxies = ["127.0.0.0/30"]\n'
V2_HEADER = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x10\x00\x20\x00"


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.7 127.0.0.1 4096 8192\r\n", V2_HEADER])
@pytest.mark.parametrize("piecewise", [False, True])
def test_a_trusted_proxy_names_the_client(start_proxy: StartProxy, header: bytes, *, piecewise: bool) -> None:
    hello = openssl_hello("example.com")
    with TcpTarget(reports("tls")) as target:
        proxy = start_proxy(
            f'{RECEIVING}[protocols.t]\nprotocol = "tls"\nserver_names = ["example.com"]\ntarget = ["{target.text}"]\n'
        )
        with proxy.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = header + hello
            for part in (data[i : i + 1] for i in range(len(data))) if piecewise else (data,):
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"tls\n" + hello

        assert proxy.wait_for_session()["client"] == "192.0.2.7:4096"


def test_the_named_client_is_passed_on(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("p")) as target:
        proxy = start_proxy(f'{RECEIVING}tcp_target = ["{target.text}"]\ntcp_send_proxy_protocol = "v1"\n')
        with proxy.connect() as client:
            client.sendall(V2_HEADER + b"abc")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client).startswith(b"p\nPROXY TCP4 192.0.2.7 127.0.0.1 4096 ")


def test_a_stranger_may_not_name_a_client(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("p")) as target:
        proxy = start_proxy(f'{RECEIVING}tcp_target = ["{target.text}"]\n')
        with proxy.connect("127.0.0.9") as client, contextlib.suppress(ConnectionError):
            client.sendall(V2_HEADER + b"abc")
            assert client.recv(1) == b""

        proxy.wait_for_sessions(1, event="refused", reason="acl")


def test_a_trusted_proxy_that_sends_no_header_is_closed(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("p")) as target:
        proxy = start_proxy(f'{RECEIVING}tcp_target = ["{target.text}"]\n')
        with proxy.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(1) == b""

        proxy.wait_for_sessions(1, event="refused", reason="proxy_header")
