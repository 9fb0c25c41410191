"""Invariant: whatever stands in the memory, a flow is recalled as it was last remembered, or not at all."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections import defaultdict
from itertools import count
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpxy_l4.flow_memory import BUCKET_BYTES, ENTRY_BYTES, FlowMemory, Recollection

SECRET: Final = bytes(range(32))
WAYS: Final = 8
ADDRESS: Final = "192.0.2.7"
HOUR: Final = 3600.0


def region(buckets: int = 1) -> memoryview:
    return memoryview(bytearray(buckets * BUCKET_BYTES))


def key(number: int) -> bytes:
    return number.to_bytes(28, "big")


def memory_over(data: memoryview, *, secret: bytes = SECRET, max_age: float = HOUR) -> FlowMemory:
    return FlowMemory(data, secret, max_age)


def known(memory: FlowMemory, keys: range, now: float) -> list[int]:
    """Those of the keys that are recalled."""
    return [number for number in keys if memory.recall(key(number), now) is not None]


def keys_of_one_bucket(memory: FlowMemory, wanted: int) -> list[bytes]:
    by_bucket: dict[int, list[bytes]] = defaultdict(list)
    for number in count():
        fellows = by_bucket[memory._place(key(number))[1]]
        fellows.append(key(number))
        if len(fellows) == wanted:
            return fellows
    raise AssertionError  # count() has no end


def series_of(recollection: Recollection | None) -> int | None:
    return None if recollection is None else recollection.series


def test_a_flow_is_recalled_with_its_series_and_address() -> None:
    memory = memory_over(region())
    memory.remember(key(1), 16_383, "2001:db8::7", 1000.5)

    recollection = memory.recall(key(1), 1001.0)

    assert recollection is not None
    assert recollection.series == 16_383
    assert recollection.is_at("2001:db8::7")
    assert not recollection.is_at("2001:db8::8")
    assert memory.recall(key(2), 1001.0) is None


def test_no_two_addresses_of_a_network_are_taken_for_each_other() -> None:
    memory = memory_over(region())
    network = [f"192.0.2.{host}" for host in range(256)]
    for address in network:
        memory.remember(key(1), 1, address, 1.0)
        recollection = memory.recall(key(1), 1.0)
        assert recollection is not None
        assert [other for other in network if recollection.is_at(other)] == [address]


def test_memory_that_was_never_written_knows_nobody() -> None:
    assert known(memory_over(region(64)), range(1000), 0.0) == []


def test_what_is_remembered_again_is_replaced_and_takes_no_second_place() -> None:
    memory = memory_over(region())
    for number in range(WAYS):
        memory.remember(key(number), number, ADDRESS, 10.0 + number)
    for turn in range(20):
        memory.remember(key(3), 100 + turn, "192.0.2.8", 50.0 + turn)

    assert known(memory, range(WAYS), 70.0) == list(range(WAYS))
    recollection = memory.recall(key(3), 70.0)
    assert recollection is not None
    assert recollection.series == 119
    assert recollection.is_at("192.0.2.8")


def test_a_full_bucket_forgets_those_longest_not_remembered_again() -> None:
    memory = memory_over(region())
    for number in range(WAYS):
        memory.remember(key(number), number, ADDRESS, 10.0 + number)
    memory.remember(key(0), 0, ADDRESS, 30.0)
    memory.remember(key(2), 2, ADDRESS, 31.0)

    for newcomer, left in ((8, 1), (9, 3), (10, 4)):
        assert left in known(memory, range(11), 50.0)
        memory.remember(key(newcomer), newcomer, ADDRESS, 32.0 + newcomer)
        assert left not in known(memory, range(11), 50.0)

    assert known(memory, range(11), 50.0) == [0, 2, 5, 6, 7, 8, 9, 10]


def test_what_is_older_than_the_greatest_age_is_not_recalled() -> None:
    data = region()
    memory_over(data).remember(key(1), 5, ADDRESS, 1000.0)

    assert series_of(memory_over(data, max_age=60).recall(key(1), 1060.0)) == 5
    assert memory_over(data, max_age=60).recall(key(1), 1060.1) is None
    assert series_of(memory_over(data, max_age=float("inf")).recall(key(1), 4e9)) == 5


def test_remembering_again_makes_young_again() -> None:
    memory = memory_over(region(), max_age=60)
    memory.remember(key(1), 5, ADDRESS, 1000.0)
    memory.remember(key(1), 5, ADDRESS, 1050.0)

    assert series_of(memory.recall(key(1), 1110.0)) == 5


def test_a_flow_remembered_a_moment_ahead_of_the_readers_clock_is_known() -> None:
    memory = memory_over(region())
    memory.remember(key(1), 5, ADDRESS, 1001.0)

    assert series_of(memory.recall(key(1), 1000.99)) == 5


def test_a_time_to_come_does_not_keep_its_place_for_good() -> None:
    memory = memory_over(region())
    memory.remember(key(0), 0, ADDRESS, 4e9)
    for number in range(1, WAYS + 1):
        memory.remember(key(number), number, ADDRESS, 10.0 + number)

    assert known(memory, range(WAYS + 1), 50.0) == list(range(1, WAYS + 1))


def test_keys_that_push_each_other_out_do_so_under_one_secret_only() -> None:
    data, other_data = region(64), region(64)
    one, other = memory_over(data), memory_over(other_data, secret=SECRET[::-1])
    keys = keys_of_one_bucket(one, 3 * WAYS)
    for at, each in enumerate(keys):
        for memory in (one, other):
            memory.remember(each, at, ADDRESS, 10.0)

    assert sum(one.recall(each, 10.0) is not None for each in keys) == WAYS
    assert all(other.recall(each, 10.0) is not None for each in keys)


def test_what_was_written_with_another_secret_is_not_found() -> None:
    data = region()
    memory_over(data).remember(key(1), 5, ADDRESS, 10.0)

    assert memory_over(data, secret=b"other").recall(key(1), 10.0) is None


def test_a_half_full_memory_forgets_about_one_flow_in_a_hundred_and_a_full_one_one_in_seven() -> None:
    entries = 4096
    for flows, least, most in ((entries // 2, 0.98, 1.0), (entries, 0.83, 0.88)):
        memory = memory_over(memoryview(bytearray(entries * ENTRY_BYTES)))
        for number in range(flows):
            memory.remember(key(number), number, ADDRESS, 10.0)

        assert least < len(known(memory, range(flows), 10.0)) / flows < most


def test_an_old_and_a_new_object_over_the_same_memory_take_turns() -> None:
    data = region(2)
    old = memory_over(data)
    old.remember(key(1), 1, ADDRESS, 10.0)
    new = memory_over(data)
    new.remember(key(2), 2, ADDRESS, 11.0)
    new.remember(key(1), 3, ADDRESS, 12.0)

    for memory in (old, new):
        assert [series_of(memory.recall(key(number), 13.0)) for number in (1, 2)] == [3, 2]


def test_what_a_process_remembered_is_known_after_its_death() -> None:
    data = memoryview(mmap.mmap(-1, 4 * BUCKET_BYTES))
    pid = os.fork()
    if pid == 0:
        memory_over(data).remember(key(1), 7, ADDRESS, 10.0)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    assert series_of(memory_over(data).recall(key(1), 11.0)) == 7


def test_another_interpreter_writes_the_same_bytes() -> None:
    data = region(16)
    memory_over(data).remember(key(1), 7, ADDRESS, 10.0)
    code = (
        "from rpxy_l4.flow_memory import *; data = bytearray(16 * BUCKET_BYTES);"
        f"FlowMemory(memoryview(data), {SECRET!r}, 1.0).remember({key(1)!r}, 7, {ADDRESS!r}, 10.0); print(data.hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "17"}

    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment, capture_output=True)

    assert bytes.fromhex(done.stdout.decode()) == bytes(data)


def test_a_writer_killed_at_any_byte_of_a_renewal_forgets_the_flow_at_worst() -> None:
    before, after = region(), region()
    memory_over(before).remember(key(1), 0x0101, ADDRESS, 1000.0)
    after[:] = before
    memory_over(after).remember(key(1), 0x0202, "198.51.100.9", 70_000.0)

    for torn in torn_between(before, after):
        memory = memory_over(torn, max_age=1e9)
        recollection = memory.recall(key(1), 70_000.0)
        assert recollection in {
            None,
            memory_over(before, max_age=1e9).recall(key(1), 70_000.0),
            memory_over(after, max_age=1e9).recall(key(1), 70_000.0),
        }
        memory.remember(key(1), 0x0303, ADDRESS, 70_001.0)
        assert series_of(memory.recall(key(1), 70_001.0)) == 0x0303


def test_a_writer_killed_at_any_byte_of_a_replacement_makes_up_no_flow_and_harms_no_other() -> None:
    before, after = region(), region()
    for number in range(WAYS):
        memory_over(before).remember(key(number), number, ADDRESS, 1000.0 + number)
    after[:] = before
    memory_over(after).remember(key(8), 8, ADDRESS, 70_000.0)

    for torn in torn_between(before, after):
        memory = memory_over(torn, max_age=1e9)
        assert series_of(memory.recall(key(0), 70_000.0)) in {None, 0}
        assert series_of(memory.recall(key(8), 70_000.0)) in {None, 8}
        assert [series_of(memory.recall(key(number), 70_000.0)) for number in range(1, 8)] == list(range(1, 8))
        memory.remember(key(8), 9, ADDRESS, 70_001.0)
        assert series_of(memory.recall(key(8), 70_001.0)) == 9


def torn_between(before: memoryview, after: memoryview) -> list[memoryview]:
    """What a copy of the entry that differs leaves when it ends at each byte, begun at either end."""
    at = next(at for at in range(0, len(before), ENTRY_BYTES) if before[at : at + 24] != after[at : at + 24])
    end = at + ENTRY_BYTES
    found = []
    for cut in range(at, end + 1):
        for first, second in ((after, before), (before, after)):
            found.append(memoryview(bytearray(first[:cut]) + bytearray(second[cut:end]) + bytearray(after[end:])))
    assert len(found) == 2 * (ENTRY_BYTES + 1)
    return found


def test_memory_full_of_random_bytes_knows_nobody_and_can_be_used() -> None:
    chance = random.Random(1)
    memory = memory_over(memoryview(bytearray(chance.randbytes(4 * BUCKET_BYTES))))

    assert known(memory, range(200), 1000.0) == []
    for number in range(200):
        memory.remember(key(number), number, ADDRESS, 1000.0 + number)
        assert series_of(memory.recall(key(number), 1200.0)) == number
    # In the end no place is lost to what stood there.
    assert len(known(memory, range(200), 1200.0)) == 4 * WAYS


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, BUCKET_BYTES - 1), st.integers(1, 255)), min_size=1, max_size=30))
def test_changed_bytes_never_change_what_is_recalled(changes: list[tuple[int, int]]) -> None:
    data = region()
    memory = memory_over(data)
    for number in range(WAYS):
        memory.remember(key(number), number, ADDRESS, 1000.0 + number)
    for at, bits in changes:
        data[at] ^= bits

    for number in range(2 * WAYS):
        recollection = memory.recall(key(number), 1010.0)
        assert recollection is None or (recollection.series == number and recollection.is_at(ADDRESS))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 2**32 - 1), st.sampled_from([ADDRESS, "::1"]), st.integers(1, 9)),
        max_size=60,
    )
)
def test_one_bucket_is_a_dict_that_drops_its_oldest(steps: list[tuple[int, int, str, int]]) -> None:
    memory = memory_over(region(), max_age=100)
    model: dict[int, tuple[int, str, int]] = {}
    now = 0
    for number, series, address, passed in steps:
        now += passed
        if number not in model and len(model) == WAYS:
            del model[min(model, key=lambda each: model[each][2])]
        model[number] = series, address, now
        memory.remember(key(number), series, address, now)

        for each in range(12):
            recollection = memory.recall(key(each), now)
            if each not in model or now - model[each][2] > 100:
                assert recollection is None
            else:
                assert recollection is not None
                assert recollection.series == model[each][0]
                assert recollection.is_at(model[each][1])


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 99)), max_size=120))
def test_in_any_number_of_buckets_a_flow_is_recalled_as_last_remembered(
    buckets: int, steps: list[tuple[int, int]]
) -> None:
    memory = memory_over(region(buckets))
    model: dict[int, int] = {}
    for now, (number, series) in enumerate(steps, 1):
        memory.remember(key(number), series, ADDRESS, now)
        model[number] = series
        assert series_of(memory.recall(key(number), now)) == series

    recalled = known(memory, range(61), len(steps))
    assert all(series_of(memory.recall(key(number), len(steps))) == model[number] for number in recalled)
    assert len(recalled) >= min(len(model), WAYS)


def test_memory_of_another_format_and_an_odd_size_is_used_as_bytes() -> None:
    data = memoryview(bytearray(BUCKET_BYTES + 80)).cast("Q")
    memory = memory_over(data)
    for number in range(20):
        memory.remember(key(number), number, ADDRESS, 10.0 + number)

    assert known(memory, range(20), 50.0) == list(range(12, 20))
    assert not any(data[BUCKET_BYTES // 8 :])


def test_too_little_memory_and_too_long_a_secret_are_refused() -> None:
    with pytest.raises(ValueError, match="one bucket"):
        memory_over(memoryview(bytearray(BUCKET_BYTES - 1)))
    with pytest.raises(ValueError, match="64"):
        memory_over(region(), secret=bytes(65))
