"""The import rule, and where each power lives. The two tables below are the picture of the house.

A module imports only from the lines below its own, and from its own name's package. Every import counts, those inside
functions too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

# From the ground up; neighbours on one line are strangers to each other. A name stands for the module, or for the
# package with all in it.
LAYERS: Final[list[tuple[str, ...]]] = [
    ("rpxy_l4", "rpxy_l4.endings", "rpxy_l4.errors", "rpxy_l4.limits", "rpxy_l4.verdict", "rpxy_l4.version"),
    ("rpxy_l4.addresses", "rpxy_l4.durations", "rpxy_l4.snapshot"),
    (
        "rpxy_l4.balance",
        "rpxy_l4.flow_memory",
        "rpxy_l4.metrics",
        "rpxy_l4.probes",
        "rpxy_l4.proxy_protocol",
        "rpxy_l4.timers",
    ),
    ("rpxy_l4.detect", "rpxy_l4.router"),
    ("rpxy_l4.config", "rpxy_l4.control", "rpxy_l4.orders"),
    ("rpxy_l4.logs", "rpxy_l4.net"),
    ("rpxy_l4.access_log", "rpxy_l4.kernel"),
    ("rpxy_l4.admin", "rpxy_l4.supervisor", "rpxy_l4.workers"),
    ("rpxy_l4.ctl", "rpxy_l4.demo"),
    ("rpxy_l4.cli",),
    ("rpxy_l4.__main__",),
]

PURE: Final = LAYERS[:5]
"""No I/O, no clock: tested without waiting."""

# Who may import what reaches outside the process or makes things happen at once. Modules that stand in no line of this
# table are free for all.
POWERS: Final[dict[str, tuple[str, ...]]] = {
    "asyncio": ("rpxy_l4.admin", "rpxy_l4.demo", "rpxy_l4.workers"),
    "concurrent": (),
    "http": ("rpxy_l4.demo",),
    "multiprocessing": (),
    "os": (
        "rpxy_l4.admin",
        "rpxy_l4.cli",
        "rpxy_l4.demo",
        "rpxy_l4.kernel",
        "rpxy_l4.logs",
        "rpxy_l4.net",
        "rpxy_l4.supervisor",
        "rpxy_l4.workers",
    ),
    # 14 MiB in every process that imports it: only who renders the metrics pays.
    "prometheus_client": ("rpxy_l4.admin",),
    "select": ("rpxy_l4.demo", "rpxy_l4.logs", "rpxy_l4.workers"),
    "selectors": ("rpxy_l4.supervisor",),
    # The logs: writing to a terminal may send one.
    "signal": ("rpxy_l4.admin", "rpxy_l4.demo", "rpxy_l4.logs", "rpxy_l4.supervisor", "rpxy_l4.workers"),
    "socket": (
        "rpxy_l4.admin",
        "rpxy_l4.demo",
        "rpxy_l4.kernel",
        "rpxy_l4.net",
        "rpxy_l4.supervisor.systemd",
        "rpxy_l4.workers",
    ),
    "ssl": ("rpxy_l4.demo",),
    "subprocess": ("rpxy_l4.demo", "rpxy_l4.supervisor.upgrade"),
    "threading": ("rpxy_l4.admin",),
    "time": (
        "rpxy_l4.access_log",
        "rpxy_l4.admin",
        "rpxy_l4.demo",
        "rpxy_l4.kernel",
        "rpxy_l4.logs",
        "rpxy_l4.supervisor",
        "rpxy_l4.workers",
    ),
    "urllib": (),
    "uvloop": ("rpxy_l4.admin", "rpxy_l4.workers"),
}


@dataclass(frozen=True)
class Module:
    """One source file and everything it imports."""

    name: str
    imports: tuple[str, ...]
    relative: bool


def read_module(name: str, source: str) -> Module:
    imports: list[str] = []
    relative = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative |= node.level > 0
            # What is imported from a package may be a module of it.
            imports += [f"{node.module}.{alias.name}" for alias in node.names]
    return Module(name, tuple(imports), relative)


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the program with its file; the two linked folders once, under their import name."""
    for top, package in (("rpxy_l4", "rpxy_l4"), ("workers", "rpxy_l4.workers"), ("supervisor", "rpxy_l4.supervisor")):
        for path in sorted((ROOT / top).rglob("*.py")):
            relative = path.relative_to(ROOT / top)
            if top == "rpxy_l4" and relative.parts[0] in {"workers", "supervisor"}:
                continue
            parts = [package, *relative.with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


def all_modules() -> list[Module]:
    return [read_module(name, path.read_text()) for name, path in sources()]


def is_part_of(name: str, owner: str) -> bool:
    # The bare package is only its own __init__, not all that is in it.
    return name == owner or (owner != "rpxy_l4" and name.startswith(owner + "."))


def place(name: str) -> tuple[int, str] | None:
    """The line a module stands on and the name it stands there under."""
    for number, line in enumerate(LAYERS):
        for owner in line:
            if is_part_of(name, owner):
                return number, owner
    return None


def imported_module(name: str, known: frozenset[str]) -> str | None:
    """The module of ours that an imported name belongs to; None for those of others."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def faults(modules: list[Module]) -> list[str]:
    known = frozenset(module.name for module in modules)
    found: list[str] = []
    for module in modules:
        if module.relative:
            found.append(f"{module.name} has a relative import")
        here = place(module.name)
        if here is None:
            found.append(f"{module.name} stands in no layer")
            continue
        for name in sorted(set(module.imports)):
            power = name.partition(".")[0]
            if power in POWERS and not any(is_part_of(module.name, owner) for owner in POWERS[power]):
                found.append(f"{module.name} imports {power}")
            ours = imported_module(name, known)
            there = place(ours) if ours is not None else None
            if there is not None and there[1] != here[1] and there[0] >= here[0]:
                found.append(f"{module.name} imports {ours}")
    return sorted(set(found))


def test_every_module_imports_only_from_the_lines_below_it_and_uses_only_its_own_powers() -> None:
    assert faults(all_modules()) == []


def test_no_name_in_the_tables_is_left_over() -> None:
    modules = all_modules()
    absent = [name for line in LAYERS for name in line if not any(is_part_of(module.name, name) for module in modules)]
    unused = [
        f"{owner} does not use {power}"
        for power, owners in POWERS.items()
        for owner in owners
        if not any(
            is_part_of(module.name, owner) and power in {name.partition(".")[0] for name in module.imports}
            for module in modules
        )
    ]

    assert absent + unused == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("rpxy_l4.probes.ssh", "import socket", "rpxy_l4.probes.ssh imports socket"),
        ("rpxy_l4.probes.ssh", "def f():\n    import time", "rpxy_l4.probes.ssh imports time"),
        ("rpxy_l4.probes.ssh", "from os import path", "rpxy_l4.probes.ssh imports os"),
        ("rpxy_l4.probes.ssh", "from rpxy_l4 import router", "rpxy_l4.probes.ssh imports rpxy_l4.router"),
        ("rpxy_l4.probes.ssh", "import rpxy_l4.balance", "rpxy_l4.probes.ssh imports rpxy_l4.balance"),
        (
            "rpxy_l4.workers.relay",
            "def f():\n    from rpxy_l4.supervisor.loop import run",
            "rpxy_l4.workers.relay imports rpxy_l4.supervisor.loop",
        ),
        ("rpxy_l4.supervisor.policy", "from . import loop", "rpxy_l4.supervisor.policy has a relative import"),
        ("rpxy_l4.newcomer", "", "rpxy_l4.newcomer stands in no layer"),
    ],
)
def test_a_planted_violation_is_named(name: str, source: str, fault: str) -> None:
    others = ("rpxy_l4", "rpxy_l4.router", "rpxy_l4.balance", "rpxy_l4.supervisor.loop")

    assert faults([read_module(name, source), *(Module(other, (), False) for other in others)]) == [fault]


def test_a_module_may_import_from_below_and_from_its_own_package() -> None:
    source = "from rpxy_l4.probes import hello\nfrom rpxy_l4.verdict import Match\nimport struct"
    others = [Module("rpxy_l4.probes.hello", (), False), Module("rpxy_l4.verdict", (), False)]

    assert faults([read_module("rpxy_l4.probes.tls", source), *others]) == []


def test_one_word_stands_for_one_thing() -> None:
    banned = re.compile(r"(?<![a-z])(backend|upstream|downstream)", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for _, path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if banned.search(line)
    ]

    assert found == []


def test_every_pure_module_has_a_test_module_of_its_own() -> None:
    pure = [name for name, path in sources() if any(is_part_of(name, owner) for line in PURE for owner in line)]
    missing = []
    for name in pure:
        path = next(path for known, path in sources() if known == name)
        if path.name == "__init__.py" or name == "rpxy_l4.version":  # nothing in them to test
            continue
        *folders, last = name.split(".")[1:]
        test = ROOT.joinpath("tests", *folders, f"test_{last}.py")
        if not test.exists():
            missing.append(str(test.relative_to(ROOT)))

    assert missing == []
