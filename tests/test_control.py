from __future__ import annotations

import pytest

from rpxy_l4 import control
from rpxy_l4.control import (
    Addresses,
    Applied,
    Apply,
    Attach,
    Drain,
    Draining,
    FlowRecord,
    Flows,
    Inherit,
    Inherited,
    Message,
    NotApplied,
    Place,
    Release,
    Released,
    ReopenLogs,
    Status,
    Taken,
    WorkerStatus,
)
from rpxy_l4.metrics.layout import Directory, ListenerSeries
from rpxy_l4.snapshot import Bind, Snapshot
from rpxy_l4.verdict import Transport

_BIND = Bind(Transport.TCP, "127.0.0.1", 8448)
_SNAPSHOT = Snapshot(generation=3, sha256="ab", listener=":8448", binds=(_BIND,), tcp=None, udp=None)


@pytest.mark.parametrize(
    "message",
    [
        Attach((Place(3, _BIND),)),
        Apply(_SNAPSHOT, {"a.example": ("192.0.2.1",)}, frozenset({0, 3})),
        Release(3),
        Inherit(3),
        Flows(_BIND, 0, None, (FlowRecord(b"key", ("192.0.2.7", 5), None, (b"held",), 1.5),)),
        Taken(),
        Released(3),
        Inherited(3),
        Addresses({}),
        Drain(30.0),
        ReopenLogs(),
        Applied(3),
        Draining(),
        NotApplied(),
        Status(
            snapshot=_SNAPSHOT,
            directory=Directory({ListenerSeries(":8448", Transport.TCP): 0}),
            workers=(WorkerStatus(0, 17, "ready"), WorkerStatus(1, None, "dead")),
            restarts={"signal": 1},
        ),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_arrives_as_it_was_sent(message: Message) -> None:
    assert control.decode(control.encode(message)) == message
