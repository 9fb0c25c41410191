"""The kernel path on kernels of Debian's: older than this one, or with what this one may lack (VLANs, netem)."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import pytest

from tests.machine.machine import run_in_machine

MACHINES: Final = os.environ.get("RPXY_L4_MACHINES", "").split()
"""Names of folders in ``build/machine``; ``scripts/make-machine`` makes them."""

TESTS: Final = {
    "loading": ("tests/kernel/test_path.py", "tests/kernel/test_program.py"),
    "packets": ("tests/kernel/test_packets.py", "tests/kernel/test_segments.py", "-k", "not mutated"),
    "cables": ("tests/e2e/test_kernel_cables.py",),
    "service": (
        "tests/e2e/test_kernel_path.py",
        "tests/e2e/test_kernel_tcp.py",
        "-k",
        "counted_like_any_other and 4 or two_capabilities or stays_in_the_kernel and not killed",
    ),
}


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not MACHINES, reason="`make machine` runs it")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machines are of another kind")
@pytest.mark.parametrize("what", TESTS)
@pytest.mark.parametrize("name", MACHINES or [""])
def test_the_kernel_path_works_on_another_kernel(tmp_path: Path, name: str, what: str) -> None:
    pytest_there = ("python", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--timeout=600")
    ended = run_in_machine(name, tmp_path, *pytest_there, *TESTS[what], seconds=1100)
    assert ended.status == 0, ended.output
    assert "skipped" not in ended.output, ended.output
