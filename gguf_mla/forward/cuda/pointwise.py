"""Rotary positions and routing on a GPU: what `forward.rope` and `forward.layers` compute, by kernels of our own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import cuda, int64

from gguf_mla.forward.cuda.device import explained, received, sent
from gguf_mla.forward.cuda.specialise import compiled, specialise
from gguf_mla.forward.kernels import choose_one, largest

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Numbers

THREADS = 128


def rotate_pairs(x: Any, cos: Any, sin: Any, step: int, gap: int) -> None:
    """Rotate x [N, H, p] in place, a thread per pair: pair i is (i·step, i·step + gap), turned by cos, sin [N, p/2]."""
    heads, pairs = x.shape[1], cos.shape[1]
    thread = cuda.grid(1)
    if thread < x.shape[0] * heads * pairs:
        token, head, i = thread // (heads * pairs), thread // pairs % heads, thread % pairs
        a, b = x[token, head, i * step], x[token, head, i * step + gap]
        x[token, head, i * step] = a * cos[token, i] - b * sin[token, i]
        x[token, head, i * step + gap] = a * sin[token, i] + b * cos[token, i]


def choose_experts(
    select: Any, groups: int, groups_used: int, by_two: bool, scores: Any, best_groups: Any, allowed: Any, chosen: Any
) -> None:
    """Choose the experts of one token per thread; scores [N, groups], best_groups and allowed [N, E] are scratch."""
    token = cuda.grid(1)
    if token < select.shape[0]:
        best = cuda.local.array(2, int64)
        choose_one(
            select[token], groups, groups_used, by_two, best, scores[token], best_groups[token], allowed[token],
            chosen[token],
        )  # fmt: skip


@functools.cache
def rotator() -> Any:
    """Return the rotating kernel."""
    return compiled(rotate_pairs)


def choose_function() -> Any:
    """Return the function of the choosing kernel: the CPU's rule, to the letter."""
    return specialise(choose_experts, (largest.py_func, choose_one.py_func))


@functools.cache
def chooser() -> Any:
    """Return the choosing kernel."""
    return compiled(choose_function())


@explained()
def rotate(x: Floats, cos: Floats, sin: Floats, *, halves: bool = False) -> Floats:
    """Return x [N, H, p] turned by cos, sin [N, p/2].

    Pairs are (2i, 2i+1), or with `halves` (i, i + p/2), as DeepSeek-V3.2's indexer has them.
    """
    step, gap = (1, x.shape[2] // 2) if halves else (2, 1)
    turned = sent(x.clone(memory_format=torch.contiguous_format))
    rotator()[-(-x.numel() // 2 // THREADS), THREADS](turned, sent(cos), sent(sin), step, gap)
    return received(turned, x)


@explained()
def choose(select: Floats, groups: int, groups_used: int, by_two: bool, count: int) -> Numbers:
    """Return the `count` experts of every token [N, count], for scores [N, E], like `forward.kernels.choose`."""
    tokens = len(select)
    result = cuda.device_array((tokens, count), np.int64)
    scratch = (
        cuda.device_array((tokens, groups), np.float32),
        cuda.device_array((tokens, groups_used), np.int64),
        cuda.device_array(tuple(select.shape), np.float32),
    )
    chooser()[-(-tokens // THREADS), THREADS](sent(select), groups, groups_used, by_two, *scratch, result)
    return received(result, select)
