"""Small plots as SVG text, for a page that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from gguf_mla.cli.page import wide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 720, 240, 64, 16, 34, 12


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis in whole decades from `low` to `high`, exponents of ten."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """Return the decades around the positive values."""
        positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
        low = math.floor(math.log10(min(positive)))
        return cls(low, max(math.ceil(math.log10(max(positive))), low + 1))

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1; what is not positive lies at 0."""
        if not value > 0:  # NaN is not
            return 0.0
        return min(max((math.log10(value) - self.low) / (self.high - self.low), 0.0), 1.0)


def lines(series: Mapping[str, Sequence[float]], what: str) -> str:
    """Return one line per series over the layers, on a logarithmic axis."""
    scale = Scale.of([value for values in series.values() for value in values])
    count = max(len(values) for values in series.values())
    parts = [_grid(scale), _caption(what, "layer")]
    for number, (name, values) in enumerate(series.items()):
        points = [(_x((i + 0.5) / count), _y(scale.place(value))) for i, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        parts += [
            f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(name)}, layer {i}: {values[i]:.4g}</title></circle>"
            for i, (x, y) in enumerate(points)
        ]
        parts.append(
            f'<text class="s{number} key" x="{WIDTH - RIGHT}" y="{TOP + 16 * (number + 1)}">{escape(name)}</text>'
        )
    step = max(1, count // 12)
    parts += [_tick((i + 0.5) / count, str(i)) for i in range(0, count, step)]
    return _svg(parts, HEIGHT)


def histogram(values: Sequence[float], what: str, per_decade: int = 4) -> str:
    """Return how many values lie in each part of a decade; zeros are counted in the first."""
    scale = Scale.of(values)
    bins = [0] * ((scale.high - scale.low) * per_decade)
    for value in values:
        bins[min(int(scale.place(value) * len(bins)), len(bins) - 1)] += 1
    top, width = max(bins), (WIDTH - LEFT - RIGHT) / len(bins)
    parts = [_caption("tokens", what)]
    for i, count in enumerate(bins):
        height = count / top * (HEIGHT - BOTTOM - TOP)
        x, y = _x(i / len(bins)), HEIGHT - BOTTOM - height
        edges = (10 ** (scale.low + j / per_decade) for j in (i, i + 1))
        title = " to ".join(f"{edge:.2g}" for edge in edges)
        parts.append(
            f'<rect class="s0" x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 1):.1f}" height="{height:.1f}">'
            f"<title>{title}: {count}</title></rect>"
        )
    decades = scale.high - scale.low
    step = max(1, decades // 10)
    parts += [_tick(i / decades, f"1e{scale.low + i}") for i in range(0, decades + 1, step)]
    parts.append(f'<text class="axis" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{top}</text>')
    return _svg(parts, HEIGHT)


def shares(parts: Mapping[str, float]) -> str:
    """Return one bar cut into shares; they are normalised."""
    total, x, drawn = sum(parts.values()) or 1.0, 0.0, []
    for number, (name, value) in enumerate(parts.items()):
        width = value / total * WIDTH
        drawn.append(
            f'<rect class="s{number % 6}" x="{x:.1f}" y="0" width="{width:.1f}" height="28">'
            f"<title>{escape(name)}: {100 * value / total:.1f} %</title></rect>"
        )
        if width > 60:
            drawn.append(f'<text class="inside" x="{x + 8:.1f}" y="19">{escape(name)}</text>')
        x += width
    return _svg(drawn, 28)


def _grid(scale: Scale) -> str:
    drawn = []
    for decade in range(scale.low, scale.high + 1):
        y = _y(scale.place(10.0**decade))
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>')
    return "".join(drawn)


def _caption(vertical: str, horizontal: str) -> str:
    side, below = f"translate(12 {HEIGHT / 2}) rotate(-90)", f"translate({(WIDTH + LEFT) / 2} {HEIGHT - 2})"
    return "".join(
        f'<text class="axis" transform="{place}" text-anchor="middle">{escape(text)}</text>'
        for place, text in ((side, vertical), (below, horizontal))
    )


def _tick(place: float, text: str) -> str:
    return f'<text class="axis" x="{_x(place):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>'


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - RIGHT)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - BOTTOM - TOP)


def _svg(parts: Sequence[str], height: int) -> str:
    return wide(f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>')
