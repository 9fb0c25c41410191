from __future__ import annotations

import socket
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from bench import contestants, workloads
from bench.contestants import FLOOR, KERNEL, Contestant, find, render, version_in
from rpxy_l4.config.parse import parse

VALUES = {
    "listen": 1111,
    "target": 2222,
    "workers": 1,
    "idle": 30,
    "name": "bench.example",
    "folder": "/folder",
    "config": "/folder/config",
}
BY_NAME = {each.name: each for each in contestants.ALL}
WORKLOADS = {each.name: each for each in workloads.ALL}


@pytest.mark.parametrize(
    "template", sorted(contestants.TEMPLATES.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_every_template_can_be_filled_in_and_listens_and_has_a_target(template: Path) -> None:
    text = render(template.read_text(), VALUES)

    assert "1111" in text
    assert "2222" in text


@pytest.mark.parametrize(
    "template", sorted([*contestants.TEMPLATES.glob("ours/*"), *contestants.TEMPLATES.glob("kernel/*")]), ids=str
)
def test_our_templates_are_accepted(template: Path) -> None:
    text = render(template.read_text(), VALUES)

    assert tomllib.loads(text)["workers"] == 1
    parse(text, template.name)


def test_we_take_part_in_everything() -> None:
    assert [each.name for each in workloads.ALL if not BY_NAME["ours"].supports(each)] == []


def test_a_proxy_takes_part_in_what_it_has_a_template_for() -> None:
    assert BY_NAME["nginx"].supports(WORKLOADS["udp-64"])
    assert not BY_NAME["nginx"].supports(WORKLOADS["quic-new"])
    assert not BY_NAME["haproxy"].supports(WORKLOADS["udp-64"])


def test_a_proxy_that_asks_select_is_spared_many_sessions_and_a_second_worker() -> None:
    assert BY_NAME["sslh"].supports(WORKLOADS["tcp-kept"])
    assert not BY_NAME["sslh"].supports(WORKLOADS["tcp-sessions-1000"])
    assert not BY_NAME["sslh"].supports(replace(WORKLOADS["tcp-kept"], workers=2))


def test_the_floor_takes_part_in_what_needs_no_recognising_and_no_second_worker() -> None:
    left_out = [each.name for each in workloads.ALL if not BY_NAME[FLOOR].supports(each)]

    assert left_out == ["tls-new", "quic-new", "tcp-idle", "udp-idle", "tcp-sessions-1000-workers-2"]


def test_the_kernel_path_takes_part_where_flows_last() -> None:
    parts = [each.name for each in workloads.ALL if BY_NAME[KERNEL].supports(each)]

    assert parts == [
        *("tcp-new", "tcp-kept", "tcp-down-1", "tcp-up-1", "tcp-down-64", "tcp-up-64"),
        *("udp-64", "udp-5000", "udp-segmented-1", "udp-segmented-64", "udp-plain"),
        *("tcp-sessions-10", "tcp-sessions-1000", "tcp-sessions-9000", "tcp-sessions-1000-workers-2"),
    ]


def test_bulk_has_a_template_of_its_own_where_that_is_faster() -> None:
    names = [
        path.stem
        for peer in ("haproxy", "nginx")
        for workload in ("tcp-kept", "tcp-up-1")
        if (path := BY_NAME[peer].template(WORKLOADS[workload])) is not None
    ]

    assert names == ["tcp", "bulk", "tcp", "tcp"]


def test_a_word_without_a_value_is_named() -> None:
    with pytest.raises(KeyError, match="prot"):
        render("port @prot@", {"port": 1})


def test_an_at_sign_alone_is_left_as_it_is() -> None:
    assert render('"@type": x@y', {}) == '"@type": x@y'


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("sslh-select 1.20-1+deb12u1", "1.20-1+deb12u1"),
        ("  version: 9e5580933739775e8bce/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("v2.11.4 h1:XKxkMTgNSizEvKG6QHue6cAsFOteU2qA61w2tKkCWi0=", "2.11.4"),
        ("no idea", "unknown"),
    ],
)
def test_a_version_is_found_in_what_a_program_says(text: str, version: str) -> None:
    assert version_in(text) == version


def test_a_named_program_is_taken_unseen() -> None:
    assert find(BY_NAME["nginx"], {"nginx": "/some/where"}) == Path("/some/where")


def test_a_script_is_not_mistaken_for_a_compiled_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Contestant("x", "X", ("some-proxy",), (), (), binary=True)
    program = tmp_path / "some-proxy"
    monkeypatch.setenv("PATH", str(tmp_path))
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o755)
    assert find(wanted, {}) is None

    program.write_bytes(b"\x7fELF and so on")
    assert find(wanted, {}) == program


def test_a_free_port_can_be_used_for_both_transports() -> None:
    port = contestants.free_port()

    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        stream.bind(("127.0.0.1", port))
        datagram.bind(("127.0.0.1", port))
