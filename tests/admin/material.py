"""A configuration in force, as the supervisor would tell of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from rpxy_l4.control import Status, WorkerStatus
from rpxy_l4.metrics.layout import Directory, ListenerSeries, TargetSeries
from rpxy_l4.snapshot import Bind, Route, Side, Snapshot, Target
from rpxy_l4.verdict import Protocol, Transport

TCP: Final = Transport.TCP
UDP: Final = Transport.UDP
ADMIN: Final = Bind(TCP, "127.0.0.1", 9448)

TLS_TARGET: Final = TargetSeries(":8448", TCP, "web", "10.0.0.1:443")
TCP_TARGET: Final = TargetSeries(":8448", TCP, "default", 'quoted"name\\.example:80')
UDP_TARGET: Final = TargetSeries(":8448", UDP, "default", "[::1]:53")


def directory() -> Directory:
    made = Directory()
    for transport in Transport:
        made.listener(ListenerSeries(":8448", transport))
    for series in (TLS_TARGET, TCP_TARGET, UDP_TARGET):
        made.target(series)
    return made


def snapshot(
    generation: int = 1,
    *,
    names: Collection[str] = (),
    admin: Bind | None = ADMIN,
    ttl: tuple[float, float] = (30.0, 3600.0),
) -> Snapshot:
    targets = tuple(Target(text=f"{name}:80", host=name, port=80, is_name=True) for name in names)
    return Snapshot(
        generation=generation,
        sha256="0123456789abcdef" * 4,
        listener=":8448",
        binds=(),
        tcp=Side(
            transport=TCP,
            routes=(Route(name="web", transport=TCP, protocol=Protocol.TLS, targets=targets),),
            default=None,
            series=0,
            max_sessions=1000,
        ),
        udp=Side(transport=UDP, routes=(), default=None, series=1, max_sessions=200),
        admin=admin,
        dns_min_ttl=ttl[0],
        dns_max_ttl=ttl[1],
    )


def status(
    in_force: Snapshot | None = None,
    *,
    states: Collection[str] = ("ready", "ready"),
    pids: Collection[int | None] = (None, None),
    draining: bool = False,
    last_reload_ok: bool = True,
) -> Status:
    return Status(
        snapshot=in_force or snapshot(),
        directory=directory(),
        workers=tuple(
            WorkerStatus(slot, pid, state) for slot, (pid, state) in enumerate(zip(pids, states, strict=True))
        ),
        restarts={"signal": 2},
        reloads={"success": 3, "failure": 1},
        last_reload_ok=last_reload_ok,
        last_reload_success=1_800_000_000.5,
        draining=draining,
        uses_kernel_path=True,
        kernel_path="in use: tcx on lo, 16384 flows at most",
    )
