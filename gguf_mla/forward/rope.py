"""Rotary positions, plain, divided by a factor, or with YaRN.

Source: the YaRN paper, and DeepSeek-V3's modelling code for the rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.model import Linear, Yarn

    Turn = Callable[[Floats, Numbers, "Rotary"], Floats]


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
    """Return the angle per position of every pair, float32 [p/2], on the CPU."""
    steps = torch.arange(0, model.rope, 2, dtype=torch.float32) / model.rope
    plain = 1 / torch.pow(model.theta, steps)
    if model.linear is not None:
        return plain / model.linear.factor
    if model.yarn is None:
        return plain
    kept = 1 - _ramp(model.yarn, model.theta, model.rope)
    return plain / model.yarn.factor * (1 - kept) + plain * kept


def _ramp(yarn: Yarn, theta: float, width: int) -> Floats:
    """Return how far every pair is interpolated, from 0 for fast ones to 1 for slow ones, float32 [p/2]."""

    def pair_of(rotations: float) -> float:
        """Return the pair that turns so often over the original context."""
        return width * math.log(yarn.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(yarn.fast)), 0), min(math.ceil(pair_of(yarn.slow)), width - 1)
    span = high - low if high > low else 0.001
    return ((torch.arange(width // 2, dtype=torch.float32) - low) / span).clamp(0, 1)


def rotate(x: Floats, positions: Numbers, model: Rotary) -> Floats:
    """Return x [N, H, p] or [N, p] with its pairs (2i, 2i+1) turned to their positions [N]."""
    pairs = x.reshape(len(x), -1, model.rope // 2, 2)
    return _turned(pairs, positions, model, -1).reshape(x.shape)


def rotate_halves(x: Floats, positions: Numbers, model: Rotary) -> Floats:
    """Return x [N, H, p] or [N, p] with its pairs (i, i+p/2) turned to their positions [N]."""
    pairs = x.reshape(len(x), -1, 2, model.rope // 2)
    return _turned(pairs, positions, model, -2).reshape(x.shape)


def place(x: Floats, positions: Numbers, model: Rotary, turn: Turn = rotate) -> Floats:
    """Return x rotated to its positions by `turn`, with the scale that YaRN gives to what is rotated."""
    turned = turn(x, positions, model)
    return turned if model.yarn is None or model.yarn.rotated == 1 else turned * model.yarn.rotated


def _turned(pairs: Floats, positions: Numbers, model: Rotary, axis: int) -> Floats:
    """Return pairs [N, H, ...] turned; `axis`, one of the last two, goes through the two values of a pair."""
    angles = positions[:, None].to(torch.float32) * frequencies(model).to(positions.device)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = pairs.unbind(axis)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=axis)
