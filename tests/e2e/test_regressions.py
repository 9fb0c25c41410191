"""Inputs that are easy to get wrong, each against the running program.

The table says which test is about which; those that stand here are about nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import os
import random
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support import quic_packets
from tests.support.hellos import openssl_hello
from tests.support.peers import program
from tests.support.proxy import run_cli
from tests.support.quic_packets import Sender, client_hello, crypto, pieces, post_quantum_hello
from tests.support.targets import TcpTarget, UdpTarget, read_all, reports
from tests.support.waiting import pass_time

ROOT: Final = Path(__file__).parent.parent.parent

CASES: Final = {
    "a truncated QUIC long header": ("here", "test_a_truncated_quic_header_is_no_quic"),
    "Initials full of noise from many sources": ("here", "test_noise_that_looks_like_initials_reaches_the_default"),
    "an Initial whose whole plaintext is half a frame": ("here", "test_an_initial_with_half_a_frame_is_no_hello"),
    "a ClientHello whose last extension is empty": ("here", "test_a_hello_with_an_empty_extension_is_tls"),
    "a target whose name does not exist": ("here", "test_a_target_without_an_address_costs_one_connection"),
    "two first datagrams in one batch": ("here", "test_two_first_datagrams_in_one_batch_make_one_flow"),
    "thousands of flows to one target": ("here", "test_two_thousand_flows_each_get_their_own_answers"),
    "a ClientHello in uneven records": (
        "tests/e2e/test_tls.py",
        "test_a_hello_in_any_records_is_routed_and_reaches_the_target_unchanged",
    ),
    "early data in the ClientHello's segment": (
        "tests/e2e/test_tls.py",
        "test_a_hello_in_any_records_is_routed_and_reaches_the_target_unchanged",
    ),
    "a ClientHello byte by byte": ("here", "test_a_hello_that_comes_byte_by_byte_for_a_second_is_routed"),
    "a silent client of a server that speaks first": (
        "tests/e2e/test_tcp.py",
        "test_a_server_that_speaks_first_does_so_after_the_timeout_where_something_is_to_be_detected",
    ),
    "three bytes and a half-close": ("tests/e2e/test_tcp.py", "test_a_half_close_before_the_verdict_loses_nothing"),
    "Initials of one hello, duplicated and reordered": (
        "here",
        "test_a_hello_over_two_initials_is_routed_in_any_order",
    ),
    "a hello over two packets of one datagram": ("here", "test_a_hello_over_two_coalesced_initials_is_routed"),
    "0-RTT around the Initial": ("here", "test_early_data_around_the_initial_stays_in_its_flow"),
    "a target down for one datagram": ("tests/e2e/test_udp.py", "test_an_icmp_error_from_a_target_ends_nothing"),
    "a clock that is set back": ("here", "test_a_clock_that_is_set_back_ends_no_flow"),
    "a reload that changes one target": (
        "tests/e2e/test_reload.py",
        "test_new_sessions_take_the_new_configuration_and_open_ones_keep_theirs",
    ),
    "a reload with an invalid value": ("tests/e2e/test_reload.py", "test_a_bad_file_is_reported_and_changes_nothing"),
    "a start with a syntax error": (
        "tests/e2e/test_processes.py",
        "test_a_file_that_is_no_toml_ends_the_start_with_the_line",
    ),
    "two entries for the same traffic": ("here", "test_two_entries_for_the_same_traffic_are_an_error"),
    "alpns for alpn": ("here", "test_alpns_is_alpn"),
    "source_ip and a name with two addresses": (
        "tests/test_balance.py",
        "test_source_ip_keeps_the_address_of_a_name_for_new_source_ports",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_of_the_table_has_its_test(case: str) -> None:
    file, name = CASES[case]
    source = Path(__file__) if file == "here" else ROOT / file
    tests = {node.name for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef)}

    assert name in tests


def quic_config(default: UdpTarget, web: UdpTarget) -> str:
    return f"""
udp_target = ["{default.text}"]
[protocols.web]
protocol = "quic"
server_names = ["example.com"]
target = ["{web.text}"]
"""


def ask(client: socket.socket, *datagrams: bytes) -> list[bytes]:
    """Send these and return as many answers."""
    for data in datagrams:
        client.send(data)
    return [client.recv(65_536) for _ in datagrams]


# UDP and QUIC.


def test_a_truncated_quic_header_is_no_quic(start_proxy: StartProxy) -> None:
    whole = bytes.fromhex("c0000000010000000100")
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        for size in range(1, len(whole) + 1):
            with proxy.udp() as client:
                assert ask(client, whole[:size]) == [b"default:" + whole[:size]]


def test_noise_that_looks_like_initials_reaches_the_default(start_proxy: StartProxy) -> None:
    chance = random.Random(2)
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        for _ in range(64):
            # First byte, version, an id of 8 bytes, none, no token, the length of what follows.
            header = bytes([0xC0 | chance.randrange(16)]) + b"\0\0\0\1\x08" + chance.randbytes(8) + b"\0\0\x44\x9e"
            noise = header + chance.randbytes(1182)
            with proxy.udp() as client:
                assert ask(client, noise) == [b"default:" + noise]

    assert len(proxy.log()) < 10


def test_an_initial_with_half_a_frame_is_no_hello(start_proxy: StartProxy) -> None:
    # The type of a CRYPTO frame without its offset; four bytes of packet number make the packet long enough to sample.
    datagram = Sender().initial(b"\x06", number_length=4)
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        with proxy.udp() as client:
            assert ask(client, datagram) == [b"default:" + datagram]


@pytest.mark.parametrize("version", quic_packets.VERSIONS)
def test_a_hello_over_two_initials_is_routed_in_any_order(start_proxy: StartProxy, version: int) -> None:
    sender = Sender(version)
    hello = post_quantum_hello("example.com", "h3")
    one, two = (sender.initial(frame, size=1200, number=n) for n, frame in enumerate(pieces(hello, 1000)))
    overlapping = sender.initial(crypto(900, hello[900:]), size=1200, number=2)
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        for flight in ([one, two], [two, one], [one, one, two], [two, one, two], [one, overlapping]):
            with proxy.udp() as client:
                assert ask(client, *flight) == [b"web:" + datagram for datagram in flight]


def test_a_hello_over_two_coalesced_initials_is_routed(start_proxy: StartProxy) -> None:
    sender = Sender()
    hello = client_hello("example.com", "h3")
    parts = pieces(hello, 100)
    datagram = sender.initial(parts[0], number=0) + sender.initial(parts[1], size=1100, number=1)
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        for flight in (datagram, datagram + sender.zero_rtt()):
            with proxy.udp() as client:
                assert ask(client, flight) == [b"web:" + flight]


def test_early_data_around_the_initial_stays_in_its_flow(start_proxy: StartProxy) -> None:
    sender = Sender()
    initial = sender.initial(crypto(0, client_hello("example.com", "h3")), size=1200)
    early = sender.zero_rtt(1100)
    with UdpTarget("default") as default, UdpTarget("web") as web:
        proxy = start_proxy(quic_config(default, web))
        for flight in ([early, initial], [initial, early], [early, initial, early]):
            with proxy.udp() as client:
                assert ask(client, *flight) == [b"web:" + datagram for datagram in flight]

        assert len(web.sources) == 3
        assert default.received == []


def test_two_first_datagrams_in_one_batch_make_one_flow(start_proxy: StartProxy) -> None:
    with UdpTarget("default") as default, UdpTarget("web") as web, contextlib.ExitStack() as stack:
        proxy = start_proxy(quic_config(default, web))
        clients = [stack.enter_context(proxy.udp()) for _ in range(20)]
        workers = list(proxy.worker_pids().values())
        # While the workers stand still, their sockets collect what they will then read at once.
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        for client in clients:
            client.send(b"A?")
            client.send(b"AAAA?")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            assert [client.recv(100), client.recv(100)] == [b"default:A?", b"default:AAAA?"]

        assert len(default.sources) == len(clients)
        assert proxy.metric("sessions_total", protocol="udp") == len(clients)


@pytest.mark.slow
def test_two_thousand_flows_each_get_their_own_answers(start_proxy: StartProxy) -> None:
    with UdpTarget() as target, contextlib.ExitStack() as stack:
        proxy = start_proxy(f'udp_target = ["{target.text}"]\nudp_max_connections = 2048\n')
        clients = [stack.enter_context(proxy.udp()) for _ in range(2000)]
        for turn in range(2):
            # A hundred at a time: the target's receive buffer is not what is tested here.
            for start in range(0, len(clients), 100):
                numbered = list(enumerate(clients))[start : start + 100]
                for number, client in numbered:
                    client.send(b"%d/%d" % (turn, number))
                for number, client in numbered:
                    assert client.recv(100) == b"%d/%d" % (turn, number)

        assert len(target.sources) == len(clients)


@pytest.mark.slow
def test_a_clock_that_is_set_back_ends_no_flow(start_proxy: StartProxy, tmp_path: Path) -> None:
    program("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # setting the clock moves only the wall clock
    }
    with UdpTarget() as target, TcpTarget(reports("x")) as tcp_target:
        proxy = start_proxy(
            f'udp_target = ["{target.text}"]\ntcp_target = ["{tcp_target.text}"]\nudp_idle_lifetime = 10\n',
            environment=faked,
        )
        with proxy.udp() as client:
            assert ask(client, b"before") == [b"before"]
            for step in ("-3600", "+3600"):
                clock.write_text(step)
                pass_time(1.5)  # in which the workers look once for what has expired
                assert ask(client, b"after") == [b"after"]
            with proxy.connect() as connection:
                connection.shutdown(socket.SHUT_WR)
                read_all(connection)

        assert len(target.sources) == 1
        stamp = dt.datetime.fromisoformat(proxy.wait_for_session(transport="tcp")["ts"])
        assert stamp - dt.datetime.now(dt.UTC) > dt.timedelta(minutes=30)  # the clock really was another one


# TCP and TLS.


def test_a_hello_with_an_empty_extension_is_tls(start_proxy: StartProxy) -> None:
    hello = bytes.fromhex("160301003a010000360303") + bytes(32)
    hello += bytes.fromhex("00000213010100000bfe0d0000002b0003020304")
    with TcpTarget(reports("tls")) as tls, TcpTarget(reports("default")) as default:
        proxy = start_proxy(
            f'tcp_target = ["{default.text}"]\n[protocols.t]\nprotocol = "tls"\ntarget = ["{tls.text}"]\n'
        )
        with proxy.connect() as client:
            client.sendall(hello)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"tls\n" + hello


def test_a_hello_that_comes_byte_by_byte_for_a_second_is_routed(start_proxy: StartProxy) -> None:
    hello = openssl_hello("example.com")
    with TcpTarget(reports("tls")) as tls, TcpTarget(reports("default")) as default:
        proxy = start_proxy(f"""
tcp_target = ["{default.text}"]
[protocols.t]
protocol = "tls"
server_names = ["example.com"]
target = ["{tls.text}"]
""")
        with proxy.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for position in range(len(hello)):
                client.sendall(hello[position : position + 1])
                pass_time(1.0 / len(hello))
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"tls\n" + hello


def test_a_target_without_an_address_costs_one_connection(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("default")) as default:
        proxy = start_proxy(f"""
tcp_target = ["{default.text}"]
[protocols.nowhere]
protocol = "http"
target = ["nx.invalid:80"]
""")
        for _ in range(20):
            with proxy.connect() as client, contextlib.suppress(ConnectionResetError):
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(1) == b""
        with proxy.connect() as client:
            client.sendall(b"\0")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"default\n\0"

        proxy.wait_for_metric("sessions_rejected_total", 20, reason="no_target")
        assert len([line for line in proxy.log() if "nx.invalid" in line]) <= 3
        assert proxy.metric("worker_restarts_total") == 0


# Configuration.


@pytest.mark.parametrize("entry", ['protocol = "tls"', 'protocol = "ssh"'])
def test_two_entries_for_the_same_traffic_are_an_error(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "config.toml"
    tables = "".join(f'[protocols.{name}]\n{entry}\ntarget = ["127.0.0.1:1"]\n' for name in ("first", "second"))
    path.write_text(f"listen_port = 8448\n{tables}")

    result = run_cli("--check", "--config", str(path))

    assert result.returncode == 78
    assert "second" in result.stderr


def test_alpns_is_alpn(start_proxy: StartProxy) -> None:
    with TcpTarget(reports("h2")) as h2, TcpTarget(reports("default")) as default:
        proxy = start_proxy(f"""
tcp_target = ["{default.text}"]
[protocols.t]
protocol = "tls"
alpns = ["h2"]
target = ["{h2.text}"]
""")
        for offered, name in ((["h2"], b"h2\n"), (["http/1.1"], b"default\n"), ([], b"default\n")):
            with proxy.connect() as client:
                client.sendall(openssl_hello("example.com", offered))
                client.shutdown(socket.SHUT_WR)
                assert read_all(client).startswith(name)
