"""The forms of multi-head latent attention, from the formulas of the DeepSeek-V2 paper.

Shapes of one sequence: T queries that are the last of S cached tokens, H heads, n = nope, p = rope, v = value,
r = kv_rank. All forms compute the same and differ in what they read:

    vanilla         per head K = [latent·W_UK | k_pe] of n+p values and V = latent·W_UV of v values
    absorbed        W_UK moves into the query, W_UV behind the sum: one shared row [latent | k_pe] of r+p values for all
                    heads, and V is a view of it; the softmax scale stays that of n+p values
    pe-first        the same with rows [k_pe | latent]
    token-by-token  absorbed, one query after the other over a growing cache
    paged           absorbed, over pages; every query is a request of its own length, as in batched decoding

A sparse form would be another entry of FORMS that leaves rows out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import codec
from verify import kernels, rope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from verify.model import Model

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

PAGE = 16
SCORES = 1 << 22  # of attention that are held at a time


@dataclass(frozen=True)
class Inputs:
    """What every form needs of one sequence.

    q_nope [T, H, n], q_pe [T, H, p] rotated, latent [S, r] normed, k_pe [S, p] rotated, k_b [H, r, n], v_b [H, v, r]
    """

    q_nope: Floats
    q_pe: Floats
    latent: Floats
    k_pe: Floats
    k_b: Floats
    v_b: Floats
    scale: float


Form = Callable[[Inputs], "Floats"]  # → [T, H, v]


def vanilla(x: Inputs) -> Floats:
    """Multi-head attention over expanded keys and values."""
    out = np.empty((*x.q_nope.shape[:2], x.v_b.shape[1]), np.float32)
    for head in range(out.shape[1]):
        key = np.concatenate([x.latent @ x.k_b[head], x.k_pe], axis=1)
        query = np.concatenate([x.q_nope[:, head], x.q_pe[:, head]], axis=1)
        out[:, head] = causal_softmax(query @ key.T, x.scale) @ (x.latent @ x.v_b[head].T)
    return out


def causal_softmax(scores: Floats, scale: float) -> Floats:
    """Return softmax(scale·scores) of [..., T, S], in place; query t sees the first S-T+t+1 tokens."""
    queries, cached = scores.shape[-2:]
    scores *= np.float32(scale)
    scores[..., np.triu(np.ones((queries, cached), bool), cached - queries + 1)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


@dataclass(frozen=True)
class RowLayout:
    """The order of a cached row of r+p values: the latent first, or the rotated key first."""

    rank: int
    rope: int
    pe_first: bool = False

    def join(self, latent: Floats, pe: Floats) -> Floats:
        """Return rows [..., r+p]."""
        return np.concatenate([pe, latent] if self.pe_first else [latent, pe], axis=-1)

    @property
    def latent(self) -> slice:
        """Where the latent lies, which is also V."""
        start = self.rope if self.pe_first else 0
        return slice(start, start + self.rank)

    @property
    def pe(self) -> slice:
        """Where the rotated key lies."""
        start = 0 if self.pe_first else self.rank
        return slice(start, start + self.rope)


def absorb(x: Inputs) -> Floats:
    """Return the queries' latent part q_nope·W_UK, [T, H, r]."""
    by_head = x.q_nope.transpose(1, 0, 2) @ x.k_b.transpose(0, 2, 1)
    return by_head.transpose(1, 0, 2)


def expand(attended: Floats, v_b: Floats) -> Floats:
    """Return the heads' values [T, H, v] of attended latents [T, H, r]."""
    by_head = attended.transpose(1, 0, 2) @ v_b.transpose(0, 2, 1)
    return by_head.transpose(1, 0, 2)


def attend(queries: Floats, rows: Floats, layout: RowLayout, scale: float) -> Floats:
    """Attend with queries [T, H, r+p] over cached rows [S, r+p] of the same layout; return latents [T, H, r].

    All heads share the rows, so some queries with all their heads are one matrix.
    """
    count, heads, width = queries.shape
    out = np.empty((count, heads, layout.rank), np.float32)
    step = max(1, SCORES // (heads * len(rows)))
    for start in range(0, count, step):
        block = queries[start : start + step]
        seen = rows[: len(rows) - count + start + len(block)]
        scores = (block.reshape(-1, width) @ seen.T).reshape(len(block), heads, -1)
        causal_softmax(scores.transpose(1, 0, 2), scale)
        attended = scores.reshape(-1, len(seen)) @ seen[:, layout.latent]
        out[start : start + len(block)] = attended.reshape(len(block), heads, -1)
    return out


def absorbed(x: Inputs, *, pe_first: bool = False, stored: str = "F32") -> Floats:
    """Attention over the latent cache, whose rows may be stored in another type: F16, BF16, Q8_0."""
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1], pe_first)
    rows = as_stored(layout.join(x.latent, x.k_pe), stored)
    queries = layout.join(absorb(x), x.q_pe)
    return expand(attend(queries, rows, layout, x.scale), x.v_b)


def as_stored(rows: Floats, type_name: str) -> Floats:
    """Return rows as a cache of that type gives them back."""
    if type_name == "F32":
        return rows
    values: Floats = codec.decode(codec.encode(rows, type_name), type_name)
    return values


def token_by_token(x: Inputs) -> Floats:
    """Absorbed attention of one query at a time over the cache as it was then."""
    before = len(x.latent) - len(x.q_nope)
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1])
    rows, queries = layout.join(x.latent, x.k_pe), layout.join(absorb(x), x.q_pe)
    steps = [attend(queries[t : t + 1], rows[: before + t + 1], layout, x.scale) for t in range(len(queries))]
    return expand(np.concatenate(steps), x.v_b)


@dataclass(frozen=True)
class Pages:
    """A paged cache as FlashInfer lays it out.

    data [n_pages, page_size, r+p]; request b holds the pages indices[indptr[b]:indptr[b+1]] and lengths[b] tokens
    """

    data: Floats
    indptr: Numbers
    indices: Numbers
    lengths: Numbers


def decode_paged(q_latent: Floats, q_pe: Floats, pages: Pages, scale: float) -> tuple[Floats, Floats]:
    """Return latents [B, H, r] and the natural log-sum-exp [B, H] of one query per request."""
    out = np.full(q_latent.shape, np.nan, np.float32)
    lse = np.full(q_latent.shape[:2], np.nan, np.float32)
    kernels.paged_decode(
        np.ascontiguousarray(q_latent), np.ascontiguousarray(q_pe), pages.data, pages.indptr, pages.indices,
        pages.lengths, scale, out, lse,
    )  # fmt: skip
    return out, lse


def prefixes(rows: Floats, queries: int, page_size: int = PAGE) -> Pages:
    """Return rows [S, r+p] as pages, and the last `queries` tokens as requests that share them."""
    cached = len(rows)
    padded = np.full((-(-cached // page_size) * page_size, rows.shape[1]), np.nan, np.float32)
    padded[:cached] = rows
    lengths = np.arange(cached - queries + 1, cached + 1)
    counts = -(-lengths // page_size)
    indices = np.concatenate([np.arange(count) for count in counts])
    return Pages(padded.reshape(-1, page_size, rows.shape[1]), np.append(0, np.cumsum(counts)), indices, lengths)


def paged(x: Inputs) -> Floats:
    """Absorbed attention over a paged cache, every query a request of its own length."""
    rows = RowLayout(x.latent.shape[1], x.k_pe.shape[1]).join(x.latent, x.k_pe)
    attended, _ = decode_paged(absorb(x), x.q_pe, prefixes(rows, len(x.q_nope)), x.scale)
    return expand(attended, x.v_b)


def shift(rows: Floats, layout: RowLayout, by: int, model: Model) -> Floats:
    """Return cached rows [S, r+p] moved by so many positions: only their rotated part turns, the latent stays."""
    moved = rows.copy()
    moved[:, layout.pe] = rope.rotate(rows[:, layout.pe], np.full(len(rows), by), model)
    return moved


FORMS: dict[str, Form] = {
    "vanilla": vanilla,
    "absorbed": absorbed,
    "pe-first": lambda x: absorbed(x, pe_first=True),
    "token-by-token": token_by_token,
    "paged": paged,
}
