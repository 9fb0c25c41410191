"""The demo's table: rows of text in aligned columns. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_GAP: Final = "  "
_HEADER: Final = ("sent", "recognised", "route", "target", "ms", "answer")
_MS: Final = 4
"""Index of the one column of numbers."""


class State(enum.Enum):
    """How a row came out."""

    OK = enum.auto()
    FAILED = enum.auto()
    SKIPPED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One exchange. What is not known is empty."""

    sent: str
    recognised: str = ""
    route: str = ""
    target: str = ""
    ms: str = ""
    answer: str
    state: State


@dataclass(frozen=True, slots=True)
class Style:
    """Escape sequences, or none."""

    colours: bool

    def bold(self, text: str) -> str:
        """Return the text so that it stands out."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """Return the text so that it stands back."""
        return self._wrap("2", text)

    def state(self, state: State, text: str) -> str:
        """Return the text in the colour of the state."""
        match state:
            case State.OK:
                return self._wrap("32", text)
            case State.FAILED:
                return self._wrap("31;1", text)
            case State.SKIPPED:
                return self._wrap("33", text)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text


def render(rows: Sequence[Row], style: Style, width: int | None) -> list[str]:
    """Return the lines of the table.

    In a terminal of ``width`` columns that is too narrow for a row, answers stand on lines of their own; None is any
    width.
    """
    texts = [(row.sent, row.recognised, row.route, row.target, row.ms, _answer(row)) for row in rows]
    *widths, answer_width = (max(len(cells[i]) for cells in (_HEADER, *texts)) for i in range(len(_HEADER)))
    too_narrow = width is not None and sum(widths) + len(_GAP) * len(widths) + answer_width > width
    header = _line(_HEADER, widths)
    lines = [style.bold(header if too_narrow else f"{header}{_GAP}{_HEADER[-1]}")]
    for row, cells in zip(rows, texts, strict=True):
        answer = style.state(row.state, cells[-1])
        if too_narrow:
            lines += [_line(cells, widths).rstrip(), f"{_GAP}{answer}"]
        else:
            lines.append(f"{_line(cells, widths)}{_GAP}{answer}")
    return lines


def _answer(row: Row) -> str:
    match row.state:
        case State.OK:
            return row.answer
        case State.FAILED:
            return f"FAILED: {row.answer}"
        case State.SKIPPED:
            return f"skipped: {row.answer}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cells[i].rjust(width) if i == _MS else cells[i].ljust(width) for i, width in enumerate(widths))
