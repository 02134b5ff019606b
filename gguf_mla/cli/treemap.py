"""A treemap as SVG: rectangles whose areas are bytes, as square as can be, groups kept together.

Source of the layout: Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.cli.page import safe, wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WIDTH, HEIGHT = 960.0, 600.0  # the width that a page has for it, so that letters keep their size
LETTER, LINE = 6.6, 12.0  # about as wide and as high as a letter of a label is
LEAST = 0.3  # of a unit: what is narrower cannot be seen


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Tile:
    """What a rectangle stands for: its label, what is said of it, its colour and its weight."""

    label: str
    title: str
    colour: str
    weight: int


def squarified(weights: Sequence[float], box: Box) -> list[Box]:
    """Return a box for each weight, in the order given; the weights are positive and best come largest first."""
    found: list[Box] = []
    scale = box.width * box.height / (sum(weights) or 1.0)
    areas, start = [weight * scale for weight in weights], 0
    while start < len(areas):
        side, stop = min(box.width, box.height), start + 1
        while stop < len(areas) and _worst(areas[start : stop + 1], side) <= _worst(areas[start:stop], side):
            stop += 1
        row, box = _row(areas[start:stop], box)
        found += row
        start = stop
    return found


def _worst(areas: Sequence[float], side: float) -> float:
    """Return the largest ratio of two sides among boxes that share a row along `side`."""
    total = sum(areas)
    if not total or not side:
        return float("inf")
    return max(side**2 * max(areas) / total**2, total**2 / (side**2 * min(areas)) if min(areas) else float("inf"))


def _row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Return the boxes of a row along the shorter side of a box, and what is left of that."""
    total, (x, y, width, height) = sum(areas), box
    if width >= height:
        thick = total / height if height else 0.0
        heights = [area / thick if thick else 0.0 for area in areas]
        tops = [y + sum(heights[:i]) for i in range(len(areas))]
        boxes = [Box(x, top, thick, high) for top, high in zip(tops, heights, strict=True)]
        return boxes, Box(x + thick, y, max(0.0, width - thick), height)
    turned, rest = _row(areas, Box(y, x, height, width))
    return [Box(b.y, b.x, b.height, b.width) for b in turned], Box(rest.y, rest.x, rest.height, rest.width)


def svg(groups: Mapping[str, Sequence[Tile]]) -> str:
    """Return the groups as one picture, each with its tiles inside; names are escaped."""
    sized = {name: sorted(tiles, key=lambda tile: -tile.weight) for name, tiles in groups.items()}
    order = sorted(sized, key=lambda name: -sum(tile.weight for tile in sized[name]))
    weights = [float(sum(tile.weight for tile in sized[name])) for name in order]
    boxes = squarified(weights, Box(0, 0, WIDTH, HEIGHT))
    drawn = [part for name, box in zip(order, boxes, strict=True) for part in _group(name, sized[name], box)]
    return wide(f'<svg class="treemap" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(drawn)}</svg>')


def _group(name: str, tiles: Sequence[Tile], box: Box) -> Iterator[str]:
    inner = squarified([float(tile.weight) for tile in tiles], box)
    for tile, place in zip(tiles, inner, strict=True):
        if min(place.width, place.height) >= LEAST:
            yield _tile(tile, place)
    yield f'<rect class="group" {_places(box)}/>'
    is_named = len(tiles) == 1  # by its only tile
    if not is_named and box.width > LETTER * len(name) + 8 and box.height > 2 * LINE:
        x, y = box.x + box.width - 4, box.y + box.height - 5
        yield f'<text class="name" x="{x:.1f}" y="{y:.1f}">{safe(name)}</text>'


def _tile(tile: Tile, box: Box) -> str:
    label = ""
    if box.width > LETTER * len(tile.label) + 6 and box.height > 1.6 * LINE:
        label = f'<text x="{box.x + 4:.1f}" y="{box.y + LINE + 1:.1f}">{safe(tile.label)}</text>'
    return f'<rect style="fill:{tile.colour}" {_places(box)}><title>{safe(tile.title)}</title></rect>{label}'


def _places(box: Box) -> str:
    return f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
