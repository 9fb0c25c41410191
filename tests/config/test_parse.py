"""Invariant: any text is a configuration, or raises a ConfigError that can be rendered; nothing else is ever raised."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.config.compile import compile_snapshot
from rpxy_l4.config.model import Admin, Config, Entry
from rpxy_l4.config.parse import parse
from rpxy_l4.errors import ConfigError
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import LoadBalance, ProxyVersion
from rpxy_l4.verdict import Protocol

BASE = 'listen_port = 8448\ntcp_target = ["a:1"]'
# Each block of the file: lines of a configuration, and behind the arrow what is said of them.
CASES = [
    block.rpartition("\n=> ")[::2]
    for block in (pathlib.Path(__file__).parent / "problems.txt").read_text().rstrip().split("\n\n")[1:]
]


def refused(source: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(source, "config.toml")
    return caught.value


@pytest.mark.parametrize(("written", "said"), CASES)
def test_a_problem_says_where_it_is_and_what_is_wrong(written: str, said: str) -> None:
    key = written.partition(" ")[0]
    base = "\n".join(line for line in BASE.split("\n") if not line.startswith(key))
    [problem] = refused(f"{base}\n{written}\n").problems

    line = problem.line - base.count("\n") - 1
    place = f"{line}:{problem.column}+{problem.width}"
    assert ": ".join(filter(None, (place, problem.path, problem.message))) == said


def test_there_is_a_case_for_every_key() -> None:
    keys = {*Config.model_fields, *Entry.model_fields, *Admin.model_fields}

    assert {key for key in keys if not any(f"{key}: " in said or f"{key}[" in said for _, said in CASES)} == set()


def test_a_problem_is_printed_with_its_line_and_a_caret() -> None:
    error = refused(f'{BASE}\n\n[protocols.tls1]\nprotocol = "tlss"\ntarget = ["a:1"]\n')

    assert error.render() == (
        'config.toml:5:12: error: protocols.tls1.protocol: unknown protocol "tlss"; did you mean "tls"?\n'
        '  5 | protocol = "tlss"\n'
        "    |            ^~~~~~"
    )


def test_what_is_missing_at_the_top_is_at_the_beginning_of_the_file() -> None:
    [port, purpose] = refused("").problems

    assert str(port) == "config.toml:1:1: error: listen_port: this key is required"
    assert str(purpose) == (
        "config.toml:1:1: error: nothing to forward to; give tcp_target, udp_target or a [protocols.NAME] table"
    )


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    error = refused("""\
listen_port = 70000
tcp_backlog = "many"
dns_cache_min_ttl = "1h"
dns_cache_max_ttl = "1m"

[protocols.tls1]
protocol = "tlss"
target = ["nowhere", 5]

[protocols.ssh]
protocol = "ssh"
target = ["a:22"]
servers = []
alpn = ["h2"]

[protocols.web]
protocol = "http"
target = ["a:80"]

[protocols.web2]
protocol = "http"
target = ["a:80"]
idle = 3

[protocols.web3]
protocol = "http"
target = ["a:80"]
""")

    assert [(problem.line, problem.column, problem.path) for problem in error.problems] == [
        (1, 15, "listen_port"),
        (2, 15, "tcp_backlog"),
        (3, 21, "dns_cache_min_ttl"),
        (7, 12, "protocols.tls1.protocol"),
        (8, 11, "protocols.tls1.target[0]"),
        (8, 22, "protocols.tls1.target[1]"),
        (13, 1, "protocols.ssh.servers"),
        (14, 8, "protocols.ssh.alpn"),
        (23, 1, "protocols.web2.idle"),
        (25, 12, "protocols.web3"),
    ]
    assert error.render().count("^") == 10


def test_a_value_over_several_lines_is_marked_on_its_first() -> None:
    [problem] = refused(f"{BASE}\nwatch = [\n  1,\n]\n").problems

    assert (problem.line, problem.column, problem.width) == (3, 9, 1)


def test_a_file_of_rust_rpxy_l4_works_as_it_is() -> None:
    config = parse(
        """\
listen_port = 8448
listen_address_v4 = ["127.0.0.1", "192.0.2.1"]
listen_address_v6 = "[::1]"
listen_ipv6 = true
tcp_backlog = 512
tcp_max_connections = 300
udp_max_connections = 400
tcp_target = ["192.0.2.10:8000", "web.internal:80"]
udp_target = ["[2001:db8::1]:53"]
tcp_load_balance = "source_ip"
udp_load_balance = "source_socket"
udp_idle_lifetime = 20
dns_cache_min_ttl = "10sec"
dns_cache_max_ttl = "30Minutes"
tcp_send_proxy_protocol = "V1"
tcp_recv_proxy_protocol = true
tcp_trusted_proxies = ["10.0.0.0/8"]

[protocols."http_server"]
protocol = "http"
target = ["192.0.2.20:80"]
load_balance = "random"
send_proxy_protocol = "none"

[protocols.tls_1]
protocol = "tls"
target = ["192.0.2.30:443", "192.0.2.31:443"]
load_balance = "source_ip"
alpn = ["h2", "http/1.1"]
server_names = ["Example.com"]
idle_lifetime = 5

[protocols.tls_2]
protocol = "tls"
target = ["192.0.2.30:443"]
alpns = ["h2"]
server_names = []

[protocol.ssh_server]
protocol = "ssh"
target = ["192.0.2.40:22"]

[protocol.socks]
protocol = "socks5"
target = ["192.0.2.41:1080"]

[protocol.wg]
protocol = "wireguard"
target = ["192.0.2.42:51820"]
idle_lifetime = 30
send_proxy_protocol = "2"

[protocol.h3]
protocol = "quic"
target = ["192.0.2.43:443"]
alpn = []
""",
        "config.toml",
    )

    assert config.addresses == ("127.0.0.1", "192.0.2.1", "::1")
    assert config.tcp_load_balance is LoadBalance.SOURCE_IP
    assert (config.dns_cache_min_ttl, config.dns_cache_max_ttl) == (10.0, 1800.0)
    assert config.tcp_send_proxy_protocol is ProxyVersion.V1
    assert list(config.entries) == ["http_server", "tls_1", "tls_2", "ssh_server", "socks", "wg", "h3"]
    assert {entry.protocol for entry in config.entries.values()} == set(Protocol)
    assert config.entries["tls_1"].server_names == ("example.com",)
    assert config.entries["tls_2"].alpn_filter == {b"h2"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_of_other_systems_change_nothing(newline: str, mark: str) -> None:
    text = mark + BASE.replace("\n", newline)
    wrong = f"{text}{newline}watch = 1{newline}"

    assert parse(text, "f").listen_port == 8448
    assert parse(text.encode(), "f").listen_port == 8448
    [problem] = refused(wrong).problems
    assert (problem.line, problem.column, problem.width) == (3, 9, 1)
    assert "\r" not in refused(wrong).render()


def test_bytes_that_are_not_utf8_are_refused_at_their_place() -> None:
    [problem] = refused(b"# \xc3\xa9\n# caf\xe9 x\n").problems

    assert str(problem) == "config.toml:2:6: error: the file is not UTF-8 text"


def test_a_string_decoded_with_surrogates_is_refused_at_its_place() -> None:
    [problem] = refused("a = 1\n# \udce9").problems

    assert str(problem) == "config.toml:2:3: error: the file is not UTF-8 text"


def test_other_scripts_are_counted_in_characters() -> None:
    [problem] = refused(f'{BASE}\n[protocols."日本"]\nprotocol = "ssh"\ntarget = ["日本:22"]\n').problems

    assert (problem.line, problem.column, problem.path) == (5, 11, 'protocols."日本".target[0]')
    assert problem.message.endswith('did you mean "xn--wgv71a"?')


KEYS = [*((name,) for name in Config.model_fields), *(("admin", name) for name in Admin.model_fields)]
ENTRY_KEYS = list(Entry.model_fields)
ODD_VALUES = [
    "0",
    "-1",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e400",
    "nan",
    "-inf",
    "1.5",
    "true",
    '""',
    '"\\u0000"',
    "'\U0001f600'",
    '"' + "x" * 10_000 + '"',
    "1979-05-27",
    "07:32:00",
    "1979-05-27T07:32:00Z",
    "[]",
    "[[]]",
    "[{}]",
    "{}",
    "{a.b.c = 1}",
    "[" * 90 + "]" * 90,
    "{a = " * 90 + "1" + "}" * 90,
    "[1, '', true, 1.5, [], {}, 1979-05-27]",
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
def test_an_odd_value_of_any_key_is_taken_or_refused(value: str) -> None:
    top = [f"listen_port = 1\n{'.'.join(key)} = {value}\n" for key in KEYS if key != ("listen_port",)]
    entry = [f"listen_port = 1\n[protocols.x]\n{key} = {value}\n" for key in ENTRY_KEYS]

    for text in [*top, *entry, f"listen_port = {value}"]:
        assert is_taken_or_refused(text) in (True, False)


def is_taken_or_refused(text: str) -> bool:
    try:
        config = parse(text, "f")
    except ConfigError as refusal:
        error = refusal
    else:
        compile_snapshot(config, sha256="", generation=1, directory=Directory(), cpus=2)
        return True
    assert error.problems
    assert all(problem.line > 0 and problem.column > 0 for problem in error.problems)
    assert error.render()
    return False


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    assert not is_taken_or_refused(text)


GOOD = f"""\
{BASE}
listen_address_v6 = ["::1"]
udp_target = ['[::1]:1']
workers = "auto"
drain_timeout = "1s"
admin = {{ listen = "" }}
[protocols.x]
protocol = "tls"
target = ["b:1"]
server_names = ["a.example"]
alpn = ["h2"]
[protocol.y]
protocol = "ssh"
target = ["c:1"]
"""


def test_the_text_that_is_mutated_is_good() -> None:
    assert is_taken_or_refused(GOOD)


@settings(max_examples=60)
@given(st.data())
def test_a_good_file_with_pieces_cut_moved_or_inserted_is_taken_or_refused(data: Any) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        piece = data.draw(
            st.one_of(st.just(""), st.sampled_from([*GOOD.split(), *ODD_VALUES[:8]]), st.text(max_size=5))
        )
        text = text[:start] + piece + text[end:]

    assert is_taken_or_refused(text) in (True, False)


@settings(max_examples=60)
@given(st.permutations(GOOD.splitlines()))
def test_a_good_file_with_its_lines_in_any_order_is_taken_or_refused(lines: list[str]) -> None:
    assert is_taken_or_refused("\n".join(lines)) in (True, False)
