from __future__ import annotations

from xml.etree import ElementTree as ET

from bench.plot import Row, draw

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [("ours", "rpxy-l4"), ("peer", 'a "peer" <&>')]


def read(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  made here


def dots(svg: str) -> list[ET.Element]:
    return [dot for dot in read(svg).iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]


def test_the_plot_is_well_formed_whatever_the_names_contain() -> None:
    svg = draw("<title>", NAMES, [Row("a & b", {"ours": 1.0, "peer": 2.5})])

    assert [dot.findtext(f"{SVG}title") for dot in dots(svg)] == ["rpxy-l4: 1.00", 'a "peer" <&>: 2.50']


def test_dearer_is_further_to_the_right() -> None:
    svg = draw("t", NAMES, [Row("one", {"ours": 1.0, "peer": 0.4}), Row("two", {"ours": 1.0, "peer": 16.0})])
    ours, cheaper, same, dearer = (float(dot.attrib["cx"]) for dot in dots(svg))

    assert cheaper < ours == same < dearer


def test_every_dot_is_inside_the_picture() -> None:
    svg = draw("t", NAMES, [Row("one", {"ours": 1.0, "peer": 0.001}), Row("two", {"ours": 1.0, "peer": 1000.0})])
    _, _, width, height = (float(word) for word in read(svg).attrib["viewBox"].split())

    assert all(0 <= float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height for dot in dots(svg))


def test_a_contestant_without_a_figure_has_no_dot() -> None:
    assert len(dots(draw("t", NAMES, [Row("one", {"ours": 1.0})]))) == 1


def test_an_empty_plot_is_still_a_plot() -> None:
    assert dots(draw("t", [], [])) == []
