"""How far two arrays are apart, in the measures that attention kernels are published with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """Cosine of the flattened arrays, WMAPE = Σ|a-b| / Σ|b|, and the mean squared difference."""

    cosine: float
    wmape: float
    mse: float


class Sums:
    """What an agreement is made of, from two arrays that come a piece at a time, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums = np.zeros(6)

    def add(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Take in a piece of both."""
        a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        difference = a - b
        self._count += a.size
        self._sums += a @ b, a @ a, b @ b, difference @ difference, np.abs(difference).sum(), np.abs(b).sum()

    def agreement(self) -> Agreement:
        """Return the agreement of all pieces; NaN anywhere makes every measure NaN."""
        product, ours, theirs, square, absolute, size = self._sums.tolist()
        norm = math.sqrt(ours * theirs)
        return Agreement(
            product / norm if norm else 1.0, absolute / max(size, np.finfo(float).tiny), square / max(self._count, 1)
        )


def agreement(found: NDArray[Any], expected: NDArray[Any]) -> Agreement:
    """Compare two arrays of one shape in float64; NaN anywhere makes every measure NaN."""
    sums = Sums()
    sums.add(found, expected)
    return sums.agreement()
