from __future__ import annotations

import platform

import pytest

from bench import machine


def test_the_processor_is_the_first_that_is_named() -> None:
    assert machine.processor("processor: 0\nmodel name\t: Fast One\nmodel name\t: Other\n") == "Fast One"


def test_a_processor_without_a_name_is_its_architecture() -> None:
    assert machine.processor("processor: 0\n") == platform.machine()


GCC = {"PGO_PROF_GEN_FLAG": "-fprofile-generate", "PGO_PROF_USE_FLAG": "-fprofile-use -fprofile-correction"}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param({**GCC, "CONFIG_ARGS": "'--prefix=/usr' '--enable-optimizations'"}, id="configured"),
        pytest.param({**GCC, "PY_CFLAGS_NODIST": "-std=c11 -fprofile-use -fprofile-correction"}, id="make profile-opt"),
        pytest.param({"PY_CFLAGS_NODIST": "-fprofile-instr-use=code.profclangd"}, id="clang"),
        pytest.param({**GCC, "PGO_PROF_USE_FLAG": "", "CONFIG_ARGS": "'--enable-shared'"}, id="flag erased by Debian"),
    ],
)
def test_an_interpreter_built_with_a_profile_is_known(build: dict[str, object]) -> None:
    assert machine.is_profiled(build)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param({**GCC, "CONFIG_ARGS": "'--enable-shared'", "PY_CFLAGS_NODIST": "-std=c11"}, id="GCC"),
        pytest.param({"PGO_PROF_GEN_FLAG": "", "PGO_PROF_USE_FLAG": ""}, id="another compiler"),
        pytest.param({}, id="nothing known"),
    ],
)
def test_flags_that_were_only_prepared_are_no_profile(build: dict[str, object]) -> None:
    assert not machine.is_profiled(build)


def test_this_machine_can_be_described() -> None:
    described = machine.describe()

    assert all(described.values())
    assert described["python"].startswith(platform.python_version())
