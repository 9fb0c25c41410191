"""Invariant: whatever the policy, all targets come back, each as often as it was given."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.balance import BUCKETS, bucket_of, rank, rank_addresses, table
from rpxy_l4.snapshot import LoadBalance, Target

STICKY = [LoadBalance.SOURCE_IP, LoadBalance.SOURCE_SOCKET]
CLIENTS = [(f"192.0.2.{n % 250}", 1024 + n) for n in range(1000)]
UNUSED = random.Random(0)


def targets(*names: str) -> tuple[Target, ...]:
    return tuple(Target(f"{name}:80", name, 80, is_name=True) for name in names)


ABC = targets("a", "b", "c")


def chosen(policy: LoadBalance, among: tuple[Target, ...], client: tuple[str, int]) -> Target:
    return rank(policy, among, *client, UNUSED)[0]


def test_none_keeps_the_order_of_the_file() -> None:
    assert rank(LoadBalance.NONE, ABC, "192.0.2.1", 1, UNUSED) == ABC


def test_random_shuffles_with_the_generator_given() -> None:
    one, other = random.Random(7), random.Random(7)
    orders = [tuple(rank(LoadBalance.RANDOM, ABC, "192.0.2.1", 1, one)) for _ in range(300)]

    assert orders == [tuple(rank(LoadBalance.RANDOM, ABC, "192.0.2.9", 9, other)) for _ in range(300)]
    assert len(set(orders)) == 6
    assert all(80 < count < 120 for count in Counter(order[0] for order in orders).values())


def test_source_ip_does_not_look_at_the_port() -> None:
    orders = {tuple(rank(LoadBalance.SOURCE_IP, ABC, "192.0.2.1", port, UNUSED)) for port in range(1024, 1100)}

    assert len(orders) == 1


def test_source_socket_looks_at_the_port() -> None:
    orders = {tuple(rank(LoadBalance.SOURCE_SOCKET, ABC, "192.0.2.1", port, UNUSED)) for port in range(1024, 1100)}

    assert len(orders) == 6


def test_the_choice_is_the_documented_hash() -> None:
    bucket = 0
    for number in (0xC0000201, 1024):
        bucket = (bucket ^ number) * 0x9E3779B97F4A7C15 % 2**64
        bucket ^= bucket >> 32
    bucket = bucket * 0x9E3779B97F4A7C15 % 2**64 >> 52

    def weight(target: Target) -> int:
        data = bucket.to_bytes(2, "big") + bytes(4) + target.text.encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=b"rpxy-l4 rendezvous").digest(), "big")

    expected = sorted(ABC, key=weight, reverse=True)

    assert rank(LoadBalance.SOURCE_SOCKET, ABC, "192.0.2.1", 1024, UNUSED) == expected


def test_the_choice_never_changes_between_releases() -> None:
    found = [chosen(LoadBalance.SOURCE_IP, ABC, (f"192.0.2.{n}", 0)).host for n in range(12)]

    assert "".join(found) == "cabbbcaacacc"


def test_the_table_says_what_the_policy_chooses() -> None:
    among = targets("a", "b", "a", "c")
    choices = table(among)

    assert len(choices) == BUCKETS
    for host, port in [*CLIENTS[:100], ("2001:db8::1", 5), ("2001:db8::ffff:1", 6)]:
        assert among[choices[bucket_of(host)]] is chosen(LoadBalance.SOURCE_IP, among, (host, port))
        assert among[choices[bucket_of(host, port)]] is chosen(LoadBalance.SOURCE_SOCKET, among, (host, port))


@pytest.mark.parametrize("subnet", ["10.0.0.0/20", "192.0.2.0/24", "2001:db8::/116"])
def test_neighbours_are_in_different_buckets(subnet: str) -> None:
    """As evenly as by chance, at least."""
    clients = [str(address) for address in ip_network(subnet)]
    used = len({bucket_of(client) for client in clients})

    assert used >= 0.95 * BUCKETS * (1 - (1 - 1 / BUCKETS) ** len(clients))


@pytest.mark.parametrize("policy", STICKY)
def test_clients_spread_evenly(policy: LoadBalance) -> None:
    clients = [(f"10.1.{n // 250}.{n % 250}", n) for n in range(1500)]

    counts = Counter(chosen(policy, ABC, client) for client in clients)

    assert all(420 < counts[target] < 580 for target in ABC)


@pytest.mark.parametrize("policy", STICKY)
def test_the_order_in_the_file_does_not_matter(policy: LoadBalance) -> None:
    for client in CLIENTS[:50]:
        assert rank(policy, ABC, *client, UNUSED) == rank(policy, ABC[::-1], *client, UNUSED)


@pytest.mark.parametrize("policy", STICKY)
@pytest.mark.parametrize("removed", ABC)
def test_removing_a_target_moves_only_its_own_clients(policy: LoadBalance, removed: Target) -> None:
    left = tuple(target for target in ABC if target is not removed)
    for client in CLIENTS[:250]:
        before = rank(policy, ABC, *client, UNUSED)
        assert list(rank(policy, left, *client, UNUSED)) == [target for target in before if target is not removed]


@pytest.mark.parametrize("policy", STICKY)
def test_a_target_that_stands_there_twice_gets_twice_the_share(policy: LoadBalance) -> None:
    clients = [(f"10.1.{n // 250}.{n % 250}", n) for n in range(1500)]

    counts = Counter(chosen(policy, targets("a", "b", "a"), client).host for client in clients)

    assert 930 < counts["a"] < 1070
    assert counts["a"] + counts["b"] == 1500


@pytest.mark.parametrize("policy", STICKY)
def test_removing_one_of_two_equal_targets_moves_no_client_of_the_others(policy: LoadBalance) -> None:
    for client in CLIENTS[:100]:
        if (before := chosen(policy, targets("a", "b", "a"), client)).host == "b":
            assert chosen(policy, targets("a", "b"), client) == before


@pytest.mark.parametrize("policy", STICKY)
def test_an_ipv4_mapped_client_is_the_ipv4_client(policy: LoadBalance) -> None:
    for n in range(20):
        assert chosen(policy, ABC, (f"::ffff:192.0.2.{n}", 5)) == chosen(policy, ABC, (f"192.0.2.{n}", 5))


@pytest.mark.parametrize("policy", STICKY)
def test_the_way_an_ipv6_address_is_written_does_not_matter(policy: LoadBalance) -> None:
    forms = ["2001:db8::1", "2001:DB8:0:0::1", "2001:db8::1%eth0"]

    assert len({chosen(policy, ABC, (form, 5)) for form in forms}) == 1


@pytest.mark.parametrize("policy", LoadBalance)
def test_a_single_target_is_returned_as_it_is(policy: LoadBalance) -> None:
    one = targets("a")

    assert rank(policy, one, "not looked at", 1, UNUSED) is one
    assert rank_addresses(policy, one[0], ("192.0.2.7",), "not looked at", 1, UNUSED) == ("192.0.2.7",)


@settings(max_examples=50)
@given(
    st.sampled_from(sorted(LoadBalance)),
    st.lists(st.sampled_from(ABC), min_size=1, max_size=6),
    st.ip_addresses(),
    st.integers(0, 65_535),
    st.randoms(use_true_random=False),
)
def test_all_targets_come_back(
    policy: LoadBalance, given_targets: list[Target], client_ip: object, client_port: int, generator: random.Random
) -> None:
    ranked = rank(policy, given_targets, str(client_ip), client_port, generator)

    assert Counter(ranked) == Counter(given_targets)


ADDRESSES = ("203.0.113.1", "203.0.113.2", "2001:db8::3")


def address(policy: LoadBalance, addresses: tuple[str, ...], client: tuple[str, int]) -> str:
    return rank_addresses(policy, ABC[0], addresses, *client, UNUSED)[0]


def test_source_ip_keeps_the_address_of_a_name_for_new_source_ports() -> None:
    two = ADDRESSES[:2]

    assert len({address(LoadBalance.SOURCE_IP, two, ("192.0.2.1", port)) for port in range(1024, 1100)}) == 1
    assert len({address(LoadBalance.SOURCE_IP, two, (f"192.0.2.{n}", 1024)) for n in range(20)}) == 2
    assert len({address(LoadBalance.SOURCE_SOCKET, two, ("192.0.2.1", port)) for port in range(1024, 1100)}) == 2


def test_the_order_of_the_name_service_matters_only_without_a_hash() -> None:
    for client in CLIENTS[:20]:
        for policy in STICKY:
            assert address(policy, ADDRESSES, client) == address(policy, ADDRESSES[::-1], client)
        assert address(LoadBalance.NONE, ADDRESSES, client) == ADDRESSES[0]


def test_the_ports_of_one_host_share_the_address() -> None:
    http, https = (Target(f"a:{port}", "a", port, is_name=True) for port in (80, 443))
    for n in range(20):
        args = (ADDRESSES, f"192.0.2.{n}", 1024, UNUSED)
        assert rank_addresses(LoadBalance.SOURCE_IP, http, *args) == rank_addresses(LoadBalance.SOURCE_IP, https, *args)


def test_an_address_that_leaves_moves_only_its_own_clients() -> None:
    for client in CLIENTS[:100]:
        before = address(LoadBalance.SOURCE_IP, ADDRESSES, client)
        if before != ADDRESSES[1]:
            assert address(LoadBalance.SOURCE_IP, (ADDRESSES[0], ADDRESSES[2]), client) == before


def test_no_address_at_all_is_returned_as_none() -> None:
    for policy in LoadBalance:
        assert list(rank_addresses(policy, ABC[0], (), "192.0.2.1", 1, UNUSED)) == []
