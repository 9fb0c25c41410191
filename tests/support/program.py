"""A copy of the program, to be changed: another version of it, or one that is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.proxy import ROOT


def copy_program(folder: Path) -> Path:
    """Copy the package there, and return the folder that has it."""
    without = shutil.ignore_patterns("__pycache__", "workers", "supervisor")
    shutil.copytree(ROOT / "rpxy_l4", folder / "rpxy_l4", ignore=without)
    for part in ("workers", "supervisor"):
        shutil.copytree(ROOT / part, folder / "rpxy_l4" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def change(program: Path, module: str, old: str, new: str) -> None:
    """Replace a text, which must be there, in a module of a copy."""
    path = program / "rpxy_l4" / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
