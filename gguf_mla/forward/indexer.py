"""The lightning indexer of DeepSeek sparse attention: which cached tokens a query attends to.

A query q [heads, size] scores the key k_t of every cached token by Σ_h w_h · relu(q_h · k_t); the best `top_k` are
attended to. q comes from the normed low-rank query, k and w from the layer's normed input; the first `rope` values of
q and k are rotated, then both go through an orthonormal Hadamard transform. Source: DeepSeek-V3.2's paper and
published inference code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

from gguf_mla.forward import rope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.model import Indexer

EPS = 1e-6  # of the keys' LayerNorm, whatever rms_norm_eps is
PRODUCTS = 1 << 22  # of queries and keys that are held at a time
FP8_BLOCK, FP8_LARGEST, FP8_FLOOR = 128, 448.0, 1e-4
NOTHING = -1  # in a choice, where a query has fewer tokens before it than it may attend to


class Indexed(rope.Rotary, Protocol):
    """What has an indexer and the rotation of its rows: a model, or what has these of one."""

    @property
    def indexer(self) -> Indexer | None:
        """The indexer's sizes."""


@dataclass(frozen=True)
class Index:
    """What scores the tokens of one sequence: T queries that are the last of S cached tokens.

    queries [T, heads, size], keys [S, size], weights [T, heads]; of `every` tokens there is a key, which those see that
    are not before the last of them.
    """

    queries: Floats
    keys: Floats
    weights: Floats
    every: int = 1

    def seen(self, start: int, stop: int) -> Numbers:
        """Return how many keys the queries start … stop-1 see, int64 [queries]."""
        before = max(0, len(self.keys) * self.every - len(self.queries))
        return (before + torch.arange(start, stop, device=self.keys.device) + 1) // self.every


def prepare(q: Floats, k: Floats, weights: Floats, norm: tuple[Floats, Floats], model: Indexed) -> Index:
    """Return the index of T queries that are the last of S tokens, from their projections.

    q [T, heads · size], k [S, size], weights [T, heads]; norm: weight and bias of the keys' LayerNorm, [size]
    """
    indexer, positions = _of(model), torch.arange(len(k), device=k.device)
    queries = _turned(q.reshape(len(q), indexer.heads, indexer.size), positions[len(k) - len(q) :], model)
    keys = _turned(layer_norm(k, *norm), positions, model)
    return Index(queries, keys, weights * (indexer.heads**-0.5 * indexer.size**-0.5))


def _of(model: Indexed) -> Indexer:
    assert model.indexer is not None  # noqa: S101 - only layers with one come here
    return model.indexer


def _turned(x: Floats, positions: Numbers, model: Indexed) -> Floats:
    """Rotate the leading part of x [N, ..., size] to its positions [N] and transform it."""
    values = hadamard(_rotated(x, positions, model))
    return round_fp8(values) if _of(model).fp8 else values


def _rotated(x: Floats, positions: Numbers, model: Indexed) -> Floats:
    turn = rope.rotate if _of(model).interleaved else rope.rotate_halves
    return torch.cat([rope.place(x[..., : model.rope], positions, model, turn), x[..., model.rope :]], dim=-1)


def layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return (x - mean x) / √(variance + 1e-6) · weight + bias over the last axis."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + EPS) * weight + bias


def hadamard(x: Floats) -> Floats:
    """Return the orthonormal Hadamard transform of the last axis, 2^m values in Sylvester's order; its own inverse."""
    return x @ _sylvester(x.shape[-1]).to(x.device)


@cache
def _sylvester(size: int) -> Floats:
    """Return the matrix of the transform: [[H, H], [H, -H]] doubled up from 1, each row of length 1."""
    matrix, step = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(matrix) < size:
        matrix = torch.kron(step, matrix)
    return matrix / math.sqrt(size)


def round_fp8(x: Floats) -> Floats:
    """Return x as DeepSeek's kernels round it: e4m3 in blocks of 128 along the last axis, scales of powers of two.

    The scale is 2^⌈log2(max(largest, 1e-4) / 448)⌉.
    """
    blocks = x.reshape(*x.shape[:-1], -1, min(FP8_BLOCK, x.shape[-1]))
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp(min=FP8_FLOOR)
    scale = torch.exp2(torch.ceil(torch.log2(largest / FP8_LARGEST)))
    return (e4m3(blocks / scale) * scale).reshape(x.shape)


def e4m3(x: Floats) -> Floats:
    """Return x rounded to the nearest value of 4 exponent and 3 mantissa bits, ties to even, at most ±448."""
    return x.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(torch.float32)


def scores(index: Index, start: int, stop: int) -> Floats:
    """Return the scores of the queries start … stop-1, float32 [queries, S]; -inf for tokens after the query."""
    queries, weights = index.queries[start:stop], index.weights[start:stop]
    products = (queries.reshape(-1, queries.shape[-1]) @ index.keys.T).relu_().reshape(*weights.shape, -1)
    found = (weights[:, None] @ products)[:, 0]
    numbers = torch.arange(len(index.keys), device=index.keys.device)
    return found.masked_fill_(numbers >= index.seen(start, stop)[:, None], -torch.inf)


def blocks(index: Index) -> Iterator[slice]:
    """Yield the queries in blocks whose products with all keys are few enough to hold."""
    count, heads = index.weights.shape
    step = max(1, PRODUCTS // (heads * len(index.keys)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def choose(index: Index, top_k: int) -> Numbers:
    """Return the positions every query attends to, int64 [T, min(top_k, S)] in rising order, NOTHING at the end."""
    parts = [best(scores(index, block.start, block.stop), top_k) for block in blocks(index)]
    return torch.cat(parts)


def best(found: Floats, top_k: int) -> Numbers:
    """Return the columns of the `top_k` largest of every row [N, S], in rising order, NOTHING for those of -inf.

    Of equal values the first are taken; NaN is the largest, as infinity.
    """
    found = found.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    kept = min(top_k, found.shape[1])
    least = found.topk(kept, dim=1).values[:, -1:]
    above, same = found > least, found == least
    taken = above | same & (same.cumsum(dim=1) <= kept - above.sum(dim=1, keepdim=True))
    columns = taken.nonzero()[:, 1].reshape(-1, kept)
    hidden = found.gather(1, columns) == -torch.inf
    ordered = columns.masked_fill(hidden, found.shape[1]).sort(dim=1).values
    return ordered.masked_fill(ordered == found.shape[1], NOTHING)


def shift(keys: Floats, by: int, model: Indexed) -> Floats:
    """Return cached keys [S, size] moved by so many positions.

    They are cached after the Hadamard transform, which therefore has to be undone first; their leading part turns.
    """
    return hadamard(_rotated(hadamard(keys), torch.full((len(keys),), by, device=keys.device), model))
