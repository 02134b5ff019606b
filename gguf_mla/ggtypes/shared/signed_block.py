"""What Q3_K and Q6_K share: 256 values in 16 sub-blocks, each with a signed scale that is a level itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import lanes
from gguf_mla.ggtypes.shared.rounding import clamp, nearest
from gguf_mla.ggtypes.shared.search import symmetric_level

if TYPE_CHECKING:
    from gguf_mla.lanes import Lanes

# Rows of scratch: what each sub-block's fit found, weights of one sub-block, the levels of all values.
SCALES, INVERSES, EMPTY, TOTALS, SCALE_LEVELS, WEIGHTS = range(0, 96, 16)
LEVELS = 96
SCRATCH = LEVELS + 256


def keep_fit(scratch: Lanes, j: int, scale: Lanes, inverse: Lanes, empty: Lanes) -> None:
    """Remember what the fit of sub-block j found."""
    lanes.store(scratch, SCALES + j, scale)
    lanes.store(scratch, INVERSES + j, inverse)
    lanes.store(scratch, EMPTY + j, lanes.where(empty, 1.0, lanes.full(0.0)))


def store_fitted_levels(x: Lanes, scratch: Lanes, top: int) -> None:
    """Levels 0 … 2 top - 1 of all values by the fits' own scales, F in rows LEVELS …; 0 in an empty sub-block."""
    for j in range(16):
        inverse, empty = lanes.load(scratch, INVERSES + j), lanes.load(scratch, EMPTY + j) != 0.0
        for i in range(16 * j, 16 * j + 16):
            level = symmetric_level(lanes.load(x, i), inverse, top) + 1.0 * top
            lanes.store(scratch, LEVELS + i, lanes.where(empty, 0.0, level))


def choose_levels(x: Lanes, scratch: Lanes, top: int, scale: Lanes) -> None:
    """Replace the fitted levels by those of the rounded scales, except where such a scale is 0."""
    for j in range(16):
        step = scale * lanes.load(scratch, SCALE_LEVELS + j)
        for i in range(16 * j, 16 * j + 16):
            level = lanes.to_float(clamp(nearest(lanes.load(x, i) / step), -top, top - 1) + top)
            lanes.store(scratch, LEVELS + i, lanes.where(step == 0.0, lanes.load(scratch, LEVELS + i), level))
