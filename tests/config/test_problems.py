from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rpxy_l4.config.model import Config
from rpxy_l4.config.problems import explain_all

ENTRY = {"protocol": "ssh", "target": ["a:1"]}


def explained(**keys: Any) -> list[tuple[tuple[str | int, ...], str, bool]]:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"listen_port": 1, **keys})
    return list(explain_all(caught.value))


def test_an_unknown_key_is_pointed_at_and_a_known_one_suggested() -> None:
    assert explained(listen_prot=1) == [
        (("listen_prot",), 'unknown key "listen_prot"; did you mean "listen_port"?', True)
    ]
    assert explained(admin={"listn": ""})[0][1] == 'unknown key "listn"; did you mean "listen"?'
    assert explained(zebra=1)[0][1] == 'unknown key "zebra"'


@pytest.mark.parametrize("table", ["protocols", "protocol"])
def test_the_keys_of_an_entry_are_suggested_in_an_entry(table: str) -> None:
    message = 'unknown key "serve_name"; did you mean "server_names"?'

    assert explained(**{table: {"x": {**ENTRY, "serve_name": 1}}}) == [((table, "x", "serve_name"), message, True)]


def test_a_key_of_the_top_below_a_table_header_is_sent_there() -> None:
    message = 'unknown key "tcp_target"; it belongs at the top of the file, before the first table'

    assert explained(protocols={"x": {**ENTRY, "tcp_target": 1}})[0][1] == message
    assert explained(admin={"workers": 1})[0][1] == message.replace("tcp_target", "workers")


def test_an_entry_at_the_top_is_told_where_entries_stand() -> None:
    assert explained(x=ENTRY)[0][1] == 'unknown key "x"; the table of a route is [protocols.NAME]'


def test_ech_is_said_to_be_not_supported_yet() -> None:
    message = "ECH is not supported yet; remove this key"

    assert explained(protocols={"x": {**ENTRY, "ech": {"private_keys": []}}}) == [
        (("protocols", "x", "ech"), message, True)
    ]


def test_a_missing_key_is_said_to_be_required() -> None:
    assert explained(protocols={"x": {"protocol": "ssh"}}) == [
        (("protocols", "x", "target"), "this key is required", True)
    ]


def test_a_wrong_name_of_an_entry_is_pointed_at_itself() -> None:
    message = "the name of an entry has 1 to 100 printable characters"

    for name in ("", "x" * 101, "a\nb"):
        assert explained(protocols={name: ENTRY}) == [(("protocols", name), message, True)]


def test_an_array_is_empty_only_when_nothing_is_written_in_it() -> None:
    assert explained(tcp_target=[]) == [(("tcp_target",), "must not be empty", False)]
    assert [path for path, _, _ in explained(tcp_target=["x"])] == [("tcp_target", 0)]


def test_an_array_can_be_too_long() -> None:
    addresses = [f"10.0.0.{i}" for i in range(101)]

    assert explained(listen_address_v4=addresses) == [(("listen_address_v4",), "at most 100 elements", False)]


def test_arrays_and_tables_are_named_when_something_else_is_found() -> None:
    assert explained(tcp_target="a:1")[0][1] == "expected an array, got a string"
    assert explained(protocols=1)[0][1] == "expected a table, got a whole number"
    assert explained(protocols={"x": []})[0][1] == "expected a table, got an array"
    assert explained(admin="")[0][1] == "expected a table, got a string"
