from __future__ import annotations

import pytest

from rpxy_l4.admin.health import readiness
from rpxy_l4.control import Status
from tests.admin import material


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (None, ["no configuration is in force yet"]),
        (material.status(), []),
        (material.status(states=("dead", "ready")), []),
        (material.status(states=("starting", "dead")), ["0 of 2 workers are ready"]),
        (material.status(draining=True), ["draining"]),
        (
            material.status(states=("draining", "draining"), draining=True),
            ["0 of 2 workers are ready", "draining"],
        ),
    ],
)
def test_ready_is_a_configuration_and_a_ready_worker_and_no_drain(status: Status | None, reasons: list[str]) -> None:
    assert [check.text for check in readiness(status) if not check.passed] == reasons


def test_a_failed_reload_takes_nobody_out_of_service() -> None:
    assert all(check.passed for check in readiness(material.status(last_reload_ok=False)))
