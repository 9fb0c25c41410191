from __future__ import annotations

import os

from rpxy_l4.net.memory import SharedMemory


def test_memory_begins_as_zeros_and_another_mapping_of_its_descriptor_has_what_was_written() -> None:
    memory = SharedMemory(8192)
    assert bytes(memory.view) == bytes(8192)
    memory.view[5000] = 7

    again = SharedMemory(8192, os.dup(memory.descriptor))
    assert again.view[5000] == 7
    os.close(memory.descriptor)
    os.close(again.descriptor)
    again.view[5000] = 8

    assert memory.view[5000] == 8


def test_the_descriptor_is_not_inherited_until_somebody_wants_that() -> None:
    memory = SharedMemory(4096)

    assert not os.get_inheritable(memory.descriptor)
    os.close(memory.descriptor)
