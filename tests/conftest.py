from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import settings

from rpxy_l4.workers import relay

# Deterministic, so that a red run is red again; and a busy machine must not fail a test by being slow.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is logged need not be text, but what one process reports to another has to be."""
    report = yield
    report.sections = [(name, said.encode(errors="backslashreplace").decode()) for name, said in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not relay.__file__.endswith(".so"):
        return
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.skip(reason="what it changes is fixed when the program is compiled"))
