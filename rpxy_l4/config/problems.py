"""What pydantic reports, said in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rpxy_l4.config.forms import describe, did_you_mean
from rpxy_l4.config.model import Admin, Config, Entry
from rpxy_l4.config.positions import Path
from rpxy_l4.errors import quote

_EXPECTED: Final[Mapping[str, str]] = {
    "tuple_type": "an array",
    "model_type": "a table",
    "dict_type": "a table",
}
# Marks the location of an error about the key of a table itself.
_KEY_MARK: Final = "[key]"


def explain_all(invalid: ValidationError) -> Iterator[tuple[Path, str, bool]]:
    """Yield for each error the key path, the message, and whether it is about the key and not its value."""
    for error in invalid.errors(include_url=False):
        # pydantic counts only the good elements of an array; the bad ones have errors of their own.
        if error["type"] != "too_short" or not error["input"]:
            yield _explain(error)


def _explain(error: ErrorDetails) -> tuple[Path, str, bool]:
    path: Path = error["loc"]
    kind = error["type"]
    context: Mapping[str, Any] = error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return path, _unknown_key(path, error["input"]), True
        case "missing":
            return path, "this key is required", True
        case "value_error":
            message = str(context["error"])
            return (path[:-1], message, True) if path[-1] == _KEY_MARK else (path, message, False)
        case "too_short":
            return path, "must not be empty", False
        case "too_long":
            return path, f"at most {context['max_length']} elements", False
        case _:
            expected = _EXPECTED.get(kind)
            message = f"expected {expected}, got {describe(error['input'])}" if expected else error["msg"]
            return path, message, False


def _unknown_key(path: Path, value: object) -> str:
    key = str(path[-1])
    if key == "ech":
        return "ECH is not supported yet; remove this key"
    table = _table_of(path)
    if table is not Config and key in Config.model_fields:
        hint = "; it belongs at the top of the file, before the first table"
    else:
        hint = did_you_mean(key, table.model_fields)
    if not hint and table is Config and isinstance(value, dict) and not Entry.model_fields.keys().isdisjoint(value):
        hint = "; the table of a route is [protocols.NAME]"
    return f"unknown key {quote(key)}{hint}"


def _table_of(path: Path) -> type[BaseModel]:
    """Return the model of the table in which the last key of the path stands."""
    match path:
        case ("protocols" | "protocol", _, _):
            return Entry
        case ("admin", _):
            return Admin
        case _:
            return Config
