"""What the columns of a matrix are like: the statistics that llama-imatrix prints.

Of each tensor the mean activations E[a] of its columns (their mean squares, where a matrix has no sums of values), and
the energy Σ E[a²]; of a tensor and the nearest one before it of the same name in another layer, how far the two are
apart. Rows that no token reached are left out. Source: llama.cpp b11434, tools/imatrix.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.cli.table import table
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gguf_mla.importance.matrix import Imatrix

    Doubles = NDArray[np.float64]

NONE = math.nan
COLUMNS = (
    "tensor", "energy", "mean", "deviation", "skewness", "kurtosis", "entropy %", "gain", "distance", "cosine",
    "Pearson", "covariance",
)  # fmt: skip


@dataclass(frozen=True)
class Against:
    """A tensor against the one of the same name in an earlier layer; NaN where there is none."""

    gain: float = NONE
    distance: float = NONE
    cosine: float = NONE
    pearson: float = NONE
    covariance: float = NONE


@dataclass(frozen=True)
class Statistics:
    """Of one tensor; `entropy` is that of the energy's distribution in percent of the most that is possible."""

    name: str
    elements: int
    energy: float
    mean: float
    deviation: float
    skewness: float
    kurtosis: float
    entropy: float
    against: Against = field(default_factory=Against)


@dataclass(frozen=True)
class _Columns:
    """Means of a tensor's columns, of all rows that saw a token: of squares, and of values where they are known."""

    squares: Doubles
    plain: Doubles | None
    seen: NDArray[np.bool_]

    @property
    def values(self) -> Doubles:
        return self.squares if self.plain is None else self.plain


def of_matrix(matrix: Imatrix) -> list[Statistics]:
    """Return the statistics of every tensor that saw a token, in the order of their layers."""
    before: dict[str, _Columns] = {}
    found = []
    for name in sorted(matrix.names, key=_place):
        columns, (layer, rest) = _columns(matrix, name), split_name(name)
        if not columns.seen.any():
            continue
        earlier = before.get(rest) if layer is not None else None
        found.append(_statistics(name, columns, Against() if earlier is None else _against(columns, earlier)))
        before[rest] = columns
    return found


def _place(name: str) -> tuple[int, str]:
    layer, rest = split_name(name)
    return (1 << 30 if layer is None else layer), rest


def _columns(matrix: Imatrix, name: str) -> _Columns:
    sums = matrix.exact(name)
    counts = sums.counts[:, None]
    divisor = np.maximum(counts, 1)
    squares = (sums.squares.whole + sums.squares.rest) / divisor
    plain = (sums.plain.whole + sums.plain.rest) / divisor if matrix.has_plain(name) else None
    return _Columns(squares, plain, sums.counts > 0)


def _statistics(name: str, columns: _Columns, against: Against) -> Statistics:
    values, squares = columns.values[columns.seen].ravel(), columns.squares[columns.seen].ravel()
    mean, energy = float(values.mean()), float(squares.sum())
    centred = values - mean
    second, third, fourth = (float(np.mean(centred**power)) for power in (2, 3, 4))
    spread = second > 1e-20
    shares = squares / energy if energy > 0 else squares
    shares = shares[shares > 1e-10]
    entropy = float(-(shares * np.log2(shares)).sum())
    most = math.log2(values.size) if values.size > 1 else 1.0
    return Statistics(
        name, values.size, energy, mean, math.sqrt(second), third / second**1.5 if spread else 0.0,
        fourth / second**2 - 3 if spread else 0.0, 100 * entropy / most, against,
    )  # fmt: skip


def _against(now: _Columns, before: _Columns) -> Against:
    both = now.seen & before.seen if now.values.shape == before.values.shape else None
    if both is None or not both.any():
        return Against()
    plain = now.plain is not None and before.plain is not None
    x, y = ((c.values if plain else c.squares)[both].ravel() for c in (now, before))
    dx, dy = x - x.mean(), y - y.mean()
    strength = [float(np.sqrt(c.squares[c.seen].mean())) for c in (now, before)]
    return Against(
        gain=strength[0] / strength[1] if strength[1] else NONE,
        distance=float(np.linalg.norm(x - y)),
        cosine=_ratio(float(x @ y), float(np.linalg.norm(x) * np.linalg.norm(y))),
        pearson=_ratio(float(dx @ dy), float(np.linalg.norm(dx) * np.linalg.norm(dy))),
        covariance=float(np.mean(dx * dy)),
    )


def _ratio(over: float, under: float) -> float:
    return over / under if under else NONE


def as_data(entry: Statistics) -> dict[str, Any]:
    """Return it as JSON has it."""
    known = asdict(entry)
    against: dict[str, Any] = known.pop("against")
    return known | against


def text(found: Sequence[Statistics]) -> str:
    """Return a table of all tensors."""
    rows = [
        (s.name, *map(_short, (s.energy, s.mean, s.deviation, s.skewness, s.kurtosis, s.entropy)),
         *map(_short, asdict(s.against).values()))
        for s in found
    ]  # fmt: skip
    return table(COLUMNS, rows, right=",".join(COLUMNS[1:]))


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
