"""How far two arrays are apart, in the measures that attention kernels are published with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[Any] | torch.Tensor  # of any kind of number; a tensor is measured where it lies

SIGNIFICANT = 2.0  # standard errors that a measure of some tokens must be beyond its limit, to be a difference


@dataclass(frozen=True)
class Agreement:
    """Cosine of the flattened arrays, WMAPE = Σ|a-b| / Σ|b|, and the mean squared difference.

    error  the standard error of WMAPE, as one of a ratio of means over rows: √(N/(N-1) Σ(|a-b| - WMAPE·|b|)²) / Σ|b|
    """

    cosine: float
    wmape: float
    mse: float
    error: float = 0.0

    @property
    def least(self) -> float:
        """What WMAPE is at least, as far as so few rows can tell."""
        return self.wmape - SIGNIFICANT * self.error


class Sums:
    """What an agreement is made of, from two arrays whose rows come a piece at a time, in float64."""

    def __init__(self) -> None:
        self._count, self._rows = 0, 0
        self._sums, self._products = np.zeros(6), np.zeros(3)

    def add(self, found: Values, expected: Values, count: int | None = None) -> None:
        """Take in rows [..., cols] of both; `count` says how many of the values there are, where the rest are 0."""
        a, b = (_rows(x) for x in (found, expected))
        difference = a - b
        off, size = difference.abs().sum(dim=1), b.abs().sum(dim=1)
        self._count += a.numel() if count is None else count
        self._rows += len(a)
        pairs = (a, b), (a, a), (b, b), (difference, difference)
        sums = [*(_dot(*pair) for pair in pairs), off.sum(), size.sum()]
        self._sums += torch.stack(sums).numpy(force=True)
        self._products += torch.stack([off @ off, off @ size, size @ size]).numpy(force=True)

    def agreement(self) -> Agreement:
        """Return the agreement of all pieces; NaN anywhere makes every measure NaN."""
        product, ours, theirs, square, absolute, size = self._sums.tolist()
        norm, size = math.sqrt(ours * theirs), max(size, np.finfo(float).tiny)
        wmape = absolute / size
        return Agreement(
            product / norm if norm else 1.0, wmape, square / max(self._count, 1), self._error(wmape) / size
        )

    def _error(self, wmape: float) -> float:
        if self._rows < 2:
            return math.inf
        off, both, size = self._products.tolist()
        scatter = off - 2 * wmape * both + wmape * wmape * size
        return math.sqrt(self._rows / (self._rows - 1) * max(scatter, 0.0))


def _rows(x: Values) -> torch.Tensor:
    """Return values as rows, float64 [rows, cols]."""
    wide = x.double() if isinstance(x, torch.Tensor) else torch.from_numpy(x.astype(np.float64))
    return wide.reshape(-1, x.shape[-1])


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(a.flatten(), b.flatten())


def agreement(found: Values, expected: Values) -> Agreement:
    """Compare two arrays or tensors of one shape in float64; NaN anywhere makes every measure NaN."""
    sums = Sums()
    sums.add(found, expected)
    return sums.agreement()
