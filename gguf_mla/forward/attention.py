"""The forms of multi-head latent attention, from the formulas of the DeepSeek-V2 paper.

Shapes of one sequence: T queries that are the last of S cached tokens, H heads, n = nope, p = rope, v = value,
r = kv_rank. All forms compute the same and differ in what they read:

    vanilla         per head K = [latent·W_UK | k_pe] of n+p values and V = latent·W_UV of v values
    absorbed        W_UK moves into the query, W_UV after the sum: one shared row [latent | k_pe] of r+p values for all
                    heads, and V is a view of it; the softmax scale stays that of n+p values
    pe-first        the same with rows [k_pe | latent]
    token-by-token  absorbed, one query after the other over a growing cache
    paged           absorbed, over pages; every query is a request of its own length, as in batched decoding

Sparse attention reads only the tokens that `Inputs.chosen` names. The forms above mask the others (but paged, to which
a choice is a table of pages of one token each); these gather the rows instead:

    gathered        absorbed, over the rows of one query at a time
    union           absorbed, over the union of the rows chosen by a block of queries; each query masks the others' own
    vanilla-union   the same with expanded keys and values
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import codec
from gguf_mla.forward import kernels, rope
from gguf_mla.forward.indexer import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.rope import Rotary

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]
    Mask = NDArray[np.bool_]

PAGE = 16
SCORES = 1 << 22  # of attention that are held at a time
UNION = 64  # queries whose rows are gathered together


@dataclass(frozen=True)
class Inputs:
    """What every form needs of one sequence.

    q_nope [T, H, n], q_pe [T, H, p] rotated, latent [S, r] normed, k_pe [S, p] rotated, k_b [H, r, n], v_b [H, v, r]
    chosen   int64 [T, K]: the cached tokens a query attends to, NOTHING where they are fewer; None: all up to its own
    observe  is told of every head's product with a stored matrix: "attn_k_b.weight" or "attn_v_b.weight", the head, the
             rows [T, cols] it multiplies
    """

    q_nope: Floats
    q_pe: Floats
    latent: Floats
    k_pe: Floats
    k_b: Floats
    v_b: Floats
    scale: float
    chosen: Numbers | None = None
    observe: Callable[[str, int, Floats], object] | None = None


Form = Callable[[Inputs], "Floats"]  # → [T, H, v]


def vanilla(x: Inputs) -> Floats:
    """Multi-head attention over expanded keys and values; ValueError where it is observed."""
    refuse_observer(x)
    out = np.empty((*x.q_nope.shape[:2], x.v_b.shape[1]), np.float32)
    hidden = unseen(x.chosen, len(x.q_nope), len(x.latent))
    for head in range(out.shape[1]):
        key = np.concatenate([x.latent @ x.k_b[head], x.k_pe], axis=1)
        query = np.concatenate([x.q_nope[:, head], x.q_pe[:, head]], axis=1)
        out[:, head] = masked_softmax(query @ key.T, x.scale, hidden) @ (x.latent @ x.v_b[head].T)
    return out


def refuse_observer(x: Inputs) -> None:
    """Raise ValueError where products are observed: expanding multiplies attn_k_b, [r, n] per head, by its rows."""
    if x.observe is not None:
        raise ValueError("vanilla attention does not multiply the columns of attn_k_b; observe an absorbed form")


def unseen(chosen: Numbers | None, queries: int, cached: int) -> Mask:
    """Return which tokens every query does not attend to, bool [T, S]; without a choice it sees the first S-T+t+1."""
    if chosen is None:
        return np.triu(np.ones((queries, cached), bool), cached - queries + 1)
    hidden = np.ones((queries, cached + 1), bool)
    np.put_along_axis(hidden, chosen, values=False, axis=1)  # NOTHING is the last column
    return hidden[:, :cached]


def causal_softmax(scores: Floats, scale: float) -> Floats:
    """Return softmax(scale·scores) of [..., T, S], in place; query t sees the first S-T+t+1 tokens."""
    return masked_softmax(scores, scale, unseen(None, *scores.shape[-2:]))


def masked_softmax(scores: Floats, scale: float, hidden: Mask) -> Floats:
    """Return softmax(scale·scores) of [..., T, S], in place, without what is hidden [T, S]."""
    scores *= np.float32(scale)
    scores[..., hidden] = -np.inf
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
    return _by_head(x, "attn_k_b.weight", x.q_nope, x.k_b)


def expand(x: Inputs, attended: Floats) -> Floats:
    """Return the heads' values attended·W_UV, [T, H, v], of attended latents [T, H, r]."""
    return _by_head(x, "attn_v_b.weight", attended, x.v_b)


def _by_head(x: Inputs, name: str, rows: Floats, matrices: Floats) -> Floats:
    """Return every head's rows [T, H, cols] times its own matrix of [H, out, cols], [T, H, out]."""
    if x.observe is not None:
        for head in range(len(matrices)):
            x.observe(name, head, rows[:, head])
    by_head = rows.transpose(1, 0, 2) @ matrices.transpose(0, 2, 1)
    return by_head.transpose(1, 0, 2)


def attend(queries: Floats, rows: Floats, layout: RowLayout, scale: float, chosen: Numbers | None = None) -> Floats:
    """Attend with queries [T, H, r+p] over cached rows [S, r+p] of the same layout; return latents [T, H, r].

    All heads share the rows, so some queries with all their heads are one matrix. A choice [T, K] masks all others.
    """
    count, heads, width = queries.shape
    out = np.empty((count, heads, layout.rank), np.float32)
    step = max(1, SCORES // (heads * len(rows)))
    for start in range(0, count, step):
        block = queries[start : start + step]
        part = None if chosen is None else chosen[start : start + step]
        seen = rows[: len(rows) - count + start + len(block) if part is None else part.max() + 1]
        scores = (block.reshape(-1, width) @ seen.T).reshape(len(block), heads, -1)
        masked_softmax(scores.transpose(1, 0, 2), scale, unseen(part, len(block), len(seen)))
        attended = scores.reshape(-1, len(seen)) @ seen[:, layout.latent]
        out[start : start + len(block)] = attended.reshape(len(block), heads, -1)
    return out


def absorbed(x: Inputs, *, pe_first: bool = False, stored: str = "F32") -> Floats:
    """Attention over the latent cache, whose rows may be stored in another type: F16, BF16, Q8_0."""
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1], pe_first)
    rows = as_stored(layout.join(x.latent, x.k_pe), stored)
    queries = layout.join(absorb(x), x.q_pe)
    return expand(x, attend(queries, rows, layout, x.scale, x.chosen))


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
    chosen = [None] * len(queries) if x.chosen is None else np.split(x.chosen, len(queries))
    steps = [attend(queries[t : t + 1], rows[: before + t + 1], layout, x.scale, now) for t, now in enumerate(chosen)]
    return expand(x, np.concatenate(steps))


def gathered(x: Inputs, block: int = 1) -> Floats:
    """Absorbed attention over the rows that are chosen by so many queries at a time."""
    layout, out = RowLayout(x.latent.shape[1], x.k_pe.shape[1]), []
    rows, queries = layout.join(x.latent, x.k_pe), layout.join(absorb(x), x.q_pe)
    for part, used, columns in _unions(x, block):
        out.append(attend(queries[part], rows[used], layout, x.scale, columns))
    return expand(x, np.concatenate(out))


def vanilla_gathered(x: Inputs, block: int = UNION) -> Floats:
    """Multi-head attention that expands only what is chosen by so many queries at a time."""
    out = []
    for part, used, columns in _unions(x, block):
        queries = replace(x, q_nope=x.q_nope[part], q_pe=x.q_pe[part])
        out.append(vanilla(replace(queries, latent=x.latent[used], k_pe=x.k_pe[used], chosen=columns)))
    return np.concatenate(out)


def _unions(x: Inputs, block: int) -> Iterator[tuple[slice, Numbers, Numbers]]:
    """Yield blocks of queries, the tokens that any of them attends to, and where their choices lie among those."""
    chosen = everything(len(x.q_nope), len(x.latent)) if x.chosen is None else x.chosen
    for start in range(0, len(chosen), block):
        part = chosen[start : start + block]
        used = np.unique(part[part != NOTHING])
        yield slice(start, start + block), used, np.where(part == NOTHING, NOTHING, np.searchsorted(used, part))


def everything(queries: int, cached: int) -> Numbers:
    """Return the choice [T, S] of all tokens up to the query's own."""
    return np.where(unseen(None, queries, cached), NOTHING, np.arange(cached))


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


def single_rows(rows: Floats, chosen: Numbers) -> Pages:
    """Return rows [S, r+p] as pages of one token, of which every query has those it chose [T, K]."""
    counts = (chosen != NOTHING).sum(axis=1)
    return Pages(rows[:, None], np.append(0, np.cumsum(counts)), chosen[chosen != NOTHING], counts)


def paged(x: Inputs) -> Floats:
    """Absorbed attention over a paged cache, every query a request of its own length."""
    rows = RowLayout(x.latent.shape[1], x.k_pe.shape[1]).join(x.latent, x.k_pe)
    pages = prefixes(rows, len(x.q_nope)) if x.chosen is None else single_rows(rows, x.chosen)
    attended, _ = decode_paged(absorb(x), x.q_pe, pages, x.scale)
    return expand(x, attended)


def shift(rows: Floats, layout: RowLayout, by: int, model: Rotary) -> Floats:
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
    "gathered": gathered,
    "union": lambda x: gathered(x, UNION),
    "vanilla-union": vanilla_gathered,
}
