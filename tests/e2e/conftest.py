"""What every end-to-end test shares: its mark, and a proxy that is stopped and checked at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import Network, make_network
from tests.support.kernel_path import needs_kernel_path
from tests.support.proxy import Proxy
from tests.support.tls_files import TlsFiles, make_tls_files

HERE = Path(__file__).parent

StartProxy = Callable[..., Proxy]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy with this configuration; it is stopped, and its log looked through, when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(config: str, **options: Any) -> Proxy:
            return stack.enter_context(Proxy(tmp_path, config, **options))

        yield start


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Hosts of which the proxy's has a kernel path."""
    needs_kernel_path()
    with make_network(tmp_path) as made:
        yield made


@pytest.fixture
def two_targets(tmp_path: Path) -> Iterator[Network]:
    """The same, with a host more: ``other``, at 10.3.0.1."""
    needs_kernel_path()
    with make_network(tmp_path, "other") as made:
        yield made


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TlsFiles]:
    """The certificate of a name, made at its first use."""
    folder = tmp_path_factory.mktemp("tls")
    made: dict[str, TlsFiles] = {}

    def get(name: str) -> TlsFiles:
        if name not in made:
            made[name] = make_tls_files(folder, name)
        return made[name]

    return get
