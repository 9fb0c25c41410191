from __future__ import annotations

import json

from rpxy_l4.supervisor.report import Report, WorkerReport, as_data, as_text

REPORT = Report(
    version="1.2.3",
    pid=100,
    config="/etc/rpxy-l4/config.toml",
    generation=7,
    sha256="abcdef0123456789",
    listening=["tcp 0.0.0.0:443", "udp 0.0.0.0:443"],
    wanted=2,
    slots=4,
    workers=[
        WorkerReport(1, 101, "ready", (0, 2), 12, 3),
        WorkerReport(2, None, "dead", (1, 3), 0, 0),
        WorkerReport(3, 103, "draining", (), 1, 0),
    ],
    reloads={"success": 6, "failure": 1},
    last_reload_ok=False,
    kernel_path="in use: tcx on lo, 16384 flows at most",
    kernel_connections=7,
    kernel_path_left={"fragment": 0, "too big": 3, "options": 1},
    under_way=["slots are moving"],
)


def test_people_see_everything_at_a_glance() -> None:
    assert as_text(REPORT).splitlines() == [
        "version:       1.2.3, process 100",
        "configuration: /etc/rpxy-l4/config.toml, generation 7, sha256 abcdef012345",
        "listening:     tcp 0.0.0.0:443, udp 0.0.0.0:443",
        "reloads:       6 success, 1 failure; the last one failed, see the log",
        (
            "kernel path:   in use: tcx on lo, 16384 flows at most; 7 connections now; "
            "packets left to the sockets, or dropped: 3 too big, 1 options"
        ),
        "under way:     slots are moving",
        "workers:       2 wanted, 4 slots",
        "worker  process  state     tcp  udp  slots",
        "1       101      ready     12   3    0 2",
        "2       -        dead      0    0    1 3",
        "3       103      draining  1    0    -",
    ]


def test_programs_get_the_fields_by_their_names() -> None:
    data = json.loads(json.dumps(as_data(REPORT)))

    assert data["workers"][0] == {
        "number": 1,
        "pid": 101,
        "state": "ready",
        "slots": [0, 2],
        "tcp_sessions": 12,
        "udp_flows": 3,
    }
    assert (data["generation"], data["last_reload_ok"]) == (7, False)
