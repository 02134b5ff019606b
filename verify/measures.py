"""How far two arrays are apart, in the measures that attention kernels are published with."""

from __future__ import annotations

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


def agreement(found: NDArray[Any], expected: NDArray[Any]) -> Agreement:
    """Compare two arrays of one shape in float64; NaN anywhere makes every measure NaN."""
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    norm = np.sqrt((a @ a) * (b @ b))
    difference = a - b
    return Agreement(
        float(a @ b / norm) if norm else 1.0,
        float(np.abs(difference).sum() / max(np.abs(b).sum(), np.finfo(float).tiny)),
        float(np.mean(difference * difference)),
    )
