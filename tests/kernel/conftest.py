"""A network namespace for whatever is attached to interfaces, which this thread is in meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kernel_path import needs_kernel_path
from tests.support.netns import Namespaces, inside


@pytest.fixture
def here() -> Iterator[Namespaces]:
    needs_kernel_path()
    with Namespaces("here", "there") as nets:
        nets.join("here", "10.1.0.1/24", "there", "10.1.0.2/24")
        with inside(nets["here"]):
            yield nets
