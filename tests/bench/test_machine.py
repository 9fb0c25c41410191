from __future__ import annotations

import platform

from bench import machine


def test_the_processor_is_the_first_that_is_named() -> None:
    assert machine.processor("processor: 0\nmodel name\t: Fast One\nmodel name\t: Other\n") == "Fast One"


def test_a_processor_without_a_name_is_its_architecture() -> None:
    assert machine.processor("processor: 0\n") == platform.machine()


def test_this_machine_can_be_described() -> None:
    assert all(machine.describe().values())
