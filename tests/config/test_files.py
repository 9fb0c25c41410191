"""The two files at the top of the repository are what they say they are."""

from __future__ import annotations

import pathlib
import re
import tomllib
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no stubs
import pytest

from rpxy_l4.config.compile import compile_snapshot
from rpxy_l4.config.model import Admin, Config, Entry
from rpxy_l4.config.parse import parse
from rpxy_l4.config.schema import json_schema
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.verdict import Protocol

TOP = pathlib.Path(__file__).parent.parent.parent
EXAMPLE = (TOP / "config.example.toml").read_text()
SPEC = (TOP / "config.spec.toml").read_text()

# A key that is left out: "#key = value" or "#[table]", without a space behind the hash.
LEFT_OUT = re.compile(r"^#(?=[a-z0-9_]+ = |\[)", re.MULTILINE)
# Of the keys left out, these have no default but an example.
WITHOUT_DEFAULT = {
    "listen_address_v6",
    "udp_target",
    "tcp_trusted_proxies",
    "server_names",
    "alpn",
    "alpns",
    "send_proxy_protocol",
}
# Nor this one in an entry.
WITHOUT_DEFAULT_IN_ENTRY = WITHOUT_DEFAULT | {"kernel_path"}


@pytest.mark.parametrize("text", [EXAMPLE, SPEC, LEFT_OUT.sub("", SPEC)], ids=["example", "spec", "spec in full"])
def test_a_file_is_good_for_the_parser_and_for_the_schema(text: str) -> None:
    config = parse(text, "f")
    compile_snapshot(config, sha256="", generation=1, directory=Directory(), cpus=1)
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


def test_the_specification_has_every_key() -> None:
    full: dict[str, Any] = tomllib.loads(LEFT_OUT.sub("", SPEC))
    entries: set[str] = set().union(*full["protocols"].values())

    assert full.keys() == Config.model_fields.keys() - {"protocol"}
    assert full["admin"].keys() == Admin.model_fields.keys()
    assert entries == Entry.model_fields.keys()
    assert "[protocol.NAME]" in SPEC


def test_what_the_specification_leaves_out_is_written_with_its_default() -> None:
    full = parse(LEFT_OUT.sub("", SPEC), "f")
    short = parse(SPEC, "f")

    for name in Config.model_fields.keys() - WITHOUT_DEFAULT - {"protocols"}:
        assert getattr(full, name) == getattr(short, name), name
    for entry, left_out in zip(full.entries.values(), short.entries.values(), strict=True):
        for name in Entry.model_fields.keys() - WITHOUT_DEFAULT_IN_ENTRY:
            assert getattr(entry, name) == getattr(left_out, name), name


def test_the_specification_names_every_protocol() -> None:
    for protocol in Protocol:
        assert f'#   "{protocol}"' in SPEC


def test_the_example_uses_what_most_people_want() -> None:
    config = parse(EXAMPLE, "f")

    assert {entry.protocol for entry in config.entries.values()} > {Protocol.TLS, Protocol.QUIC, Protocol.WIREGUARD}
    assert config.tcp_target
    assert config.udp_target
