"""Which experts have seen how many tokens: a table, a picture for the terminal, and a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.cli.page import BAD, cell, document, report, safe, section, shade, wide
from gguf_mla.cli.page import table as html_table
from gguf_mla.cli.table import table
from gguf_mla.importance.names import kind_of
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gguf_mla.importance.matrix import Imatrix

EXPERTS = ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps")  # any of a layer tells
LIMITS = (1, 100, 1000)  # tokens below which an expert counts as not seen, hardly seen, little seen
SHADES = "·░▒▓█"  # none, below 100, below 1000, below 10000, more
MEANINGS = ("no token", "below 100", "below 1000", "below 10000", "more")
HEADER = ("layer", "experts", "none", "< 100", "< 1000", "least", "median", "most")
WIDE = 128  # experts in a line of the picture
ROOMY = 32  # experts in a layer whose cells may be large


@dataclass(frozen=True)
class Coverage:
    """The tokens that every expert of a layer has seen, by layer."""

    layers: Mapping[int, NDArray[np.float64]]

    def below(self, tokens: int) -> int:
        """Return how many experts have seen fewer tokens."""
        return sum(int((counts < tokens).sum()) for counts in self.layers.values())

    @property
    def experts(self) -> int:
        """How many experts there are, all layers together."""
        return sum(counts.size for counts in self.layers.values())

    @property
    def least(self) -> int:
        """The tokens that the expert with the fewest has seen; 0 without experts."""
        return min((int(counts.min()) for counts in self.layers.values()), default=0)


def tells(name: str) -> bool:
    """Whether a tensor is one of experts, whose counts tell the coverage."""
    return kind_of(name) in EXPERTS


def of_counts(counts: Iterable[tuple[str, NDArray[np.float64]]]) -> Coverage:
    """Return the coverage that tensors' names and counts tell."""
    layers: dict[int, NDArray[np.float64]] = {}
    for name, numbers in counts:
        layer, _ = split_name(name)
        if layer is not None and tells(name):
            layers[layer] = np.maximum(layers.get(layer, 0), numbers)
    return Coverage(dict(sorted(layers.items())))


def of_matrix(matrix: Imatrix) -> Coverage:
    """Return the coverage of a matrix; of a `.dat` file, which has no counts by expert, nothing is known."""
    counts = ((name, matrix.counts(name)) for name in matrix.names if tells(name))
    return of_counts((name, numbers) for name, numbers in counts if numbers.size > 1)


def summary(covered: Coverage) -> str:
    """Return one line about all experts."""
    none, few, some = map(covered.below, LIMITS)
    if not covered.layers:
        return "no layer has experts"
    return (
        f"of {covered.experts} experts {none} saw no token, {few - none} fewer than {LIMITS[1]}, "
        f"{some - few} fewer than {LIMITS[2]}; the least seen saw {covered.least}"
    )


def text(covered: Coverage) -> str:
    """Return the table and the picture."""
    rows = [(layer, *row) for layer, row in _rows(covered).items()]
    meaning = zip(SHADES, MEANINGS, strict=True)
    legend = "A line for every layer, a sign for every expert: " + ", ".join(f"{sign} {what}" for sign, what in meaning)
    picture = "\n".join(f"{layer:>3} {line}" for layer, line in _lines(covered))
    return "\n".join([summary(covered), "", table(HEADER, rows, right=",".join(HEADER)), "", legend, picture])


def _rows(covered: Coverage) -> dict[int, tuple[int, ...]]:
    return {
        layer: (
            counts.size, *(int((counts < limit).sum()) for limit in LIMITS), int(counts.min()),
            int(np.median(counts)), int(counts.max()),
        )
        for layer, counts in covered.layers.items()
    }  # fmt: skip


def _lines(covered: Coverage) -> Iterable[tuple[int, str]]:
    for layer, counts in covered.layers.items():
        signs = "".join(SHADES[grade] for grade in grades(counts))
        for start in range(0, len(signs), WIDE):
            yield layer, signs[start : start + WIDE]


def grades(counts: NDArray[np.float64]) -> Sequence[int]:
    """Return of each count how many of 1, 100, 1000 and 10000 it reaches."""
    found: Sequence[int] = np.searchsorted([*LIMITS, 10 * LIMITS[-1]], counts, side="right").tolist()
    return found


def as_data(covered: Coverage) -> dict[str, Any]:
    """Return it as JSON has it."""
    none, few, some = map(covered.below, LIMITS)
    by_layer = {str(layer): counts.astype(int).tolist() for layer, counts in covered.layers.items()}
    return {
        "count": covered.experts, "none": none, "below_100": few, "below_1000": some, "least": covered.least,
        "tokens": by_layer,
    }  # fmt: skip


def write_page(path: Path, covered: Coverage, name: str, inputs: Iterable[Path]) -> None:
    """Write the picture as a page; an older page of this program is replaced, no other file."""
    with report(path, "imatrix", inputs) as write:
        write(document("imatrix", f"Experts of {name}", _sections(covered, name)))


def _sections(covered: Coverage, name: str) -> Iterable[str]:
    yield f'<h1>Experts of {safe(name)}</h1><p class="soft">{summary(covered)}.</p>'
    yield section("By layer", html_table(HEADER, [(layer, *row) for layer, row in _rows(covered).items()]))
    rows = ["<tr><th>layer</th></tr>"]
    for layer, counts in covered.layers.items():
        cells = "".join(_cell(layer, expert, int(count)) for expert, count in enumerate(counts))
        rows.append(f"<tr><td>{layer}</td>{cells}</tr>")
    note = '<p class="soft">A line for every layer, a cell for every expert; point at one for its tokens.</p>'
    kind = "map many" if any(counts.size > ROOMY for counts in covered.layers.values()) else "map"
    yield section("Tokens by expert", note + _key() + wide(f'<table class="{kind}">{"".join(rows)}</table>'))


def _key() -> str:
    """Return which colour is which number of tokens."""
    return "".join(
        f'<p class="swatch"><span style="{shade(*_colour(grade))}"></span>{meaning}</p>'
        for grade, meaning in enumerate(MEANINGS)
    )


def _cell(layer: int, expert: int, count: int) -> str:
    title = f"layer {layer}, expert {expert}: {count} tokens"
    return cell(title, *_colour(grades(np.array([count], np.float64))[0]))


def _colour(grade: int) -> tuple[str, float]:
    return ("var(--c0)", grade / 4) if grade else (BAD, 1.0)
