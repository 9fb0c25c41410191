"""What is wrong with a configuration, and how that is said to its author."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# A quoted value longer than this says no more than its beginning does.
_QUOTE_LIMIT: Final = 60
# Of a source line, what fits beside a line number on a terminal of 120 columns.
_LINE_LIMIT: Final = 100
_ELLIPSIS: Final = "..."


def quote(text: str) -> str:
    """Return the text in double quotes, fit for one line of a terminal: cut when long, unprintables escaped."""
    cut = text[:_QUOTE_LIMIT] + _ELLIPSIS if len(text) > _QUOTE_LIMIT else text
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'


def _columns(char: str) -> int:
    """Columns that a character takes on a terminal."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault, and where in the file it is."""

    message: str
    file: str = ""
    line: int = 0
    """From 1. 0: the fault is not at one place of the file."""
    column: int = 1
    """From 1, in characters."""
    width: int = 1
    """Characters of the line that the fault covers."""
    path: str = ""
    """The key, ``protocols.tls1.target[0]``; empty for faults of syntax or of the whole."""

    def __str__(self) -> str:
        """``file:line:column: error: path: message``, without the parts that are unknown."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, "error", self.path, self.message) if part)

    def render(self, source: str) -> str:
        """Return the fault with the line of ``source`` it is on, and a caret under what is wrong."""
        return self.render_in(source.split("\n"))

    def render_in(self, lines: Sequence[str]) -> str:
        """Do what ``render`` does, given the lines of the source."""
        if not 0 < self.line <= len(lines):
            return str(self)
        line = lines[self.line - 1].removesuffix("\r")
        start = min(self.column - 1, len(line))
        width = max(1, min(self.width, len(line) - start))
        if len(line) > _LINE_LIMIT:
            first = max(0, min(start - _LINE_LIMIT // 2, len(line) - _LINE_LIMIT))
            head = _ELLIPSIS if first else ""
            tail = _ELLIPSIS if first + _LINE_LIMIT < len(line) else ""
            line = head + line[first : first + _LINE_LIMIT] + tail
            start += len(head) - first
            width = min(width, len(line) - start)
        # A tab stays a tab in both lines, so that the caret stands right whatever the terminal's tab stops are.
        shown = "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
        indent = "".join("\t" if c == "\t" else " " * _columns(c) for c in shown[:start])
        marked = max(1, sum(_columns(c) for c in shown[start : start + width]))
        gutter = f"  {self.line} | "
        margin = " " * (len(gutter) - 2) + "| "
        return f"{self}\n{gutter}{shown}\n{margin}{indent}^{'~' * (marked - 1)}"


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` lists every fault found, not just the first."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        """Take the faults and the text of the file they are in."""
        super().__init__(problems, source)
        self.problems = tuple(problems)
        self.source = source

    def __str__(self) -> str:
        """One line per fault, without the source."""
        return "\n".join(str(problem) for problem in self.problems)

    def render(self) -> str:
        """Return every fault with its source line and caret, ready to print."""
        lines = self.source.split("\n")
        return "\n".join(problem.render_in(lines) for problem in self.problems)
