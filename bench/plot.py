"""The plot: CPU of each contestant for the same work, relative to ours, as an SVG made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_ROW: Final = 26
_LEFT: Final = 400
_WIDTH: Final = 1040
_RIGHT: Final = 40
_TOP: Final = 78
_BOTTOM: Final = 30
_COLOURS: Final = ("#d1495b", "#2e86ab", "#3a9d5d", "#8d6cab", "#e08e29", "#6b7280", "#12827c", "#a0522d")
_STYLE: Final = """
text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #24292f; }
.note { font-size: 12px; fill: #57606a; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.one { stroke: #d1495b; stroke-width: 1.5; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9da7b1; } .grid { stroke: #30363d; } .ground { fill: #0d1117; }
}
"""


@dataclass(frozen=True)
class Row:
    """A workload, and for each contestant its CPU by ours."""

    label: str
    ratios: dict[str, float]


def draw(title: str, names: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """Return the plot as SVG: a line for each row, a dot for each contestant, on a logarithmic axis.

    ``names`` are the contestants as key and title, in the order of the legend.
    """
    values = [value for row in rows for value in row.ratios.values() if value > 0]
    low = math.floor(math.log2(min([*values, 0.5])))
    high = math.ceil(math.log2(max([*values, 2.0])))
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (math.log2(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        f'<text x="16" y="24">{escape(title)}</text>',
    ]
    parts += _legend(names)
    for power in range(low, high + 1):
        at = x(2.0**power)
        kind = "one" if power == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at:.1f}" y1="{_TOP - 8}" x2="{at:.1f}" y2="{height - _BOTTOM}"/>')
        mark = f"{2**power}x" if power >= 0 else f"1/{2**-power}x"
        parts.append(f'<text class="note" x="{at:.1f}" y="{height - 10}" text-anchor="middle">{mark}</text>')
    colours = _colours(names)
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        parts.append(f'<text x="{_LEFT - 14}" y="{y + 4:.1f}" text-anchor="end">{escape(row.label)}</text>')
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        for key, name in names:
            value = row.ratios.get(key)
            if value:
                tip = f"{name}: {value:.2f}"
                parts.append(
                    f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="6" fill="{colours[key]}">'
                    f"<title>{escape(tip)}</title></circle>"
                )
    return "\n".join([*parts, "</svg>", ""])


def _colours(names: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {key: _COLOURS[number % len(_COLOURS)] for number, (key, _) in enumerate(names)}


def _legend(names: Sequence[tuple[str, str]]) -> list[str]:
    parts, at = [], 22
    for key, name in names:
        parts.append(f'<circle cx="{at}" cy="48" r="6" fill="{_colours(names)[key]}"/>')
        parts.append(f'<text x="{at + 11}" y="52">{escape(name)}</text>')
        at += 36 + 8 * len(name)
    return parts
