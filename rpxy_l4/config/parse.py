"""From the text of the file to its model, or to everything that is wrong with it."""

from __future__ import annotations

import bisect
import copy
import itertools
import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import ValidationError

from rpxy_l4.config.checks import check
from rpxy_l4.config.model import Config
from rpxy_l4.config.positions import Document, Path, Span, TomlError, read_toml
from rpxy_l4.config.problems import explain_all
from rpxy_l4.errors import ConfigError, Problem, quote

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
# Any port will do to look at the other keys; what depends on the port is not looked at then.
_SOME_PORT: Final = 1
# An entry without one of these is no entry.
_ENTRY_NEEDS: Final = ("protocol", "target")


def parse(source: str | bytes, file: str) -> Config:
    """Return the configuration. ``file`` is the name that messages begin with; nothing is read.

    Raises ConfigError with every problem of the file, in the order of the file: the first one where it is not TOML,
    otherwise all that is wrong with single keys and all that is wrong between them.
    """
    # Of a string, too: what was decoded with surrogates is no text.
    data = source if isinstance(source, bytes) else source.encode(errors="surrogatepass")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        place = len(data[: error.start].decode())
        reporter = _Reporter(file, data.decode(errors="replace"))
        raise reporter.error([reporter.problem("the file is not UTF-8 text", Span(place, place + 1))]) from None
    text = text.removeprefix("\ufeff")
    reporter = _Reporter(file, text)
    try:
        document = read_toml(text)
    except TomlError as error:
        raise reporter.error([reporter.problem(error.message, error.span)]) from None
    config, found = _validate(document)
    if found:
        raise reporter.error(reporter.problem(message, span, path) for path, message, span in found)
    return config


_Finding = tuple[Path, str, Span]


def _validate(document: Document) -> tuple[Config, list[_Finding]]:
    """Return the model, without the parts that are wrong, and everything that is wrong."""
    found: list[_Finding] = []
    broken: set[Path] = set()
    try:
        config = Config.model_validate(document.data)
    except ValidationError as invalid:
        for path, message, is_key in explain_all(invalid):
            broken.add(path)
            # A single value may stand for an array of one; nobody wrote an index then.
            shown = path[:-1] if isinstance(path[-1], int) and path not in document.values else path
            found.append((shown, message, document.locate_key(path) if is_key else document.locate_value(path)))
        config = Config.model_validate(_without(document.data, broken))
    for path, message in check(config, frozenset(broken)):
        found.append((path, message, document.locate_value(path)))
    return config, found


def _without(data: dict[str, Any], broken: Iterable[Path]) -> dict[str, Any]:
    """Return the data without what is wrong, but with as much as possible of what is right."""
    rest = copy.deepcopy(data)
    for path in broken:
        match path:
            case ("protocols" | "protocol" as table, name, key, *_) if key not in _ENTRY_NEEDS:
                rest.get(table, {}).get(name, {}).pop(key, None)
            case ("protocols" | "protocol" as table, name, *_):
                rest.get(table, {}).pop(name, None)
            case _:
                rest.pop(str(path[0]), None)
    return {"listen_port": _SOME_PORT, **rest}


class _Reporter:
    """Turns places in the text into lines and columns."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._line_starts = [0, *itertools.accumulate(len(line) + 1 for line in text.split("\n"))]

    def problem(self, message: str, span: Span, path: Path = ()) -> Problem:
        """Return the problem at this place. Of a span over several lines the first line counts."""
        line = bisect.bisect_right(self._line_starts, span.start, hi=len(self._line_starts) - 1)
        start = self._line_starts[line - 1]
        end = self._line_starts[line] - 1
        return Problem(
            message=message,
            file=self._file,
            line=line,
            column=span.start - start + 1,
            width=max(1, min(span.end, end) - span.start),
            path=_show_path(path),
        )

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """Return the error with its problems in the order of the file, each once."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))
        return ConfigError(ordered, self._text)


def _show_path(path: Path) -> str:
    """``protocols.tls1.target[0]``; keys that TOML would quote are quoted."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += ("." if shown else "") + (part if _BARE_KEY.fullmatch(part) else quote(part))
    return shown
