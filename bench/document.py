"""What one run of the benchmark found, as it is written to and read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.contestants import DIRECT
from bench.measure import Entry, Sample
from bench.stats import Comparison, Summary, compare, least, summarize

Figure = Callable[[Sample], float | None]
_NOTHING: Final = Entry()


@dataclass(frozen=True)
class Measured:
    """One workload and what each contestant did."""

    name: str
    text: str
    unit: str
    entries: dict[str, Entry]

    def summary(self, name: str, figure: Figure, *, paced: bool = False) -> Summary | None:
        """Return the median and spread of a figure of a contestant's samples; None when there is none."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        return summarize([figure(sample) for sample in (entry.paced if paced else entry.fastest)])

    def median(self, name: str, figure: Figure, *, paced: bool = False) -> float | None:
        """Return the median alone."""
        summary = self.summary(name, figure, paced=paced)
        return None if summary is None else summary.median

    def compare(self, name: str, other: str, figure: Figure, *, paced: bool = False) -> Comparison | None:
        """Return a figure of one contestant by that of another, round by round; None when there is none."""
        ones, others = (
            [figure(sample) for sample in (entry.paced if paced else entry.fastest)]
            for entry in (self.entries.get(name, _NOTHING), self.entries.get(other, _NOTHING))
        )
        return compare(ones, others)

    def best(self, names: tuple[str, ...], figure: Figure, *, paced: bool = False) -> float | None:
        """Return the smallest median among these contestants."""
        return least(self.median(name, figure, paced=paced) for name in names)

    def bytes_each(self, name: str) -> Summary | None:
        """Return the memory of an idle session."""
        entry = self.entries.get(name)
        return None if entry is None else summarize(entry.per_session)


@dataclass(frozen=True)
class Document:
    """A whole run."""

    date: str
    commit: str
    command: str
    machine: dict[str, str]
    settings: dict[str, float]
    versions: dict[str, str]
    """Of each contestant that took part, what it says about itself."""
    titles: dict[str, str]
    missing: list[str]
    """Contestants that are not on this machine."""
    notes: list[str]
    workloads: list[Measured]

    @property
    def names(self) -> list[str]:
        """Return the contestants in the order of columns."""
        return [*self.versions, *([DIRECT] if any(DIRECT in each.entries for each in self.workloads) else [])]

    def title(self, name: str) -> str:
        """Return what a contestant is called in the report."""
        return self.titles.get(name, "no proxy")

    def workload(self, name: str) -> Measured | None:
        """Return a workload by name; None when it was not run."""
        return next((each for each in self.workloads if each.name == name), None)


def to_json(document: Document) -> str:
    """Return a document as text."""
    return json.dumps(asdict(document), indent=1) + "\n"


def from_json(text: str) -> Document:
    """Return the document in a text that :func:`to_json` made."""
    values: dict[str, Any] = json.loads(text)
    values["workloads"] = [_measured(each) for each in values["workloads"]]
    return Document(**values)


def _measured(values: dict[str, Any]) -> Measured:
    values["entries"] = {name: _entry(entry) for name, entry in values["entries"].items()}
    return Measured(**values)


def _entry(values: dict[str, Any]) -> Entry:
    for kind in ("fastest", "paced"):
        values[kind] = [Sample(**sample) for sample in values[kind]]
    return Entry(**values)
