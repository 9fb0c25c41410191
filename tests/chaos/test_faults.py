"""What clients lose when something happens to the proxy: the TCP sessions of a killed worker, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import dns.message
import pytest

from tests.chaos.growth import is_swollen, snapshot
from tests.chaos.table import RECORD, Row
from tests.chaos.traffic import PATIENCE_OF_DNS, Traffic
from tests.chaos.world import CROWD, OTHER, PROXY, TUNNEL_PORT, WEB, Scene, World
from tests.support import peers
from tests.support.descriptors import no_more_descriptors
from tests.support.flood import UdpFlood
from tests.support.hellos import openssl_hello
from tests.support.kernel_path import needs_kernel_path
from tests.support.program import copy_program
from tests.support.proxy import ROOT
from tests.support.service_manager import ServiceManager
from tests.support.traffic.source import Address, Losses
from tests.support.traffic.udp import NAME
from tests.support.waiting import eventually, pass_time

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.netns]

STANDSTILL: Final = 11.5
"""Seconds: longer than the supervisor waits for a heartbeat."""
DATAGRAMS_OF_A_DEATH: Final = 3
"""That each source of UDP may lose with a worker: what was inside the process."""
MOST_FLOWS: Final = 400
STRANGERS: Final = 3000
MOST_CONNECTIONS: Final = 1000
HALF_HELLOS: Final = 700


@dataclass(frozen=True)
class Excuse:
    """What may be lost to a fault."""

    connections: frozenset[Address] = frozenset()
    """TCP connections of a killed worker, by their clients."""
    datagrams: int = 0
    """Datagrams in each source of UDP."""
    first: Mapping[str, int] = field(default_factory=dict)
    """So many losses, the first ones, of the sources with these names."""


NOTHING: Final = Excuse()


@dataclass(frozen=True)
class Fault:
    """Something that happens to the proxy."""

    name: str
    act: Callable[[Scene, Traffic], Excuse]
    keys: str = ""
    """Of the configuration."""
    trouble: str = ""
    """Lines of the log that belong to it."""
    idle_lifetime: int = 30
    """Of the flows of the download and the tunnel, in seconds."""
    patience: float = PATIENCE_OF_DNS
    kept_by: str = PROXY
    """The address that TCP sessions use which last."""
    is_clock_ours: bool = False
    """The proxy's wall clock is what the file ``clock`` in its folder says."""
    is_managed: bool = False
    """A service manager keeps what it is given."""
    is_program_ours: bool = False
    """The program is a copy, which may be changed."""
    is_for_kernel: bool = True
    """It is tried with TCP in the kernel path, too."""


def reload_three_times(scene: Scene, _traffic: Traffic) -> Excuse:
    for _ in range(3):
        scene.reload()
    return NOTHING


def remove_and_restore_an_address(scene: Scene, traffic: Traffic) -> Excuse:
    scene.reload(addresses(PROXY))
    traffic.go_on()
    scene.reload(addresses(PROXY, OTHER))
    return NOTHING


def addresses(*hosts: str) -> str:
    return f"listen_address_v4 = {json.dumps(hosts)}\n"


def kill_the_worker_of_the_download(scene: Scene, _traffic: Traffic) -> Excuse:
    return Excuse(scene.kill_worker(scene.worker_towards(scene.world.quic.port, "udp")), DATAGRAMS_OF_A_DEATH)


def kill_the_worker_of_the_tunnel(scene: Scene, _traffic: Traffic) -> Excuse:
    return Excuse(scene.kill_worker(scene.worker_towards(TUNNEL_PORT, "udp")), DATAGRAMS_OF_A_DEATH)


def kill_every_worker_in_turn(scene: Scene, traffic: Traffic) -> Excuse:
    connections: frozenset[Address] = frozenset()
    workers = sorted(scene.proxy.worker_pids())
    for number in workers:
        connections |= scene.kill_worker(number)
        traffic.go_on(1)
    return Excuse(connections, len(workers) * DATAGRAMS_OF_A_DEATH)


def hang_a_worker(scene: Scene, _traffic: Traffic) -> Excuse:
    # TCP in a tunnel that stood still for so long would take as long again to try once more.
    carries = scene.worker_towards(TUNNEL_PORT, "udp")
    victim = next(number for number in scene.staying() if number != carries)
    return Excuse(scene.hang_worker(victim), DATAGRAMS_OF_A_DEATH)


def kill_the_supervisor(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.lose_supervisor()
    return NOTHING


def kill_the_supervisor_of_a_service(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.lose_supervisor()
    scene.start_again()
    return Excuse(datagrams=DATAGRAMS_OF_A_DEATH * len(scene.orphans))


def reload_wrongly(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.reload_wrongly()
    return NOTHING


def upgrade_wrongly(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.upgrade_wrongly()
    return NOTHING


def flood_of_flows(scene: Scene, traffic: Traffic) -> Excuse:
    query = dns.message.make_query(NAME, "A").to_wire()
    with scene.world.among_clients():
        flood = UdpFlood((PROXY, scene.port), CROWD.partition("/")[0])
    with flood:
        while flood.sent < STRANGERS:
            flood.send(15, query)
            pass_time(0.01)
        assert (
            scene.metric("sessions", protocol="udp") <= MOST_FLOWS + 50
        )  # each worker looks at the others now and then
        traffic.go_on()
        assert scene.metric("sessions_closed_total", protocol="udp", reason="evicted") > STRANGERS / 2
        assert scene.metric("datagrams_dropped_total") == 0
        eventually(lambda: scene.metric("sessions", protocol="udp") <= MOST_FLOWS / 2, "there is room again")
    return NOTHING


def flood_of_half_hellos(scene: Scene, traffic: Traffic) -> Excuse:
    hello = openssl_hello(WEB, [f"{number:0200}" for number in range(40)])
    half = len(hello) // 2
    before = snapshot(scene.proxy)
    with contextlib.ExitStack() as stack:
        with scene.world.among_clients():
            crowd = [stack.enter_context(socket.create_connection((PROXY, scene.port))) for _ in range(HALF_HELLOS)]
        for client in crowd:
            client.sendall(hello[:half])
        for second in range(3):
            for client in crowd:
                # The oldest ones are closed to make room.
                with contextlib.suppress(ConnectionError):
                    client.send(hello[half + second : half + second + 1])
            pass_time(1.0)
            traffic.go_on()
        after = snapshot(scene.proxy)
        assert [role for role in before if is_swollen(before[role], after[role])] == []
        assert scene.metric("worker_sessions") > MOST_CONNECTIONS / 2
        evicted = scene.metric("sessions_rejected_total", protocol="tcp", reason="evicted")
        assert evicted >= HALF_HELLOS - MOST_CONNECTIONS / 2
    eventually(lambda: scene.metric("worker_sessions") < MOST_CONNECTIONS / 2, "nobody is waited for any more")
    return NOTHING


def use_up_the_descriptors(scene: Scene, traffic: Traffic) -> Excuse:
    with contextlib.ExitStack() as stack:
        for pid in scene.proxy.worker_pids().values():
            stack.enter_context(no_more_descriptors(pid))
        traffic.go_on_with_what_is_open()
    traffic.go_on()
    short = ("accept_errors_total", "socket_errors_total")
    assert sum(scene.metric(name, errno="EMFILE") for name in short) > 0
    return Excuse(first=traffic.lost_by_newcomers())


def kill_the_admin(scene: Scene, _traffic: Traffic) -> Excuse:
    victim = scene.admin_pid()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: scene.admin_pid() not in (0, victim), "the admin process is replaced")
    return NOTHING


def suspend_all(scene: Scene, traffic: Traffic) -> Excuse:
    before = scene.proxy.children().keys()
    # What waits meanwhile has to fit into the buffer of a socket: beside iperf3, some pings found no room.
    traffic.iperf.rest()
    os.killpg(scene.proxy.pid, signal.SIGSTOP)
    try:
        pass_time(STANDSTILL)
    finally:
        os.killpg(scene.proxy.pid, signal.SIGCONT)
    traffic.iperf.go_on()
    traffic.go_on()
    pass_time(2.0)  # in which whoever is held to hang would be killed
    assert scene.proxy.children().keys() == before
    return NOTHING


def step_the_clock(scene: Scene, traffic: Traffic) -> Excuse:
    for step in ("-3600", "+3600"):
        scene.proxy.folder.joinpath("clock").write_text(step)
        pass_time(1.1)  # in which workers look once for what has expired
        traffic.go_on()
    return NOTHING


def one_worker_more(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.proxy.signal(signal.SIGTTIN)
    scene.wait_for_workers(3)
    return NOTHING


def one_worker_less(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.proxy.signal(signal.SIGTTOU)
    scene.wait_for_workers(2)
    return NOTHING


def more_workers_by_reload(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.reload("workers = 4\n" + PATIENT_DRAIN)
    scene.wait_for_workers(4)
    return NOTHING


def fewer_workers_by_reload(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.reload("workers = 2\n" + PATIENT_DRAIN)
    scene.wait_for_workers(2)
    return NOTHING


def upgrade_in_place(scene: Scene, _traffic: Traffic) -> Excuse:
    scene.upgrade(2)
    return NOTHING


def be_quiet_for_long(_scene: Scene, traffic: Traffic) -> Excuse:
    traffic.download.rest()
    traffic.ping.rest()
    traffic.iperf.rest()
    pass_time(3.0)  # three times the lifetime of their flows
    traffic.download.go_on()
    traffic.ping.go_on()
    traffic.iperf.go_on()
    return NOTHING


PATIENT_DRAIN: Final = 'drain_timeout = "60s"\n'
DEATH: Final = "has died"

FAULTS: Final = (
    Fault("three reloads in a row, each with other targets", reload_three_times),
    Fault(
        "an address removed by a reload, and restored by another",
        remove_and_restore_an_address,
        keys=addresses(PROXY, OTHER),
        kept_by=OTHER,
    ),
    Fault("a reload with a typo in the file", reload_wrongly, trouble="the configuration was not reloaded"),
    Fault("`kill -9` of the admin process", kill_the_admin, trouble=DEATH),
    Fault("the wall clock set back, and forward, by an hour", step_the_clock, is_clock_ours=True),
    Fault(f"all processes stopped for {STANDSTILL:.0f} s, as in a suspended machine", suspend_all, patience=30.0),
    Fault("`kill -9` of the worker of the download", kill_the_worker_of_the_download, trouble=DEATH),
    Fault("`kill -9` of the worker of the tunnel", kill_the_worker_of_the_tunnel, trouble=DEATH),
    Fault("`kill -9` of every worker in turn", kill_every_worker_in_turn, trouble=DEATH),
    Fault("a worker that hangs, until it is replaced", hang_a_worker, trouble=f"hangs|{DEATH}", patience=30.0),
    Fault(
        '`kill -9` of the supervisor, with `on_supervisor_loss = "serve"`',
        kill_the_supervisor,
        keys='on_supervisor_loss = "serve"\n',
        trouble="the supervisor is gone",
    ),
    Fault(
        "`kill -9` of the supervisor, and another start by a service manager that kept its sockets",
        kill_the_supervisor_of_a_service,
        keys=PATIENT_DRAIN,
        trouble="the supervisor is gone",
        is_managed=True,
    ),
    Fault("`TTIN`: a worker more", one_worker_more, keys=PATIENT_DRAIN),
    Fault("`TTOU`: a worker less", one_worker_less, keys="workers = 3\n" + PATIENT_DRAIN),
    Fault("4 instead of 2 `workers` by a reload", more_workers_by_reload, keys=PATIENT_DRAIN),
    Fault("2 instead of 4 `workers` by a reload", fewer_workers_by_reload, keys="workers = 4\n" + PATIENT_DRAIN),
    Fault("`USR2`: an upgrade in place", upgrade_in_place, keys=PATIENT_DRAIN),
    Fault(
        "`USR2` with a program that is broken, and with one that cannot take over",
        upgrade_wrongly,
        trouble="no upgrade, nothing has changed",
        is_program_ours=True,
    ),
    Fault(
        f"a flood of UDP from {STRANGERS} made-up addresses, with room for {MOST_FLOWS} flows",
        flood_of_flows,
        keys=f"udp_max_connections = {MOST_FLOWS}\n",
    ),
    Fault(
        f"{HALF_HELLOS} TCP connections that begin a TLS hello and go on by a byte a second",
        flood_of_half_hellos,
        keys=f'tcp_max_connections = {MOST_CONNECTIONS}\ntcp_detect_timeout = "30s"\n',
        is_for_kernel=False,  # nothing is detected
    ),
    Fault("no descriptors left in all workers, for a moment", use_up_the_descriptors),
    Fault("a download and a tunnel quiet for three times their `idle_lifetime`", be_quiet_for_long, idle_lifetime=1),
)


def faked_clock(folder: Path) -> Mapping[str, str]:
    """The environment of a process whose wall clock is set by a file."""
    peers.program("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    clock = folder / "clock"
    clock.write_text("+0")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # setting the clock moves only the wall clock
    }


def unexcused(losses: Losses, excuse: Excuse) -> list[str]:
    if losses.is_udp and len(losses.lost) <= excuse.datagrams:
        return []
    later = losses.lost[excuse.first.get(losses.source, 0) :]
    return [loss.what for loss in later if loss.client not in excuse.connections]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_costs_only_what_it_must(world: World, tmp_path: Path, fault: Fault) -> None:
    run(world, tmp_path, fault)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.is_for_kernel], ids=lambda fault: fault.name)
def test_a_fault_costs_no_more_with_tcp_in_the_kernel_path(world: World, tmp_path: Path, fault: Fault) -> None:
    needs_kernel_path()
    run(world, tmp_path, fault, tcp_by_kernel=True)


def run(world: World, folder: Path, fault: Fault, *, tcp_by_kernel: bool = False) -> None:
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(
            Scene(
                world,
                folder,
                fault.keys,
                idle_lifetime=fault.idle_lifetime,
                environment=faked_clock(folder) if fault.is_clock_ours else {},
                program=copy_program(folder / "program") if fault.is_program_ours else ROOT,
                manager=stack.enter_context(ServiceManager(str(folder / "notify"))) if fault.is_managed else None,
                tcp_by_kernel=tcp_by_kernel,
            )
        )
        if fault.trouble:
            scene.proxy.expect_trouble(fault.trouble)
        with Traffic(scene, patience=fault.patience, kept_by=fault.kept_by) as traffic:
            traffic.go_on()
            if tcp_by_kernel:
                eventually(lambda: scene.metric("kernel_connections") >= len(traffic.http), "they are in the kernel")
            excuse = fault.act(scene, traffic)
            traffic.go_on()
            losses = traffic.stop()

    assert {each.source: unexcused(each, excuse) for each in losses} == {each.source: [] for each in losses}
    record(f"{fault.name}; TCP in the kernel path" if tcp_by_kernel else fault.name, losses)


def record(name: str, losses: Iterable[Losses]) -> None:
    """Write down what happened, if somebody asks."""
    if path := os.environ.get(RECORD):
        with Path(path).open("a") as lines:
            lines.write(Row.of(name, losses).to_json() + "\n")
