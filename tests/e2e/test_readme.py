"""Each configuration of the README, and the example file, run as it stands: in a namespace every port is free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.netns import Namespaces
from tests.support.proxy import ROOT, run_cli

_BLOCK: Final = re.compile(r"^### (?P<title>.+?)\n\n```toml\n(?P<text>.*?)```", re.MULTILINE | re.DOTALL)

CONFIGS: Final = {
    **{match["title"]: match["text"] for match in _BLOCK.finditer((ROOT / "README.md").read_text())},
    "config.example.toml": (ROOT / "config.example.toml").read_text(),
}


def test_the_readme_has_several_configurations() -> None:
    assert len(CONFIGS) > 5
    assert (ROOT / "README.md").read_text().count("```toml") == len(CONFIGS) - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_is_accepted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIGS[name])

    result = run_cli("--check", "--config", str(path))

    assert result.returncode == 0, result.stderr


@pytest.mark.netns
@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_runs(start_proxy: StartProxy, name: str) -> None:
    with Namespaces("readme") as nets:
        proxy = start_proxy(CONFIGS[name], as_it_stands=True, netns=nets["readme"])

        assert "error" not in "\n".join(proxy.log())
