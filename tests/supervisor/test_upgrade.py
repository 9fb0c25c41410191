from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

from rpxy_l4.metrics import layout
from rpxy_l4.metrics.layout import Directory, ListenerSeries, TargetSeries
from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor import upgrade
from rpxy_l4.supervisor.upgrade import VARIABLE, ChildState, State, UpgradeError, inherited, pack, unpack
from rpxy_l4.verdict import Transport

BIND = Bind(Transport.UDP, "::1", 8448)
DIRECTORY = Directory(
    {ListenerSeries(":8448", Transport.UDP): 0},
    {TargetSeries(":8448", Transport.UDP, "default", "127.0.0.1:53"): 0},
)


def state() -> State:
    listeners, targets = DIRECTORY.as_plain()
    return State(
        content=b"listen_port = 8448",
        generation=7,
        slots=4,
        workers=2,
        owners={0: 0, 1: 3, 2: 0, 3: 3},
        counters=11,
        flows=12,
        flow_bytes=4096,
        secret=b"key",
        sockets=upgrade.as_plain({BIND: [13, 14, 15, 16]}),
        admin_sockets=[],
        retired=[("udp", "127.0.0.1", 8448, 9.5)],
        children=[
            ChildState(0, 4242, 17, 18, 1.5, leaving=False, draining=False, kill_at=None),
            ChildState(-1, 4243, 19, None, 1.5, leaving=False, draining=False, kill_at=9.5),
        ],
        listener_series=listeners,
        target_series=targets,
        addresses={"a.example": ("192.0.2.1",)},
        cpu_of_the_dead={3: (0.5, 0.25)},
        restarts={"signal": 1},
        reloads={"success": 2},
        last_reload_ok=False,
        last_reload_success=1.0,
        seen=None,
        control=20,
        kernel_paths=[({4: 22, 5: (1, 2, 3, "name")}, {"ethernet": 24}, {"settings": 23})],
        askers=[21],
    )


def test_a_state_arrives_as_it_was_left() -> None:
    arrived = unpack(pack(state()))

    assert arrived == state()
    assert arrived.directory() == DIRECTORY
    assert upgrade.as_binds(arrived.sockets) == {BIND: [13, 14, 15, 16]}


def test_every_descriptor_of_a_state_is_named() -> None:
    assert sorted(state().descriptors()) == list(range(11, 25))


def test_a_state_is_made_of_plain_values_that_any_version_can_read() -> None:
    assert b"rpxy_l4" not in pack(state())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be read"),
        (b"nonsense", "cannot be read"),
        (pickle.dumps(7), "cannot be read"),
        (pickle.dumps({"format": 0}), "cannot work together"),
        (pickle.dumps({"format": upgrade.FORMAT, "layout": "other"}), "count different things"),
        (pickle.dumps({"format": upgrade.FORMAT, "layout": upgrade.fingerprint(), "state": {}}), "cannot be read"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_with_its_reason(data: bytes, why: str) -> None:
    with pytest.raises(UpgradeError, match=why):
        unpack(data)


def test_a_counter_at_another_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = upgrade.fingerprint()
    monkeypatch.setattr(layout, "T_GIVEN", layout.T_GIVEN + 1)

    assert upgrade.fingerprint() != before


def test_a_script_is_run_again_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "rpxy-l4"
    script.write_text("#!/usr/bin/python3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", str(script), "-c", "x.toml"])

    assert upgrade.command() == [str(script), "-c", "x.toml"]


@pytest.mark.parametrize("rest", [["-m", "rpxy_l4", "-c", "x.toml"], ["/nonexistent/rpxy-l4"], []])
def test_what_is_no_script_is_run_again_by_this_interpreter(rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *rest])

    assert upgrade.command() == [sys.executable, *rest]


@pytest.mark.parametrize("value", ["", "rubbish", "1:3", ":", "{pid}:", "{pid}:x", "0:0"])
def test_what_is_not_for_this_process_is_taken_away_and_ignored(value: str) -> None:
    environ = {VARIABLE: value.format(pid=os.getpid())}

    assert inherited(environ) is None
    assert environ == {}


def test_a_descriptor_that_is_not_there_is_an_error_with_words() -> None:
    with pytest.raises(UpgradeError, match="cannot be read"):
        inherited({VARIABLE: f"{os.getpid()}:999999"})
