"""HTTP/3 client and target of the demo: what goes wrong is an OSError, at once or after a bounded time."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpxy_l4.demo import quic, scene
from rpxy_l4.demo.targets import make_certificate
from tests.demo.conftest import Targets


def test_the_page_comes_with_its_status(targets: Targets) -> None:
    with targets.connect(scene.QUIC) as sock:
        assert quic.get(sock, targets.certificate) == ("200", "Hello from the QUIC target.\n")


def test_the_socket_stays_the_callers(targets: Targets) -> None:
    with targets.connect(scene.QUIC) as sock:
        quic.get(sock, targets.certificate)
        assert sock.getpeername() == (scene.HOST, targets.served.ports[scene.QUIC])


def test_a_certificate_of_somebody_else_is_refused(targets: Targets, tmp_path: Path) -> None:
    other, _ = make_certificate(tmp_path)
    with targets.connect(scene.QUIC) as sock, pytest.raises(ConnectionError):
        quic.get(sock, other)
