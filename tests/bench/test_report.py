from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import report
from bench.document import from_json, to_json
from bench.measure import Entry
from tests.bench.material import document, measured, sample

RESULT = document(
    measured(
        "tcp-new",
        "connection",
        ours=Entry(fastest=[sample(cpu=50e-6), sample(cpu=60e-6)], paced=[sample()], memory=20 << 20, peak=30 << 20),
        nginx=Entry(fastest=[sample(cpu=40e-6, lost=9)], memory=5 << 20, peak=6 << 20),
        none=Entry(fastest=[sample(12345.0, cpu=None)]),
    ),
    measured("tcp-up-1", "GB", ours=Entry(fastest=[sample(2.0, cpu=0.3)]), nginx=Entry(problem="it does not listen\n")),
    measured("tcp-idle", "session", ours=Entry(per_session=[1500.0])),
)


def test_a_result_read_again_is_the_same() -> None:
    assert from_json(to_json(RESULT)) == RESULT


def test_the_report_names_the_machine_the_versions_and_who_is_missing() -> None:
    text = report.full(RESULT, "x.svg")

    assert "a fast one" in text
    assert "nginx stream: 1.0" in text
    assert "not on this machine: Envoy" in text
    assert "tcp-new needs more" in text


def test_the_report_shows_the_median_and_the_spread() -> None:
    text = report.full(RESULT, "x.svg")

    assert "| text of tcp-new | 55.0 us ±9% | 40.0 us ±0% |" in text
    assert "| text of tcp-up-1 | 0.300 s/GB ±0% | - |" in text
    assert "12,345 ±0%" in text
    assert "| text of tcp-idle | 1,500 B | - |" in text


def test_problems_and_losses_are_not_left_out() -> None:
    text = report.full(RESULT, "x.svg")

    assert "- tcp-new, nginx stream: 9 requests lost in a run" in text
    assert "- tcp-up-1, nginx stream: it does not listen\n" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    lines = report.full(RESULT, "x.svg").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|"):
            above = lines[number - 1]
            assert not above.startswith("|") or above.count("|") == line.count("|")


def test_the_plot_has_a_row_for_what_can_be_compared() -> None:
    svg = ET.fromstring(report.plot(RESULT))  # noqa: S314  made here
    labels = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]

    assert "text of tcp-new" in labels
    assert "text of tcp-up-1" not in labels


def test_result_report_and_plot_are_written_side_by_side(tmp_path: Path) -> None:
    path = report.write(RESULT, tmp_path / "results")

    assert path.name == "2026-11-22-abc1234.json"
    assert sorted(each.suffix for each in path.parent.iterdir()) == [".json", ".md", ".svg"]
    assert "(2026-11-22-abc1234.svg)" in path.with_suffix(".md").read_text()


def test_the_block_takes_the_place_of_the_old_one() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"

    assert report.insert(page, "new\n") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.insert(report.insert(page, "new"), "new") == report.insert(page, "new")


@pytest.mark.parametrize(
    "page",
    [
        "none",
        report.BEGIN,
        report.END + report.BEGIN,
        report.BEGIN + report.BEGIN + report.END,
        report.BEGIN + report.END + report.END,
    ],
)
def test_a_page_without_the_two_markers_is_refused(page: str) -> None:
    with pytest.raises(report.MarkerError):
        report.insert(page, "new")


def test_the_short_form_has_the_table_and_the_picture() -> None:
    text = report.short(RESULT, "bench/results/x.svg")

    assert "| text of tcp-new | 55.0 us" in text
    assert "](bench/results/x.svg)" in text
    assert "no proxy" not in text
