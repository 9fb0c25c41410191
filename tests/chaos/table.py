"""The README's table of faults. ``python -m tests.chaos.table`` runs the tests and writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.support.proxy import ROOT
from tests.support.traffic.source import Losses

RECORD: Final = "RPXY_L4_CHAOS_RECORD"
"""Environment variable: the file to which each test adds its row."""
BEGIN: Final = "<!-- chaos -->"
END: Final = "<!-- /chaos -->"


@dataclass(frozen=True)
class Row:
    """What a fault cost: how much was done, and what was lost, by what it was."""

    fault: str
    done: dict[str, int]
    lost: dict[str, int]

    @classmethod
    def of(cls, fault: str, losses: Iterable[Losses]) -> Self:
        losses = list(losses)
        return cls(
            fault,
            {each.source: each.done for each in losses},
            {each.things: len(each.lost) for each in losses},
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each fault."""
    head = "| fault | what was held | what was lost |\n|---|---|---|\n"
    return head + "".join(f"| {row.fault} | {_held(row)} | {_lost(row)} |\n" for row in rows)


def _held(row: Row) -> str:
    return ", ".join(f"{count} {what}" for what, count in row.done.items())


def _lost(row: Row) -> str:
    return ", ".join(f"{what}: {count}" for what, count in row.lost.items() if count) or "nothing"


def put_into(page: str, rows: Sequence[Row]) -> str:
    """Return the page with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}{END}{after}"


def main() -> int:
    """Run the tests, and write the table if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "rows"
        tests = [sys.executable, "-m", "pytest", "-q", "tests/chaos/test_faults.py"]
        status = subprocess.run(tests, cwd=ROOT, env={**os.environ, RECORD: str(lines)}, check=False).returncode
        if status == 0:
            rows = [Row.from_json(line) for line in lines.read_text().splitlines()]
            readme = ROOT / "README.md"
            readme.write_text(put_into(readme.read_text(), rows))
        return status


if __name__ == "__main__":
    sys.exit(main())
