"""The demo's real targets, running once for all tests of this folder."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rpxy_l4.demo import scene
from rpxy_l4.demo.processes import running_targets
from rpxy_l4.demo.targets import CERTIFICATE_FILE, Served

UDP = (scene.UDP_ECHO, scene.QUIC, scene.WIREGUARD)


@dataclass(frozen=True)
class Targets:
    served: Served
    certificate: Path

    @contextlib.contextmanager
    def connect(self, name: str) -> Iterator[socket.socket]:
        """A socket connected to the target of this name."""
        kind = socket.SOCK_DGRAM if name in UDP else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(10)
            sock.connect((scene.HOST, self.served.ports[name]))
            yield sock


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    folder = tmp_path_factory.mktemp("demo-targets")
    with running_targets(folder) as (child, served):
        yield Targets(served, folder / CERTIFICATE_FILE)
        assert child.said() == "  (nothing)", "the targets complain"
