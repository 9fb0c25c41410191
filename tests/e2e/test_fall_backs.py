"""The program where the kernel lacks what makes it quick: everything arrives all the same."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support import seccomp
from tests.support.exactness import Burst, Plan, Settle, UdpFlows, Write, exchange, random_wave, udp_socket
from tests.support.netns import Namespaces, inside
from tests.support.peers import program, run
from tests.support.proxy import Proxy
from tests.support.seccomp import Rule, deny, deny_fcntl, deny_option

KIB: Final = 1024
MIB: Final = 1024 * KIB

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
F_SETPIPE_SZ: Final = 1031

DENIALS: Final[dict[str, list[Rule]]] = {
    "splice": [deny("splice")],
    "F_SETPIPE_SZ": [deny_fcntl(F_SETPIPE_SZ)],
    "UDP_GRO": [deny_option(SOL_UDP, UDP_GRO)],
    "UDP_SEGMENT": [deny_option(SOL_UDP, UDP_SEGMENT)],
    "recvmmsg": [deny("recvmmsg")],
    "sendmmsg": [deny("sendmmsg")],
}
DENIALS["everything"] = [rule for rules in DENIALS.values() for rule in rules]
# Sandboxes do not say that a call does not exist, they say that it is forbidden.
DENIALS["what a sandbox forbids"] = [deny(call, errno.EPERM) for call in ("splice", "recvmmsg", "sendmmsg")]

supported = pytest.mark.skipif(
    not seccomp.is_supported(), reason="the numbers of this machine's system calls are not known"
)


def start_under(rules: list[Rule], start_proxy: StartProxy, config: str) -> Proxy:
    """The proxy with each of its processes under the rules."""
    proxy = start_proxy(config, launcher=seccomp.arguments(rules))
    for pid in (proxy.pid, *proxy.worker_pids().values()):
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    return proxy


@supported
@pytest.mark.parametrize("denied", DENIALS)
def test_tcp_bulk_and_messages_are_exact_without(start_proxy: StartProxy, denied: str) -> None:
    messages = (Write(1), Settle(), Write(200), Settle())
    bulk = Plan((*messages, Write(2 * MIB), Settle(), *messages, *[Write(MIB)] * 6, *messages))
    small_buffers = Plan((Write(300 * KIB), *messages), closes_last=True, receive_buffer=16 * KIB, send_buffer=16 * KIB)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\n'
        proxy = start_under(DENIALS[denied], start_proxy, config)
        nothing = Plan((), closes_last=True)
        plans = [(bulk, small_buffers), (small_buffers, bulk), (bulk, nothing), (nothing, bulk)]
        exchange(proxy.address, listener, plans)

        lines = proxy.wait_for_sessions(len(plans))
    counted = sorted((int(line["bytes_in"]), int(line["bytes_out"])) for line in lines)
    assert counted == sorted((client.size, target.size) for client, target in plans)


@supported
@pytest.mark.parametrize("denied", DENIALS)
def test_datagrams_and_bursts_of_many_flows_are_exact_without(start_proxy: StartProxy, denied: str) -> None:
    chance = random.Random(denied)
    many, busy = 60, 4
    with udp_socket() as target, contextlib.ExitStack() as stack:
        config = f'udp_target = ["127.0.0.1:{target.getsockname()[1]}"]\n'
        proxy = start_under(DENIALS[denied], start_proxy, config)
        flows = UdpFlows([stack.enter_context(proxy.udp()) for _ in range(many)], target)
        one_each = [(number, Burst((b"one of %d" % number,))) for number in range(many)]
        flows.exchange(one_each, one_each)
        for _ in range(60):
            flows.exchange(random_wave(chance, busy), random_wave(chance, busy))
        flows.exchange(one_each, one_each)
        flows.assert_nothing_is_left()

        assert proxy.metric("datagrams_dropped_total") == 0


# Segmented sends that fail only when they are made.


def segmented_send(netns: str, to: tuple[str, int], segment: int) -> int:
    """Send three datagrams with one call out of the namespace; return the error number, 0 for none."""
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            Burst.cut(bytes(3 * segment), segment).send(sock, to)
        except OSError as error:
            return error.errno or 0
    return 0


def kernel_version() -> tuple[int, ...]:
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.netns
@pytest.mark.parametrize("why", ["the device cannot checksum", "the way takes no datagram of that size"])
def test_bursts_arrive_where_the_kernel_refuses_to_segment(start_proxy: StartProxy, why: str) -> None:
    chance = random.Random(why)
    with Namespaces("outside", "proxy") as nets, contextlib.ExitStack() as stack:
        nets.join("outside", "10.9.0.1/24", "proxy", "10.9.0.2/24")
        if why == "the device cannot checksum":
            segment = 1200
            changed = run("ip", "netns", "exec", nets["proxy"], program("ethtool"), "--offload", "cable0b", "tx", "off")
        else:
            # Whole bursts come over a virtual cable whatever its MTU; on the way out they would have to be fragmented.
            segment = 4000
            changed = run("ip", "-n", nets["outside"], "link", "set", "cable0a", "mtu", "9000")
        assert changed.returncode == 0, changed.stdout
        with inside(nets["outside"]):
            target, *clients = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(4))
        target.bind(("10.9.0.1", 0))
        refused = segmented_send(nets["proxy"], target.getsockname(), segment)
        if why == "the device cannot checksum":
            # Since 6.11 the kernel computes the checksums itself (udp: Allow GSO transmit from devices with no checksum
            # offload); then there is nothing left to fall back from, and the bursts still have to arrive.
            assert refused == (0 if kernel_version() >= (6, 11) else errno.EIO)
        else:
            assert refused in {errno.EMSGSIZE, errno.EINVAL}  # the second before 6.14
        if refused == 0:
            for _ in range(3):
                assert target.recv(segment) == bytes(segment)

        config = f'listen_address_v4 = "0.0.0.0"\nudp_target = ["10.9.0.1:{target.getsockname()[1]}"]\n'
        proxy = start_proxy(config, netns=nets["proxy"])
        for client in clients:
            client.connect(("10.9.0.2", proxy.port))
        flows = UdpFlows(clients, target)
        for _ in range(30):
            bursts = [
                (chance.randrange(3), Burst.cut(chance.randbytes(chance.randrange(10 * segment)), segment))
                for _ in range(4)
            ]
            # A datagram alone is no burst, and one above the MTU would not come in at all.
            fit = [burst for burst in bursts if len(burst[1].parts) > 1 or len(burst[1].parts[0]) <= 1200]
            flows.exchange(fit[::2], fit[1::2])
        flows.assert_nothing_is_left()
