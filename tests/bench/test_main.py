"""The whole command, with its real generators and the real proxy, for moments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.contestants import FLOOR, KERNEL
from bench.document import to_json
from bench.report import BEGIN, END
from tests.bench.material import document, measured
from tests.support.kernel_path import needs_kernel_path

ROOT = Path(__file__).parent.parent.parent
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="the generators are compiled")


def test_the_list_names_workloads_and_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0

    text = capsys.readouterr().out
    assert "quic-new" in text
    assert "Envoy" in text


def test_a_report_is_written_again_from_its_result(tmp_path: Path) -> None:
    result, page = tmp_path / "any.json", tmp_path / "README.md"
    result.write_text(to_json(document(measured("tcp-new", "connection"))))
    page.write_text(f"head {BEGIN}{END} tail")

    assert main(["--report", str(result), "--readme", str(page)]) == 0

    assert (tmp_path / "2026-11-22-abc1234.md").exists()
    assert "2026-11-22-abc1234.svg" in page.read_text()


@pytest.mark.slow
@pytest.mark.e2e
@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("workload", "contestant"),
    [
        ("tls-new", "ours"),
        ("tcp-down-1", "ours"),
        ("udp-64", "ours"),
        ("udp-segmented-1", "ours"),
        ("quic-new", "ours"),
        ("udp-segmented-64", KERNEL),
        ("tcp-new", FLOOR),
        ("tcp-up-64", FLOOR),
        ("udp-plain", FLOOR),
        ("udp-segmented-64", FLOOR),
    ],
)
def test_a_workload_runs_through_the_real_proxy(workload: str, contestant: str, tmp_path: Path) -> None:
    if contestant == KERNEL:
        needs_kernel_path()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--workload", workload, "--contestant", contestant),
            *("--contestant", "none"),
            *("--repeat", "1", "--seconds", "0.05", "--output", str(tmp_path / "results")),
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").glob("*.json")
    (found,) = json.loads(path.read_text())["workloads"]
    entry = found["entries"][contestant]
    assert entry["problem"] == ""
    assert entry["fastest"][0]["throughput"] > 0
    # Of what the kernel does, nothing is the proxy's.
    assert contestant == KERNEL or entry["fastest"][0]["cpu"] > 0
    # These alone set no rate.
    assert contestant in {FLOOR, KERNEL} or entry["paced"][0]["p50"] > 0
    assert found["entries"]["none"]["fastest"][0]["cpu"] is None
