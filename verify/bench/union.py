"""How much of the cache a batch of queries reads under sparse attention: the union of their choices.

A masked kernel reads every cached row whatever is chosen; one that gathers reads the rows of the union once, or every
query's own. Which of them reads least depends on how far neighbouring queries choose the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from gguf_mla.forward import indexer, walk
from gguf_mla.forward.attention import RowLayout, absorb, absorbed, causal_softmax, unseen
from gguf_mla.forward.indexer import NOTHING, Index
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.model import Indexer, Linear, Model, Yarn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gguf_mla.forward.arrays import Floats, Ids, Numbers
    from gguf_mla.forward.attention import Inputs
    from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights

CACHE_BYTES = 2  # a value of the cache, F16
WIDTH = 256  # of the synthetic hidden states
CORRELATIONS = (0.0, 0.9, 0.99)  # of neighbours among them


@dataclass(frozen=True)
class IndexerShape:
    """What decides how much of a cache is read: an indexer, the rotation of its rows, the rank of the latent rows."""

    indexer: Indexer
    kv_rank: int
    rope: int
    theta: float
    yarn: Yarn | None
    linear: Linear | None = None

    @classmethod
    def of(cls, model: Model) -> IndexerShape:
        """Return a model's; one without an indexer counts as having DeepSeek-V3.2's."""
        indexer = model.indexer or V32.indexer
        return cls(indexer, model.size("kv_rank"), model.rope, model.theta, model.yarn, model.linear)

    @property
    def row_bytes(self) -> int:
        """The size of a cached row of attention."""
        return CACHE_BYTES * (self.kv_rank + self.rope)

    @property
    def key_bytes(self) -> int:
        """The size of a cached key of the indexer."""
        return CACHE_BYTES * self.indexer.size


V32 = IndexerShape(
    Indexer(heads=64, size=128, top_k=2048, interleaved=False, own_layers=(True,)),
    kv_rank=512,
    rope=64,
    theta=10000.0,
    yarn=Yarn(40.0, 4096, 1.0),
)


@dataclass(frozen=True)
class CacheReading:
    """What the last queries of a cache read, batches of them on average, in bytes of an F16 cache.

    source    whose choice: a layer of a model's, or of a synthetic text
    union     how many tokens any query of a batch chose
    share     the part of the tokens up to the batch that these are
    masked    all latent rows; gathered: those of the union; single: every query's own
    keys      the indexer's, which are read in any case
    """

    source: str
    cached: int
    top_k: int
    queries: int
    union: float
    share: float
    masked: int
    gathered: int
    single: int
    keys: int


def readings(
    shape: IndexerShape, source: str, chosen: Numbers, cached: int, top_k: int, batches: Sequence[int]
) -> Iterator[CacheReading]:
    """Yield what batches of these many queries read, for the choices [T, K] of the last T queries."""
    row, key = shape.row_bytes, shape.key_bytes
    counts = (chosen != NOTHING).sum(dim=1).double()
    for queries in (queries for queries in batches if queries <= len(chosen)):
        seen, union = batch_sizes(chosen, cached, queries)
        single = float(counts.mean()) * queries
        nbytes = (round(size) for size in (seen * row, union * row, single * row, seen * key))
        yield CacheReading(source, cached, top_k, queries, union, union / seen, *nbytes)


def batch_sizes(chosen: Numbers, cached: int, queries: int) -> tuple[float, float]:
    """Return how many tokens that many queries in a row have before them, and how many they choose together.

    Both are means over the choices [T, K] of the last T queries of a cache.
    """
    ends = range(len(chosen), queries - 1, -queries)
    parts = (chosen[end - queries : end] for end in ends)
    unions = [part[part != NOTHING].unique().numel() for part in parts]
    return float(np.mean([cached - len(chosen) + end for end in ends])), float(np.mean(unions))


def synthetic(cached: int, queries: int, correlation: float, shape: IndexerShape = V32, seed: int = 0) -> Index:
    """Return an index of random projections of random hidden states, for the last queries of a cache.

    Every state is `correlation` times the one before it plus fresh noise: 0 for tokens without relation, 0.99 for a
    text that stays with its subject for some hundred tokens.
    """
    rng, heads, size = np.random.default_rng(seed), shape.indexer.heads, shape.indexer.size
    states = rng.standard_normal((cached, WIDTH), np.float32)
    for t in range(1, cached):
        states[t] = correlation * states[t - 1] + (1 - correlation**2) ** 0.5 * states[t]
    projections = (WIDTH, heads * size), (WIDTH, size), (WIDTH, heads)
    drawn = (rng.standard_normal(sizes, np.float32) * np.float32(WIDTH**-0.5) for sizes in projections)
    q, k, shares = map(torch.from_numpy, drawn)
    every, norm = torch.from_numpy(states), (torch.ones(size), torch.zeros(size))
    return indexer.prepare(every[-queries:] @ q, every @ k, every[-queries:] @ shares, norm, shape)


def measured(
    weights: CheckpointWeights | GgufWeights, tokens: Ids, batches: Sequence[int], top_k: int | None = None
) -> Iterator[CacheReading]:
    """Yield what batches of the last tokens of a text [T] read in every layer of a model that chooses.

    In a dense model the tokens are taken that get most attention, all heads together, which is what an indexer is
    trained to find; an eighth of the text unless said otherwise, as V3.2's 2048 of 16384.
    """
    model, last, watch = weights.model, max(batches), _Watch()
    if model.indexer is not None:
        top_k = top_k or model.indexer.top_k
        weights = replace(weights, model=replace(model, indexer=replace(model.indexer, top_k=top_k)))
    top_k = top_k or max(1, len(tokens) // 8)
    pass_, shape, sequences = Pass(weights, watch), IndexerShape.of(model), tokens[None]
    state = walk.embed(pass_, sequences)
    for layer in range(model.layers):
        state = walk.run_layer(pass_, layer, state, sequences)
        if model.is_sparse(layer) or model.indexer is None:
            chosen = watch.inputs.chosen
            chosen = indexer.best(attention_mass(watch.inputs, last), top_k) if chosen is None else chosen[-last:]
            yield from readings(shape, f"layer {layer}", chosen, len(tokens), top_k, batches)


class _Watch:
    """A form of attention that remembers what it was given."""

    inputs: Inputs

    def __call__(self, x: Inputs) -> Floats:
        self.inputs = x
        return absorbed(x)


def attention_mass(x: Inputs, queries: int) -> Floats:
    """Return the attention that the last queries give every cached token, summed over the heads; -inf if unseen."""
    few = replace(x, q_nope=x.q_nope[-queries:], q_pe=x.q_pe[-queries:])
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1])
    rows, latent = layout.join(x.latent, x.k_pe), layout.join(absorb(few), few.q_pe)
    mass = torch.zeros(len(latent), len(rows))
    for head in range(latent.shape[1]):
        mass += causal_softmax(latent[:, head] @ rows.T, x.scale)
    return mass.masked_fill_(unseen(None, *mass.shape), -torch.inf)


def simulated(lengths: Sequence[int], batches: Sequence[int], shape: IndexerShape = V32) -> Iterator[CacheReading]:
    """Yield what batches of the last tokens of synthetic texts read."""
    for correlation in CORRELATIONS:
        for cached in lengths:
            index = synthetic(cached, min(max(batches), cached), correlation, shape)
            top_k = shape.indexer.top_k
            chosen = indexer.choose(index, top_k)
            yield from readings(shape, f"correlation {correlation:g}", chosen, cached, top_k, batches)
