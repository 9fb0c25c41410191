from __future__ import annotations

import enum
import re

import pytest

from rpxy_l4.endings import ConnectResult, Detected, Drop, Reason, Rejection
from rpxy_l4.verdict import Protocol


@pytest.mark.parametrize("closed_set", [Reason, Rejection, Drop, Detected, ConnectResult])
def test_every_value_can_be_a_metric_label_and_a_log_field(closed_set: type[enum.StrEnum]) -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", member) for member in closed_set)


def test_every_protocol_can_be_the_result_of_detection() -> None:
    assert {Detected(protocol.value) for protocol in Protocol} < set(Detected)
