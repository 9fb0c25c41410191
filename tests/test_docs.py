"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from rpxy_l4.supervisor.signals import SIGNALS, Order
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.version import VERSION
from tests.test_architecture import LAYERS

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted(ROOT.glob("*.md"))
README: Final = (ROOT / "README.md").read_text()
MAKEFILE: Final = (ROOT / "Makefile").read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its head."""
    table = re.search(r"^\|.*?(?=\n[^|]|\Z)", text[text.index(heading) :], re.MULTILINE | re.DOTALL)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_the_signal_table_is_the_one_in_the_code() -> None:
    documented = {name.strip("`"): text for name, text in rows(README, "Signals")}
    handled = {
        number.name.removeprefix("SIG"): meaning.text
        for number, meaning in SIGNALS.items()
        if meaning.order is not Order.NOTHING
    }

    assert documented == handled


def test_every_exit_status_is_documented() -> None:
    sentence = README[README.index("Exit status: ") :].partition("\n\n")[0]

    assert {int(number) for number in re.findall(r"\b\d+\b", sentence)} == {status.value for status in ExitStatus}


def test_the_diagram_is_the_list_of_layers() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    diagram = next(block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "rpxy_l4.cli" in block)
    drawn = [tuple(re.findall(r"rpxy_l4(?:\.\w+)*", line)) for line in diagram.splitlines()]

    assert drawn == LAYERS[::-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_named_in_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|\$ )make (\w+)", page.read_text()))

    assert named <= set(re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_named_in_a_page_exists(page: Path) -> None:
    named = re.findall(r"`((?:rpxy_l4|workers|supervisor|tests|bench|probes|detect)/[\w./]*)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "rpxy_l4" / name).exists()]

    assert [name for name in missing if name != "bench/results/"] == []


def test_the_changelog_knows_this_version() -> None:
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
