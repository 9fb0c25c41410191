"""How single values are written: the check of each form, and its JSON Schema, side by side."""

from __future__ import annotations

import datetime as dt
import difflib
import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rpxy_l4.durations import MAX_SECONDS, UNITS, parse_duration
from rpxy_l4.errors import quote

T = TypeVar("T")

# Beyond what is worth showing, and int to str has a limit that raises.
_SHOWN_BITS: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """Annotation of a field: ``Annotated[int, Form(...)]``."""

    read: Callable[[Any], Any]
    """Plain value of the file -> value of the field. Raises ValueError whose message is for the author of the file."""
    json: dict[str, Any]
    """What an editor can check of it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let ``read`` alone decide."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return ``json``."""
        return dict(self.json)


def describe(value: object) -> str:
    """Return the kind of a TOML value in plain words, ``a string``."""
    match value:
        case bool():
            return f"the boolean {str(value).lower()}"
        case int():
            return "a whole number"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case dict():
            return "a table"
        case list():
            return "an array"
        case dt.date() | dt.time():
            return "a date or time"
        case _:
            return "something else"


def show_number(value: object) -> str:
    """Return a whole number as it is, and the kind of anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() < _SHOWN_BITS else "a number far outside"
    return describe(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {quote(near[0])}?" if near else ""


def whole(low: int, high: int) -> Form:
    """Return the form of a whole number within bounds."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"expected a whole number from {low} to {high}, got {show_number(value)}")

    return Form(read, {"type": "integer", "minimum": low, "maximum": high})


def text(expected: str, read: Callable[[str], T], **json: Any) -> Form:
    """Return the form of a string that ``read`` understands."""

    def read_text(value: object) -> T:
        if isinstance(value, str):
            return read(value)
        raise ValueError(f"expected {expected}, got {describe(value)}")

    return Form(read_text, {"type": "string", **json})


def word(kind: str, meanings: dict[str, T], *, any_case: bool = False) -> Form:
    """Return the form of one word of a few, each with its meaning."""
    listed = ", ".join(quote(known) for known in meanings)

    def read(value: str) -> T:
        known = value.lower() if any_case else value
        if known not in meanings:
            near = did_you_mean(value, meanings)
            raise ValueError(f"unknown {kind} {quote(value)}{near or f'; expected one of {listed}'}")
        return meanings[known]

    schema = {"pattern": f"^({'|'.join(map(_any_case, meanings))})$"} if any_case else {"enum": list(meanings)}
    return text(f"one of {listed}", read, **schema)


def member(kind: str, members: type[enum.StrEnum]) -> Form:
    """Return the form of an enumeration's values."""
    return word(kind, {str(one): one for one in members})


def _read_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"expected true or false, without quotes, got {describe(value)}")


FLAG = Form(_read_flag, {"type": "boolean"})


def _read_duration(value: object) -> float:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return parse_duration(value)
    raise ValueError(f'expected a duration such as "250ms", "30s", "1h" or whole seconds, got {describe(value)}')


def _read_positive_duration(value: object) -> float:
    seconds = _read_duration(value)
    if not seconds:
        raise ValueError("expected a duration longer than 0")
    return seconds


def _any_case(letters: str) -> str:
    """Return the regular expression of a word in any case; JSON Schema's have no flags."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in letters)


_DURATION_JSON = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_SECONDS},
        {"type": "string", "pattern": f"^[0-9]+({'|'.join(map(_any_case, UNITS))})$"},
    ]
}
DURATION = Form(_read_duration, _DURATION_JSON)
POSITIVE_DURATION = Form(_read_positive_duration, _DURATION_JSON)
