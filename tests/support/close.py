"""How far apart two float32 computations of the same may be, on whatever CPU: limits from the formula.

BLAS adds in an order that depends on the CPU and on the number of rows, so two right results differ. Every addition
rounds by at most 2^-24 of the partial sum it makes; n roundings, as independent as they are here, come to √n of one.
Two sums are compared, and four times as much is left: a limit of 4 · √n · 2^-24 · size, where `size` is what the
partial sums reach: Σ|terms|, or √Σterms² where the terms' signs are random. Arrays are numpy's, or tensors on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from verify import rounding
from verify.measures import agreement

if TYPE_CHECKING:
    from gguf_mla.forward.model import Model

STEP = 2.0**-24  # half the distance of float32 numbers around 1


def limit(terms: int, size: np.ndarray | float = 1.0) -> np.ndarray | float:
    """The largest difference of two float32 sums of so many products, whose partial sums reach `size`."""
    return 4 * terms**0.5 * STEP * size


def turned(angle: np.ndarray | float, size: np.ndarray | float) -> np.ndarray | float:
    """The largest error of a pair of length `size` turned by up to `angle` radians.

    The angle is position · frequency rounded to float32, off by 2^-24 of itself; sine, cosine, two products and a sum
    round once each.
    """
    return (np.abs(angle) + 5) * STEP * size


def within(found: np.ndarray, expected: np.ndarray, limits: np.ndarray | float) -> None:
    """Every element is as near as its limit; infinities are the same."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    apart = np.abs(found[finite].astype(np.float64) - expected[finite])
    allowed = np.broadcast_to(limits, expected.shape)[finite]
    assert (apart <= allowed).all(), f"{apart.max():.3g} apart, {(apart / allowed).max():.3g} times the limit"


def close(found: np.ndarray, expected: np.ndarray, terms: int, size: np.ndarray | float) -> None:
    """Every element is a sum of so many products that reach `size` [broadcast], and differs by its rounding at most."""
    within(found, expected, limit(terms, size))


def close_together(found: np.ndarray, expected: np.ndarray, terms: int) -> None:
    """Sums of so many products differ, all of them together, by no more than rounding: Σ|a-b| against Σ|b|."""
    found, expected = np.asarray(found), np.asarray(expected)
    measured = agreement(found, expected)
    assert found.shape == expected.shape
    assert measured.wmape <= limit(terms), measured


def close_logits(found: np.ndarray, expected: np.ndarray, model: Model) -> None:
    """Logits [T, V] of one model over T tokens differ by their rounding, all together and each, up to a constant.

    The likeliest token is the same where the two likeliest are further apart than both sides may err.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    close_together(found, expected, rounding.products(model, len(found)))
    each = rounding.largest(model, len(found), float(expected.std(axis=1).max()), found.size)
    within(log_softmax(found), log_softmax(expected), each)
    same_best(found, expected, each)


def log_softmax(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def same_best(found: np.ndarray, expected: np.ndarray, apart: float) -> None:
    """Rows [N, V] have their largest value in the same column where the two largest are further apart than both err.

    `apart` is the limit of one value; most rows have to be told apart, or this would show nothing.
    """
    second, first = np.sort(expected, axis=-1)[..., -2:].T
    told = first - second > 2 * apart
    assert told.mean() > 0.9
    np.testing.assert_array_equal(found.argmax(axis=-1)[told], expected.argmax(axis=-1)[told])
