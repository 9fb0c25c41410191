from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.orders import (
    COMMANDS,
    MAX_PACKET,
    Answer,
    Command,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    workers_wanted,
)


@given(st.text(), st.text())
def test_a_request_arrives_as_it_was_asked(command: str, argument: str) -> None:
    assert decode_request(encode_request(Request(command, argument))) == Request(command, argument)


def test_an_answer_arrives_as_it_was_given() -> None:
    answer = Answer(3, "as\nit is", {"workers": [{"pid": 1}]})

    assert decode_answer(encode_answer(answer)) == answer


@given(st.integers(0, 60_000), st.integers(0, 200_000))
def test_an_answer_always_fits_a_packet(text: int, data: int) -> None:
    packet = encode_answer(Answer(0, "\0" * text, {"long": "x" * data}))

    assert len(packet) <= MAX_PACKET
    assert decode_answer(packet).text[: min(text, 1000)] == "\0" * min(text, 1000)


@given(st.binary())
def test_anything_else_is_a_value_error(packet: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with pytest.raises(ValueError):  # noqa: PT011  json says it in many ways
            decode(packet)


@pytest.mark.parametrize("packet", [b"[" * 100_000, b'{"command": 1, "argument": ""}', b'{"command": "x"}', b"\xff"])
def test_requests_of_another_shape_are_refused(packet: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_request(packet)


def test_fields_of_a_later_version_do_not_matter() -> None:
    later = json.dumps({"command": "reload", "argument": "", "force": True}).encode()

    assert decode_request(later) == Request("reload")


@pytest.mark.parametrize(
    ("argument", "wanted"), [("4", 4), ("+1", 3), ("-1", 1), ("+0", 2), ("0", 0), ("-5", -3), ("9999", 9999)]
)
def test_workers_are_asked_for_by_number_or_by_difference(argument: str, wanted: int) -> None:
    assert workers_wanted(argument, 2) == wanted


@pytest.mark.parametrize("argument", ["", "+", "many", "1.5", "--1", "1 ", "٣", "12345", "+-1"])
def test_anything_else_is_no_number_of_workers(argument: str) -> None:
    with pytest.raises(ValueError, match="expected a number of workers"):
        workers_wanted(argument, 2)


def test_every_command_is_described() -> None:
    assert list(COMMANDS) == list(Command)
