"""Inputs of attention and of the indexer at the family's real sizes, and what they have to give, in float64."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from gguf_mla.forward import indexer
from gguf_mla.forward.attention import Inputs
from tests.support import hub
from tests.support.weights import checkpoint_weights

if TYPE_CHECKING:
    from gguf_mla.forward.indexer import Index
    from gguf_mla.forward.model import Model

RANK, NOPE, ROPE, VALUE = 512, 128, 64, 128


@cache
def bundled_model() -> Model:
    return checkpoint_weights(hub.BUNDLED).model


def inputs(queries: int, cached: int, heads: int, seed: int = 0) -> Inputs:
    """Inputs of a trained model's size: latents are normed, and scores have a spread of a few units."""
    rng = np.random.default_rng(seed)

    def bell(*shape: int, deviation: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(deviation))

    return Inputs(
        bell(queries, heads, NOPE, deviation=1.5),
        bell(queries, heads, ROPE, deviation=1.5),
        bell(cached, RANK),
        bell(cached, ROPE),
        bell(heads, RANK, NOPE, deviation=RANK**-0.5),
        bell(heads, VALUE, RANK, deviation=RANK**-0.5),
        bundled_model().softmax_scale,
    )


def terms(cached: int) -> int:
    """How many products attention over so many rows adds up, one after the other: of a score, and of the values."""
    return RANK + ROPE + cached


def exact(x: Inputs) -> np.ndarray:
    """Vanilla attention in float64, straight from its definition."""
    arrays = {name: value for name, value in vars(x).items() if isinstance(value, torch.Tensor) and name != "chosen"}
    wide = {name: value.double().numpy() for name, value in arrays.items()}
    key = np.einsum("sr,hrn->shn", wide["latent"], wide["k_b"])
    value = np.einsum("sr,hvr->shv", wide["latent"], wide["v_b"])
    scores = np.einsum("thn,shn->hts", wide["q_nope"], key) + np.einsum("thp,sp->hts", wide["q_pe"], wide["k_pe"])
    queries, cached = scores.shape[1:]
    hidden = np.arange(cached)[None] > np.arange(queries)[:, None] + cached - queries
    if x.chosen is not None:
        hidden = ~(x.chosen.numpy()[:, :, None] == np.arange(cached)).any(axis=1)
    scores = np.where(hidden, -np.inf, scores * x.scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hts,shv->thv", weights / weights.sum(axis=-1, keepdims=True), value)


def chosen(queries: int, cached: int, top_k: int, seed: int = 1) -> torch.Tensor:
    """Random choices of at most `top_k` of the tokens up to a query's own."""
    scores = np.random.default_rng(seed).standard_normal((queries, cached), np.float32)
    scores[np.triu(np.ones_like(scores, bool), cached - queries + 1)] = -np.inf
    return indexer.best(torch.from_numpy(scores), top_k)


def score_size(index: Index) -> np.ndarray:
    """What an indexer's scores are made of, √Σ(weight · q · k)² over heads and values [T, S]: signs are random."""
    queries, keys, weights = (x.double().numpy() ** 2 for x in (index.queries, index.keys, index.weights))
    return np.sqrt(np.einsum("th,ths->ts", weights, np.einsum("thd,sd->ths", queries, keys)))


def score_terms(index: Index) -> int:
    """How many products a score adds up, one after the other: those of q · k, and the heads."""
    return index.queries.shape[2] + index.queries.shape[1]
