from __future__ import annotations

import json
import tomllib
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no stubs
import pytest
from pydantic import BaseModel

from rpxy_l4.config.model import Admin, Config, Entry
from rpxy_l4.config.parse import parse
from rpxy_l4.config.schema import json_schema
from rpxy_l4.errors import ConfigError

SCHEMA = json_schema()
TABLES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (Config, SCHEMA),
    (Entry, SCHEMA["$defs"]["Entry"]),
    (Admin, SCHEMA["$defs"]["Admin"]),
]
BASE = 'listen_port = 8448\nudp_target = ["a:1"]\n'
ENTRY = '[protocols.x]\nprotocol = "tls"\ntarget = ["a:1"]\n'


def schema_takes(text: str) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(tomllib.loads(text)))


def parser_takes(text: str) -> bool:
    try:
        parse(text, "f")
    except ConfigError:
        return False
    return True


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_it_has_every_key_with_its_meaning_and_nothing_else() -> None:
    for model, table in TABLES:
        assert list(table["properties"]) == list(model.model_fields)
        assert table["additionalProperties"] is False
        for name, key in table["properties"].items():
            # A key that is a table may leave it to the table to say what it is.
            assert key.get("title", name) == name
            assert "description" in key or "$ref" in key
            assert "\n" not in key.get("description", "")


def test_both_spellings_are_in_it() -> None:
    assert SCHEMA["properties"]["protocols"]["additionalProperties"] == {"$ref": "#/$defs/Entry"}
    assert SCHEMA["properties"]["protocol"]["additionalProperties"] == {"$ref": "#/$defs/Entry"}
    assert {"alpn", "alpns"} < SCHEMA["$defs"]["Entry"]["properties"].keys()


def test_only_what_must_be_there_is_required() -> None:
    assert SCHEMA["required"] == ["listen_port"]
    assert SCHEMA["$defs"]["Entry"]["required"] == ["protocol", "target"]
    assert "required" not in SCHEMA["$defs"]["Admin"]


def test_a_default_written_out_means_the_same_as_the_key_left_out() -> None:
    for model, table in TABLES:
        required: dict[str, Any] = {"listen_port": 1, "protocol": "tls", "target": ["a:1"]}
        base = {name: value for name, value in required.items() if name in table.get("required", [])}
        for name, key in table["properties"].items():
            if "default" in key:
                written = model.model_validate({**base, name: key["default"]})
                assert getattr(written, name) == getattr(model.model_validate(base), name), name
            else:
                assert name in required or model.model_fields[name].get_default(call_default_factory=True) in (
                    None, (), {}, ("0.0.0.0",), Admin(),
                ), name  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        BASE + ENTRY,
        BASE + ENTRY.replace("protocols", "protocol"),
        BASE + 'listen_address_v4 = "127.0.0.1"\nlisten_address_v6 = ["[::1]", "2001:db8::1"]',
        BASE + 'dns_cache_min_ttl = "10Min"\ndrain_timeout = 0\ntcp_detect_timeout = "250ms"',
        BASE + 'tcp_target = ["10.0.0.1:80", "[::1]:80", "my_app.internal:80"]',
        BASE + 'tcp_send_proxy_protocol = "V2"\ntcp_trusted_proxies = ["10.0.0.0/8", "::1"]',
        BASE + "workers = 4\nwatch = false\naccess_log = false",
        BASE + '[admin]\nlisten = ""',
        BASE + '[admin]\nlisten = "[::1]:9448"',
        BASE + ENTRY + 'server_names = []\nalpns = ["h2"]\nidle_lifetime = "1h"\nsend_proxy_protocol = "none"',
    ],
)
def test_it_takes_what_the_parser_takes(text: str) -> None:
    assert parser_takes(text)
    assert schema_takes(text)


@pytest.mark.parametrize(
    "text",
    [
        'udp_target = ["a:1"]',
        BASE + "unknown = 1",
        BASE + ENTRY + "unknown = 1",
        BASE + ENTRY + "ech = {}",
        BASE + "[admin]\nunknown = 1",
        BASE.replace("8448", "0"),
        BASE.replace("8448", "65536"),
        BASE.replace("8448", '"8448"'),
        BASE.replace("8448", "1.5"),
        BASE + "tcp_target = []",
        BASE + 'tcp_target = "a:1"',
        BASE + 'tcp_target = ["a"]',
        BASE + 'tcp_target = ["::1:80"]',
        BASE + "tcp_target = [1]",
        BASE + "listen_address_v4 = []",
        BASE + 'listen_address_v4 = "::1"',
        BASE + "listen_address_v6 = [1]",
        BASE + "tcp_max_connections = 0",
        BASE + 'tcp_load_balance = "least"',
        BASE + 'dns_cache_min_ttl = "30"',
        BASE + "udp_idle_lifetime = -1",
        BASE + "drain_timeout = 1.5",
        BASE + 'tcp_send_proxy_protocol = "v3"',
        BASE + 'tcp_trusted_proxies = ["x"]',
        BASE + "workers = 0",
        BASE + 'workers = "all"',
        BASE + 'watch = "yes"',
        BASE + 'access_log = "off"',
        BASE + "admin = 1",
        BASE + '[admin]\nlisten = "9448"',
        BASE + "protocols = 1",
        BASE + '[protocols.x]\nprotocol = "tls"',
        BASE + '[protocols.x]\ntarget = ["a:1"]',
        BASE + ENTRY.replace('"tls"', '"TLS"'),
        BASE + ENTRY + 'server_names = "a"',
        BASE + ENTRY + 'server_names = [""]',
        BASE + ENTRY + "alpn = [1]",
        BASE + ENTRY + 'alpn = [""]',
        BASE + ENTRY + "idle_lifetime = true",
    ],
)
def test_it_refuses_what_the_parser_refuses_for_a_single_key(text: str) -> None:
    assert not parser_takes(text)
    assert not schema_takes(text)
