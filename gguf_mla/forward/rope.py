"""Rotary positions, plain, divided by a factor, or with YaRN.

Source: the YaRN paper, and DeepSeek-V3's modelling code for the rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gguf_mla.forward import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gguf_mla.forward.model import Linear, Yarn

    Floats = NDArray[np.float32]
    Turn = Callable[[Floats, NDArray[np.int64], "Rotary"], Floats]


class Rotary(Protocol):
    """What turns `rope` values of a row to their position: a model, or what has these of one."""

    @property
    def rope(self) -> int:
        """How many values turn."""

    @property
    def theta(self) -> float:
        """The base of the angles."""

    @property
    def yarn(self) -> Yarn | None:
        """How YaRN stretches them over a longer context."""

    @property
    def linear(self) -> Linear | None:
        """By what they are divided for one."""


def frequencies(model: Rotary) -> Floats:
    """Return the angle per position of every pair, float32 [p/2]."""
    steps = np.arange(0, model.rope, 2, dtype=np.float32) / np.float32(model.rope)
    plain: Floats = np.float32(1) / np.power(np.float32(model.theta), steps)
    if model.linear is not None:
        return plain / np.float32(model.linear.factor)
    if model.yarn is None:
        return plain
    kept = 1 - _ramp(model.yarn, model.theta, model.rope)
    blended: Floats = plain / np.float32(model.yarn.factor) * (1 - kept) + plain * kept
    return blended


def _ramp(yarn: Yarn, theta: float, width: int) -> Floats:
    """Return how far every pair is interpolated, from 0 for fast ones to 1 for slow ones, float32 [p/2]."""

    def pair_of(rotations: float) -> float:
        """Return the pair that turns so often over the original context."""
        return width * math.log(yarn.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(yarn.fast)), 0), min(math.ceil(pair_of(yarn.slow)), width - 1)
    span = np.float32(high - low if high > low else 0.001)
    ramp: Floats = np.clip((np.arange(width // 2, dtype=np.float32) - np.float32(low)) / span, 0, 1)
    return ramp


def rotate(x: Floats, positions: NDArray[np.int64], model: Rotary) -> Floats:
    """Return x [N, H, p] or [N, p] with its pairs (2i, 2i+1) turned to their positions [N]."""
    angles = positions[:, None].astype(np.float32) * frequencies(model)[None]
    turned = x.reshape(len(x), -1, model.rope).astype(np.float32, order="C", copy=True)
    kernels.rotate(turned, np.cos(angles), np.sin(angles))
    return turned.reshape(x.shape)


def rotate_halves(x: Floats, positions: NDArray[np.int64], model: Rotary) -> Floats:
    """Return x [N, H, p] or [N, p] with its pairs (i, i+p/2) turned to their positions [N]."""
    paired = np.ascontiguousarray(x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)).reshape(x.shape)
    turned = rotate(paired, positions, model).reshape(*x.shape[:-1], -1, 2)
    return np.ascontiguousarray(turned.swapaxes(-1, -2)).reshape(x.shape)


def place(x: Floats, positions: NDArray[np.int64], model: Rotary, turn: Turn = rotate) -> Floats:
    """Return x rotated to its positions by `turn`, with the scale that YaRN gives to what is rotated."""
    turned = turn(x, positions, model)
    if model.yarn is not None and model.yarn.rotated != 1:
        turned *= np.float32(model.yarn.rotated)
    return turned
