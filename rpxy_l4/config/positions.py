"""TOML text as plain data, with the place of every key and value.

tomlkit keeps no positions. Each key and each value passes through one method of its parser, so a subclass can note
where they begin and end. Those methods are private: should they change, places are guessed by searching the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from tomlkit.container import Container
from tomlkit.exceptions import (
    InvalidDateError,
    InvalidDateTimeError,
    InvalidNumberError,
    InvalidTimeError,
    KeyAlreadyPresent,
    ParseError,
    TOMLKitError,
    UnexpectedEofError,
)
from tomlkit.items import AbstractTable, AoT, Array, Item, Key
from tomlkit.parser import Parser

Path = tuple[str | int, ...]
"""Keys, and indices of arrays, from the top of the file."""


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets into the text: from ``start`` up to ``end``."""

    start: int
    end: int


class TomlError(Exception):
    """The text is not TOML."""

    def __init__(self, message: str, span: Span) -> None:
        """Take the message for the author, and the place."""
        super().__init__(message)
        self.message = message
        self.span = span


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, date and time), and where each part stands."""

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Path, Span] = field(default_factory=dict)
    values: dict[Path, Span] = field(default_factory=dict)

    def locate_key(self, path: Path) -> Span:
        """Return the place of a key; of the nearest thing around it if it is not in the file."""
        return self._nearest(path, self.keys, self.values)

    def locate_value(self, path: Path) -> Span:
        """Return the place of a value; of its key if it is a table with a header; else of what is around it."""
        return self._nearest(path, self.values, self.keys)

    def _nearest(self, path: Path, first: dict[Path, Span], second: dict[Path, Span]) -> Span:
        if not self.keys:
            return _search(self.text, path)
        while path:
            span = first.get(path) or second.get(path)
            if span is not None:
                return span
            path = path[:-1]
        return Span(0, 0)


def read_toml(text: str) -> Document:
    """Parse the text. Raises TomlError, and nothing else."""
    recorder = _Recorder(text)
    document = Document(text)
    try:
        _collect(document, recorder, recorder.parse(), (), document.data)
    except TOMLKitError as error:
        raise _syntax_error(error, recorder, text) from None
    except RecursionError:
        raise TomlError("invalid TOML: nested too deeply", Span(0, 0)) from None
    except Exception as error:
        # A fault of the library must not end a process that reloads.
        raise TomlError(f"invalid TOML: {type(error).__name__}", Span(0, 0)) from error
    return document


class _Recorder(Parser):
    """Notes where each key and each value stands."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text
        self.spans: dict[int, Span] = {}
        self.seen: list[Item | Key] = []
        """Kept alive: the spans are found by id."""
        self.failed: Span | None = None
        """The innermost value that is not TOML."""

    def _parse_value(self, *args: Any, **kwargs: Any) -> Item:
        start = self._offset()
        try:
            item: Item = super()._parse_value(*args, **kwargs)
        except TOMLKitError:
            self.failed = self.failed or Span(start, max(start + 1, self._offset()))
            raise
        self._note(item, start)
        return item

    def _parse_simple_key(self, *args: Any, **kwargs: Any) -> Key:
        start = self._offset()
        key: Key = super()._parse_simple_key(*args, **kwargs)
        self._note(key, start)
        return key

    def _offset(self) -> int:
        return int(getattr(self, "_idx", -1))

    def _note(self, part: Item | Key, start: int) -> None:
        if start < 0:
            return
        covered = self._text[start : self._offset()]
        bare = covered.strip(" \t")
        start += len(covered) - len(covered.lstrip(" \t"))
        self.spans[id(part)] = Span(start, start + len(bare))
        self.seen.append(part)


def _collect(document: Document, recorder: _Recorder, container: Container, path: Path, data: dict[str, Any]) -> None:
    """Copy a table into ``data``, and its places into the document. Parts of one table may lie apart in the file."""
    for key, item in container.body:
        if key is None:
            continue
        name = key.key
        here = (*path, name)
        if here not in document.keys and id(key) in recorder.spans:
            document.keys[here] = recorder.spans[id(key)]
        earlier = data.get(name)
        if isinstance(item, AbstractTable) and isinstance(earlier, dict):
            _collect(document, recorder, item.value, here, earlier)
        elif name in data:
            # tomlkit lets a few of these pass, such as a table below an array of tables that others stand between.
            raise KeyAlreadyPresent(name)
        else:
            data[name] = _plain(document, recorder, item, here)


def _plain(document: Document, recorder: _Recorder, item: Any, path: Path) -> Any:
    if id(item) in recorder.spans:
        document.values[path] = recorder.spans[id(item)]
    if isinstance(item, AbstractTable):
        table: dict[str, Any] = {}
        _collect(document, recorder, item.value, path, table)
        return table
    if isinstance(item, Array):
        return [_plain(document, recorder, element, (*path, i)) for i, element in enumerate(list.__iter__(item))]
    if isinstance(item, AoT):
        return [_plain(document, recorder, element, (*path, i)) for i, element in enumerate(item.body)]
    return item.unwrap() if isinstance(item, Item) else item


_LOCATION: Final = re.compile(r" at line \d+ col \d+$")
_TAKEN: Final = re.compile(r'Key "(.*)" already exists', re.DOTALL)
_BARE_WORD: Final = re.compile(r"[A-Za-z_][\w./:-]*")
_BAD_LITERALS: Final = (InvalidNumberError, InvalidDateError, InvalidDateTimeError, InvalidTimeError)


def _syntax_error(error: TOMLKitError, recorder: _Recorder, text: str) -> TomlError:
    """Return what tomlkit says, in plainer words and with a better place where its own are known to be off."""
    reason = _LOCATION.sub("", str(error))
    taken = _TAKEN.search(reason)
    if taken:
        return TomlError(f"invalid TOML: {taken[1]} is defined twice", _last_key(recorder, taken[1]))
    failed = recorder.failed
    if failed is not None and isinstance(error, _BAD_LITERALS):
        return TomlError(f"invalid TOML: {reason.lower()}", failed)
    word = failed and _BARE_WORD.match(text, failed.start)
    if word and reason.startswith("Unexpected char"):
        return TomlError(f"invalid TOML: {word[0]} is not a value; text needs quotes", Span(*word.span()))
    if isinstance(error, UnexpectedEofError) or (r"'\x00'" in reason and "\0" not in text):
        end = len(text.rstrip())
        return TomlError("invalid TOML: the file ends in the middle of a statement", Span(end, end))
    if not isinstance(error, ParseError):
        return TomlError(f"invalid TOML: {reason[:1].lower()}{reason[1:]}", _last_key(recorder))
    # tomlkit counts lines as str.splitlines does, which knows more line ends than TOML.
    lines = text.splitlines(keepends=True)
    start = sum(map(len, lines[: error.line - 1])) + error.col
    if text[start : start + 1] in ("\n", "\r"):
        reason = "a string must end on the line it begins on" if "in strings" in reason else "unexpected end of line"
    if not reason.startswith("TOML"):
        reason = reason[:1].lower() + reason[1:]
    return TomlError(f"invalid TOML: {reason}", Span(start, start + 1))


def _last_key(recorder: _Recorder, name: str | None = None) -> Span:
    """Return the place of the key read last, under this name if one is given."""
    keys = (part for part in reversed(recorder.seen) if isinstance(part, Key))
    return next((recorder.spans[id(key)] for key in keys if name in (None, key.key, key.as_string())), Span(0, 0))


def _search(text: str, path: Path) -> Span:
    """Guess the place of a key: each name of the path as a word, behind the one before it."""
    found = Span(0, 0)
    for name in path:
        match = re.compile(rf"(?<![\w-]){re.escape(str(name))}(?![\w-])").search(text, found.end)
        if match is None:
            break
        found = Span(*match.span())
    return found
