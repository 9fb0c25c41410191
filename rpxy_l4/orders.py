"""What ``rpxy-l4 ctl`` asks of a running supervisor, and what that answers: one packet each way. Pure.

JSON, because the two may be of different versions: unknown fields are ignored, an unknown command is answered as such.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_PACKET: Final = 128 * 1024
"""Bytes. Less than what a socket may have on its way by default (net.core.wmem_default)."""
_MAX_TEXT: Final = 16 * 1024
"""Characters; in JSON, six bytes each at most."""


class Command(enum.StrEnum):
    """What can be asked."""

    STATUS = "status"
    RELOAD = "reload"
    UPGRADE = "upgrade"
    WORKERS = "workers"


COMMANDS: Final[Mapping[Command, tuple[str, str]]] = {
    Command.STATUS: ("", "say what is in force, which workers there are and what they do"),
    Command.RELOAD: ("", "reload the configuration file, as HUP does, and wait until it is in force"),
    Command.UPGRADE: ("", "run the program's newest version in place, as USR2 does, and wait until it serves"),
    Command.WORKERS: ("N", "have N workers; +N or -N: so many more or fewer"),
}
"""The argument of each command, and what it does; for people."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked."""

    command: str
    """A :class:`Command`, or one of another version."""
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it."""

    status: int
    """For the one who asks to exit with: 0 when it was done."""
    text: str
    """For people."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs, where there is more to say than the text."""


def encode_request(request: Request) -> bytes:
    """Return a packet."""
    return json.dumps({"command": request.command, "argument": request.argument}).encode()


def decode_request(packet: bytes) -> Request:
    """Return what is asked. Raises ValueError for anything else."""
    match _object(packet):
        case {"command": str(command), "argument": str(argument)}:
            return Request(command, argument)
        case _:
            raise ValueError("not a request")


def encode_answer(answer: Answer) -> bytes:
    """Return a packet of at most ``MAX_PACKET`` bytes; a text too long for it is cut, data too long is left out."""
    text = answer.text if len(answer.text) <= _MAX_TEXT else f"{answer.text[:_MAX_TEXT]}\n... and more"
    for data in (answer.data, {}):
        packet = json.dumps({"status": answer.status, "text": text, "data": data}).encode()
        if len(packet) <= MAX_PACKET:
            break
    return packet


def decode_answer(packet: bytes) -> Answer:
    """Return what was answered. Raises ValueError for anything else."""
    match _object(packet):
        case {"status": int(status), "text": str(text), "data": dict(data)}:
            return Answer(status, text, data)
        case _:
            raise ValueError("not an answer")


def workers_wanted(argument: str, present: int) -> int:
    """Return the number that an argument of ``workers`` asks for. Raises ValueError, with what is wrong, for others."""
    sign, digits = (argument[:1], argument[1:]) if argument[:1] in {"+", "-"} else ("", argument)
    if not digits.isascii() or not digits.isdecimal() or len(digits) > len("9999"):
        raise ValueError(f"expected a number of workers, +N or -N, got {argument!r}")
    change = int(digits)
    return {"+": present + change, "-": present - change}.get(sign, change)


def _object(packet: bytes) -> object:
    try:
        return json.loads(packet)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
