"""The surroundings of the proxy, made once for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world
