"""How much of the cache a batch of queries reads under sparse attention: the union of their choices.

A masked kernel reads every cached row whatever is chosen; one that gathers reads the rows of the union once, or every
query's own. Which of them reads least depends on how far neighbouring queries choose the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward import indexer, walk
from gguf_mla.forward.attention import RowLayout, absorb, absorbed, causal_softmax, unseen
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.indexer import NOTHING, Index
from gguf_mla.forward.model import Indexer, Model, Routing, Yarn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gguf_mla.forward.attention import Inputs
    from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

CACHE_BYTES = 2  # a value of the cache, F16
WIDTH = 256  # of the synthetic hidden states
CORRELATIONS = (0.0, 0.9, 0.99)  # of neighbours among them
INDEXER = Indexer(heads=64, size=128, top_k=2048, interleaved=False, own_layers=(True,))  # DeepSeek-V3.2's
# with its rope; the rest of the model does not matter here
V32 = Model(
    layers=1, vocab=1, hidden=WIDTH, heads=128, nope=128, rope=64, value=128, kv_rank=512, q_rank=WIDTH, ffn=1,
    dense_layers=1, expert_ffn=1, shared=1, routing=Routing(1, 1, 1, 1, "sigmoid", "best", False, 1.0, False), eps=1e-6,
    latent_eps=1e-6, theta=10000.0, yarn=Yarn(40.0, 4096, 1.0), tied=True,
    indexer=INDEXER,
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
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
    model: Model, source: str, chosen: Numbers, cached: int, top_k: int, batches: Sequence[int]
) -> Iterator[Reading]:
    """Yield what batches of these many queries read, for the choices [T, K] of the last T queries."""
    size = (model.indexer or INDEXER).size
    row, key = CACHE_BYTES * (model.kv_rank + model.rope), CACHE_BYTES * size
    counts = (chosen != NOTHING).sum(axis=1)
    for queries in (queries for queries in batches if queries <= len(chosen)):
        seen, union = batch_sizes(chosen, cached, queries)
        single = float(counts.mean()) * queries
        nbytes = (round(size) for size in (seen * row, union * row, single * row, seen * key))
        yield Reading(source, cached, top_k, queries, union, union / seen, *nbytes)


def batch_sizes(chosen: Numbers, cached: int, queries: int) -> tuple[float, float]:
    """Return how many tokens that many queries in a row have before them, and how many they choose together.

    Both are means over the choices [T, K] of the last T queries of a cache.
    """
    ends = range(len(chosen), queries - 1, -queries)
    parts = (chosen[end - queries : end] for end in ends)
    unions = [np.unique(part[part != NOTHING]).size for part in parts]
    return float(np.mean([cached - len(chosen) + end for end in ends])), float(np.mean(unions))


def synthetic(cached: int, queries: int, correlation: float, model: Model = V32, seed: int = 0) -> Index:
    """Return an index of random projections of random hidden states, for the last queries of a cache.

    Every state is `correlation` times the one before it plus fresh noise: 0 for tokens without relation, 0.99 for a
    text that stays with its subject for some hundred tokens.
    """
    assert model.indexer is not None  # noqa: S101 - the models given have one
    rng, heads, size = np.random.default_rng(seed), model.indexer.heads, model.indexer.size
    states = rng.standard_normal((cached, WIDTH), np.float32)
    for t in range(1, cached):
        states[t] = correlation * states[t - 1] + (1 - correlation**2) ** 0.5 * states[t]
    shapes = (WIDTH, heads * size), (WIDTH, size), (WIDTH, heads)
    q, k, shares = (rng.standard_normal(shape, np.float32) * np.float32(WIDTH**-0.5) for shape in shapes)
    norm = np.ones(size, np.float32), np.zeros(size, np.float32)
    return indexer.prepare(states[-queries:] @ q, states @ k, states[-queries:] @ shares, norm, model)


def measured(
    weights: CheckpointWeights | GgufWeights, tokens: Numbers, batches: Sequence[int], top_k: int | None = None
) -> Iterator[Reading]:
    """Yield what batches of the last tokens of a text [T] read in every layer of a model that chooses.

    In a dense model the tokens are taken that get most attention, all heads together, which is what an indexer is
    trained to find; an eighth of the text unless said otherwise, as V3.2's 2048 of 16384.
    """
    model, hidden, chooser, last = weights.model, walk.embed(weights, tokens[None]), Chooser(), max(batches)
    if model.indexer is not None:
        top_k = top_k or model.indexer.top_k
        weights = replace(weights, model=replace(model, indexer=replace(model.indexer, top_k=top_k)))
    top_k = top_k or max(1, len(tokens) // 8)
    for layer in range(model.layers):
        watch = _Watch()
        hidden = walk.run_layer(weights, layer, hidden, watch, chooser)
        if model.is_sparse(layer) or model.indexer is None:
            chosen = watch.inputs.chosen
            chosen = indexer.best(attention_mass(watch.inputs, last), top_k) if chosen is None else chosen[-last:]
            yield from readings(model, f"layer {layer}", chosen, len(tokens), top_k, batches)


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
    mass = np.zeros((len(latent), len(rows)), np.float32)
    for head in range(latent.shape[1]):
        mass += causal_softmax(latent[:, head] @ rows.T, x.scale)
    mass[unseen(None, *mass.shape)] = -np.inf
    return mass


def simulated(lengths: Sequence[int], batches: Sequence[int], model: Model = V32) -> Iterator[Reading]:
    """Yield what batches of the last tokens of synthetic texts read."""
    assert model.indexer is not None  # noqa: S101 - the models given have one
    for correlation in CORRELATIONS:
        for cached in lengths:
            index = synthetic(cached, min(max(batches), cached), correlation, model)
            top_k = model.indexer.top_k
            chosen = indexer.choose(index, top_k)
            yield from readings(model, f"correlation {correlation:g}", chosen, cached, top_k, batches)
