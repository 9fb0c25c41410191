"""What either side sends is what the other one gets: every byte, every datagram, in order, and the end at the end."""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import struct
from dataclasses import replace
from typing import Final

import pytest

from tests.e2e.conftest import StartProxy
from tests.support.exactness import Plan, Rest, Settle, Step, UdpFlows, Write, exchange, random_wave, udp_socket

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Around what buffers and pipes of a relay usually hold, and one above what it moves at a time.
EDGES: Final = tuple(size + by for size in (4 * KIB, 64 * KIB, 256 * KIB, MIB) for by in (-1, 0, 1))

# With the smallest buffers a stream is all waiting; these still make every write of a relay a partial one.
SMALL_BUFFER: Final = 16 * KIB
LARGE_BUFFER: Final = 4 * MIB


def random_steps(chance: random.Random, wanted: int) -> tuple[Step, ...]:
    """Writes of ``wanted`` bytes in all, cut anywhere, with waits for the other end in between."""
    steps: list[Step] = []
    left = wanted
    while left > 0:
        kind = chance.random()
        if kind < 0.3:
            sizes = [1] * chance.randrange(1, 30)
        elif kind < 0.6:
            sizes = [chance.randrange(1, 3000) for _ in range(chance.randrange(1, 10))]
        elif kind < 0.9:
            sizes = [chance.choice(EDGES)]
        else:
            sizes = [MIB + chance.randrange(MIB)]
        for size in sizes:
            steps.append(Write(max(1, min(size, left))))
            left -= size
        if chance.random() < 0.3:
            steps.append(Settle())
    return tuple(steps)


def random_plans(chance: random.Random) -> tuple[Plan, Plan]:
    last = chance.choice(("client", "target", "nobody"))
    plans = []
    for name in ("client", "target"):
        receive, send = (chance.choice((None, SMALL_BUFFER, LARGE_BUFFER)) for _ in range(2))
        most = 200 * KIB if SMALL_BUFFER in {receive, send} else 3 * MIB
        wanted = chance.choice((0, 1, chance.randrange(most), chance.randrange(most), most))
        holds = tuple(sorted(chance.randrange(1 + most) for _ in range(chance.randrange(3))))
        plans.append(Plan(random_steps(chance, wanted), last == name, receive, send, holds))
    return plans[0], plans[1]


@pytest.mark.parametrize("seed", range(4))
def test_both_ends_send_at_once_in_any_cuts_and_end_in_any_order(start_proxy: StartProxy, seed: int) -> None:
    chance = random.Random(seed)
    sessions = [random_plans(chance) for _ in range(8)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\n')
        exchange(proxy.address, listener, sessions)

        lines = proxy.wait_for_sessions(len(sessions))

    counted = sorted((int(line["bytes_in"]), int(line["bytes_out"])) for line in lines)
    assert counted == sorted((client.size, target.size) for client, target in sessions)
    assert {line["reason"] for line in lines} <= {"client_eof", "target_eof"}


def alternating(chance: random.Random, rounds: int) -> tuple[Step, ...]:
    """Small messages, each read before the next one, and then bulk, again and again."""
    steps: list[Step] = []
    for _ in range(rounds):
        for _ in range(chance.randrange(1, 6)):
            steps += [Write(chance.randrange(1, 300)), Settle()]
        steps += [Write(chance.choice((*EDGES, 2 * MIB))), Settle()]
    return tuple(steps)


@pytest.mark.parametrize("seed", range(2))
def test_a_connection_that_changes_between_messages_and_bulk_stays_exact(start_proxy: StartProxy, seed: int) -> None:
    chance = random.Random(seed)
    both = (Plan(alternating(chance, 15)), Plan(alternating(chance, 15), closes_last=True))
    up = (Plan(alternating(chance, 15)), Plan((), closes_last=True))
    down = (Plan((), closes_last=True), Plan(alternating(chance, 15)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\nworkers = 1\n')
        exchange(proxy.address, listener, [both, up, down])


def test_messages_that_fill_the_way_to_a_side_that_does_not_read_arrive_exactly(start_proxy: StartProxy) -> None:
    # None fills a buffer of the relay, each comes by itself, and there are more than the kernel takes for a reader that
    # waits: sooner or later it takes a part of one, in each of the sessions, which take turns.
    chance = random.Random(4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\nworkers = 1\n')
        plans = []
        for _ in range(3):
            steps = [step for _ in range(150) for step in (Write(chance.randrange(20_000, 50_000)), Rest(0.001))]
            sender = Plan(tuple(steps))
            reader = Plan((), closes_last=True, receive_buffer=SMALL_BUFFER, holds=(0, MIB, 2 * MIB))
            plans += [(sender, reader), (reader, sender)]
        exchange(proxy.address, listener, plans)


def test_what_broken_sessions_leave_behind_reaches_no_other_session(start_proxy: StartProxy) -> None:
    reset_on_close = struct.pack("ii", 1, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\nworkers = 1\n')
        for breaks, sends in itertools.product(("client", "target"), repeat=2):
            with proxy.connect() as client, listener.accept()[0] as target:
                sender = client if sends == "client" else target
                sender.setblocking(False)
                # Until nothing more goes in, there is something everywhere on the way.
                while select.select([], [sender], [], 0.1)[1]:
                    with contextlib.suppress(BlockingIOError):
                        sender.send(b"secret" * 100_000)
                broken = client if breaks == "client" else target
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
        proxy.wait_for_sessions(4)

        bulk = Plan((*[Write(MIB)] * 3, Settle(), Write(10), Settle(), Write(MIB)))
        exchange(proxy.address, listener, [(bulk, replace(bulk, closes_last=True))] * 4)


@pytest.mark.parametrize("first", ["client", "target"])
def test_bulk_goes_on_in_one_direction_after_the_other_has_ended(start_proxy: StartProxy, first: str) -> None:
    short, long = Plan((Write(5), Settle())), Plan((Write(1), Settle(), *[Write(MIB)] * 8), closes_last=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f'tcp_target = ["127.0.0.1:{listener.getsockname()[1]}"]\n')
        exchange(proxy.address, listener, [(short, long) if first == "client" else (long, short)])

        assert proxy.wait_for_session()["reason"] == f"{first}_eof"


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "::"])
def test_datagrams_and_bursts_of_any_sizes_arrive_as_they_were_cut(start_proxy: StartProxy, listen: str) -> None:
    # On a wildcard address the answers carry a control message of their own beside that of the burst.
    chance = random.Random(listen)
    key, host = ("listen_address_v6", "::1") if ":" in listen else ("listen_address_v4", "127.0.0.1")
    with udp_socket(host) as target, contextlib.ExitStack() as stack:
        name = f"[{host}]" if ":" in host else host
        proxy = start_proxy(f'{key} = "{listen}"\nudp_target = ["{name}:{target.getsockname()[1]}"]\n')
        flows = UdpFlows([stack.enter_context(proxy.udp(host)) for _ in range(6)], target)
        for _ in range(150):
            flows.exchange(random_wave(chance, 6), random_wave(chance, 6))
        flows.assert_nothing_is_left()

        assert proxy.metric("datagrams_dropped_total") == 0
