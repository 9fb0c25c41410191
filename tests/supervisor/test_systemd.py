from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.supervisor.systemd import (
    Notifier,
    inherited,
    parse_socket_name,
    socket_name,
    successor,
    take,
    watchdog_interval,
)
from rpxy_l4.verdict import Transport
from tests.support.descriptors import open_descriptors
from tests.support.peers import run
from tests.support.ports import free_port
from tests.support.service_manager import ServiceManager

ROOT: Final = Path(__file__).parent.parent.parent
UNIT: Final = ROOT / "contrib" / "rpxy-l4.service"
PID: Final = 4711


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@rpxy-l4-test-{os.getpid()}"
    with ServiceManager(address) as listening:
        yield listening


@pytest.fixture
def one_manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(str(tmp_path / "notify")) as listening:
        yield listening


def test_the_manager_hears_every_message_in_the_form_it_knows(manager: ServiceManager) -> None:
    notifier = Notifier(manager.environ)
    sent = [
        notifier.ready("2 workers"),
        notifier.reloading(123456),
        notifier.stopping(),
        notifier.more_time(1.5),
        notifier.status("draining"),
        notifier.main_pid(PID),
        notifier.watchdog(),
        notifier.remove("some"),
    ]

    assert [manager.hear() for _ in sent] == [
        "READY=1\nSTATUS=2 workers",
        "RELOADING=1\nMONOTONIC_USEC=123456",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STATUS=draining",
        f"MAINPID={PID}",
        "WATCHDOG=1",
        "FDSTOREREMOVE=1\nFDNAME=some",
    ]
    assert all(sent)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path"])
def test_without_a_manager_every_call_does_nothing(address: str | None, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})

    assert notifier.ready("x")
    assert notifier.store("x", [0])
    assert notifier.remove("x")
    assert notifier.barrier(0.0)
    assert caplog.text == ""


def test_a_status_is_one_line_that_the_manager_has_room_for(one_manager: ServiceManager) -> None:
    notifier = Notifier(one_manager.environ)

    assert notifier.status("one\nMAINPID=1\r\n two\udcff")
    assert one_manager.hear() == "STATUS=one MAINPID=1 two\\udcff"
    assert notifier.ready("\U0001f642" * 5000)
    assert len(one_manager.hear().encode()) < select.PIPE_BUF


def test_a_manager_that_cannot_be_reached_is_said_once_in_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": address})

    assert not notifier.ready("x")
    assert not notifier.watchdog()
    with ServiceManager(address):
        assert notifier.watchdog()
    assert not notifier.watchdog()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot tell systemd how things are: No such file or directory",
        "cannot tell systemd how things are: Connection refused",
    ]


def test_an_address_that_is_too_long_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": "/" + "x" * 200}).watchdog()
    assert caplog.messages == ["cannot tell systemd how things are: AF_UNIX path too long"]


@pytest.mark.slow
def test_a_manager_that_does_not_read_holds_us_up_only_once(one_manager: ServiceManager) -> None:
    notifier = Notifier(one_manager.environ)
    heard = 0
    while notifier.watchdog():
        heard += 1

    refused = [notifier.watchdog() for _ in range(1000)]

    assert not any(refused)
    for _ in range(heard):
        one_manager.hear()
    assert notifier.watchdog()


def test_a_full_queue_is_waited_for(one_manager: ServiceManager) -> None:
    notifier = Notifier(one_manager.environ)
    messages = 3 * int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.extend(one_manager.hear() for _ in range(messages)))
    reader.start()

    sent = [notifier.status(str(number)) for number in range(messages)]
    reader.join()

    assert all(sent)
    assert heard == [f"STATUS={number}" for number in range(messages)]


def test_no_call_leaves_a_descriptor_open(one_manager: ServiceManager) -> None:
    notifier = Notifier(one_manager.environ)
    before = open_descriptors()
    notifier.ready("x")
    notifier.remove("x")

    assert open_descriptors() == before


def test_many_descriptors_are_stored_in_pieces_and_are_the_same_ones(one_manager: ServiceManager) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(300)]
        notifier = Notifier(one_manager.environ)

        assert notifier.store("many", [opened.fileno() for opened in held])
        assert one_manager.hear() == one_manager.hear() == "FDSTORE=1\nFDPOLL=0\nFDNAME=many"
        kept = [os.fstat(number).st_ino for name, number in one_manager.kept if name == "many"]
        assert kept == [os.fstat(opened.fileno()).st_ino for opened in held]


def test_what_is_removed_is_closed_when_the_barrier_has_been_passed(one_manager: ServiceManager) -> None:
    notifier = Notifier(one_manager.environ)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        notifier.store("some", [listening.fileno()])
    notifier.remove("some")
    reader = threading.Thread(target=one_manager.hear_until, args=("BARRIER",))
    reader.start()

    passed = notifier.barrier(10.0)

    with socket.socket() as client:
        assert client.connect_ex(address) != 0
    assert passed
    reader.join()


def test_a_barrier_that_nobody_lifts_is_given_up(one_manager: ServiceManager) -> None:
    assert not Notifier(one_manager.environ).barrier(0.01)


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "\x7f", "é", "x" * 256])
def test_a_name_that_the_manager_would_not_take_is_not_sent(one_manager: ServiceManager, name: str) -> None:
    notifier = Notifier(one_manager.environ)

    assert not notifier.store(name, [0])
    assert not notifier.remove(name)
    notifier.watchdog()
    assert one_manager.hear() == "WATCHDOG=1"


def test_a_descriptor_that_is_not_open_raises_nothing(one_manager: ServiceManager) -> None:
    assert not Notifier(one_manager.environ).store("some", [999_999])


def test_what_is_said_to_this_process_is_taken_out_of_the_environment_of_others() -> None:
    ours = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "FDSTORE": "3"}
    of_the_start = {"LISTEN_FDS": "1", "LISTEN_PID": "2", "LISTEN_FDNAMES": "x", "LISTEN_PIDFDID": "3"}
    environ = {**ours, **of_the_start, "PATH": "/bin"}

    taken = take(environ)

    assert environ == {"PATH": "/bin"}
    assert taken == {**ours, **of_the_start}
    assert successor(taken) == ours
    assert take(environ) == successor({}) == {}


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(PID)}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "1s"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": str(2**64 - 1)}, None),
    ],
)
def test_a_sign_of_life_is_due_in_half_of_the_time_that_is_waited_for_it(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environ, PID) == seconds


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "x"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(PID)},
        {"LISTEN_FDS": "-1", "LISTEN_PID": str(PID)},
        {"LISTEN_FDS": "many", "LISTEN_PID": str(PID)},
        {"LISTEN_FDS": "\u0663", "LISTEN_PID": str(PID)},
        {"LISTEN_FDS": "1" * 5000, "LISTEN_PID": str(PID)},
    ],
)
def test_nothing_is_inherited_where_the_values_are_wrong_or_meant_for_another_process(environ: dict[str, str]) -> None:
    assert inherited(environ, PID) == []


def passed_on(count: str, names: str | None, actual: int = 2) -> list[list[Any]]:
    """What a program finds that was given ``actual`` descriptors: name, number, whether its children would get it."""
    program = (
        "import json, os; from rpxy_l4.supervisor.systemd import inherited, take\n"
        "found = inherited(take(os.environ), os.getpid())\n"
        "print(json.dumps([(name, number, os.get_inheritable(number)) for name, number in found]))"
    )
    # The same process becomes the program: the shell has the descriptors, and its own number.
    script = f'export LISTEN_PID=$$; exec "$0" -c "$1" {" ".join(f"{3 + index}</dev/null" for index in range(actual))}'
    environ = {**os.environ, "LISTEN_FDS": count} | ({} if names is None else {"LISTEN_FDNAMES": names})
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, program], env=environ, cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    found: list[list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("count", "names", "found"),
    [
        ("2", "web:mail", ["web", "mail"]),
        ("2", None, ["unknown", "unknown"]),
        ("2", "web", ["unknown", "unknown"]),
        ("2", "a:b:c", ["unknown", "unknown"]),
        ("1", "web", ["web"]),
        ("99999999999999", None, ["unknown", "unknown"]),
    ],
)
def test_what_was_passed_has_its_name_and_is_kept_from_children(
    count: str, names: str | None, found: list[str]
) -> None:
    assert passed_on(count, names) == [[name, 3 + index, False] for index, name in enumerate(found)]


@pytest.mark.parametrize(
    ("bind", "name"),
    [
        (Bind(Transport.TCP, "127.0.0.1", 443), "listen_tcp_127.0.0.1_443_7_8"),
        (Bind(Transport.UDP, "::", 65535), "listen_udp_--_65535_7_8"),
        (Bind(Transport.UDP, "2001:db8::1", 53), "listen_udp_2001-db8--1_53_7_8"),
    ],
)
def test_a_socket_is_stored_under_its_address_and_slot(bind: Bind, name: str) -> None:
    assert socket_name(bind, 7, 8) == name


@given(
    transport=st.sampled_from(Transport),
    host=st.ip_addresses().map(str),
    port=st.integers(1, 65535),
    slot=st.integers(0, 10_000),
    more=st.integers(1, 10_000),
)
def test_a_name_leads_back_to_what_it_was_made_of(
    transport: Transport, host: str, port: int, slot: int, more: int
) -> None:
    bind = Bind(transport, host, port)
    name = socket_name(bind, slot, slot + more)

    assert re.fullmatch(r"[ -9;-~]{1,255}", name)
    assert parse_socket_name(name) == (bind, slot, slot + more)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "unknown",
        "listen",
        "listen_tcp_127.0.0.1_443",
        "listen_tcp_127.0.0.1_443_0",
        "listen_tcp_127.0.0.1_443_4_4",
        "listen_tcp_127.0.0.1_443_0_4_0",
        "other_tcp_127.0.0.1_443_0_4",
        "listen_sctp_127.0.0.1_443_0_4",
        "listen_tcp_localhost_443_0_4",
        "listen_tcp_127.0.0.1_0_0_4",
        "listen_tcp_127.0.0.1_65536_0_4",
        "listen_tcp_127.0.0.1_0443_0_4",
        "listen_tcp_127.0.0.1_443_-1_4",
        "listen_tcp_127.0.0.1_443_00_4",
        "listen_tcp_0-0-0-0-0-0-0-1_443_0_4",
        "listen_tcp_[--1]_443_0_4",
        "listen_tcp_fe80--1%lo_443_0_4",
    ],
)
def test_any_other_name_leads_nowhere(name: str) -> None:
    assert parse_socket_name(name) is None


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_no_name_raises(name: str) -> None:
    assert parse_socket_name(name) is None


# A supervisor's life and its next one


def first_words(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    words: dict[str, Any] = json.loads(process.stdout.readline())
    return words


@pytest.mark.slow
def test_what_waits_when_a_supervisor_dies_is_served_by_the_next_in_the_same_slots(one_manager: ServiceManager) -> None:
    port, slots = free_port(), 4
    arguments = ("-m", "tests.supervisor.stored", str(port), str(slots))
    first = one_manager.start(*arguments)
    one_manager.hear_until("READY=1")
    before = first_words(first)
    ServiceManager.kill(first)
    with ExitStack() as stack:
        # Nobody lives who listens, only copies of what was stored.
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        flows = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(40)]
        for number, flow in enumerate(flows):
            flow.connect(("127.0.0.1", port))
            flow.send(f"{number}".encode())
        one_manager.kept.sort(key=lambda kept: kept[0][::-1])  # in any other order

        second = one_manager.start(*arguments)
        one_manager.hear_until("READY=1")
        words = first_words(second)

        assert (words["adopted"], words["refused"]) == (2, 0)
        assert sorted(chain(*words["tcp"])) == sorted(str(client.getsockname()[1]) for client in clients)
        assert [client.recv(100) for client in clients] == [b"served"] * len(clients)
        assert words["sockets"] == before["sockets"]
        assert sorted(map(int, chain(*words["udp"]))) == list(range(len(flows)))


@pytest.mark.slow
def test_a_supervisor_with_another_number_of_slots_begins_anew_on_the_same_port(one_manager: ServiceManager) -> None:
    port = free_port()
    first = one_manager.start("-m", "tests.supervisor.stored", str(port), "2")
    one_manager.hear_until("READY=1")
    ServiceManager.kill(first)

    second = one_manager.start("-m", "tests.supervisor.stored", str(port), "3")
    one_manager.hear_until("READY=1")
    words = first_words(second)

    assert (words["adopted"], words["refused"]) == (0, 4)
    assert sorted(name for name, _ in one_manager.kept) == [
        socket_name(Bind(transport, "127.0.0.1", port), slot, 3) for transport in Transport for slot in range(3)
    ]


# The unit


def test_the_unit_is_one_that_systemd_takes_without_a_word(tmp_path: Path) -> None:
    # What is to be run need not be installed here.
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?<=^ExecStart=)\S+", sys.executable, UNIT.read_text(), flags=re.MULTILINE))

    verified = run("systemd-analyze", "verify", str(copy))

    assert (verified.returncode, verified.stdout) == (0, "")


def test_the_unit_does_not_try_again_what_cannot_succeed() -> None:
    line = re.search(r"^RestartPreventExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)

    assert line is not None
    assert set(map(int, line[1].split())) == {ExitStatus.USAGE, ExitStatus.CONFIG}
