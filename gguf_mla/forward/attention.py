"""The forms of multi-head latent attention, from the formulas of the DeepSeek-V2 paper.

Shapes of one sequence: T queries that are the last of S cached tokens, H heads, n = nope, p = rope, v = value,
r = kv_rank. All forms compute the same and differ in what they read:

    vanilla         per head K = [latent·W_UK | k_pe] of n+p values and V = latent·W_UV of v values
    absorbed        W_UK moves into the query, W_UV after the sum: one shared row [latent | k_pe] of r+p values for all
                    heads, and V is a view of it; the softmax scale stays that of n+p values
    pe-first        the same with rows [k_pe | latent]
    expanded-keys   absorbed, but keys are expanded as in vanilla: fewer products where queries are many
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

import torch

from gguf_mla import codec
from gguf_mla.forward import kernels, rope
from gguf_mla.forward.indexer import NOTHING
from gguf_mla.forward.place import as_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gguf_mla.forward.arrays import Floats, Mask, Numbers
    from gguf_mla.forward.rope import Rotary

PAGE = 16
SCORES = 1 << 19  # of attention that are held at a time; few, so that queries at first read few of the tokens
EXPANDED = 1 << 22  # values of keys that are expanded at a time
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
    count, heads, _ = x.q_nope.shape
    out = torch.empty(heads, count, x.v_b.shape[1], device=x.q_nope.device)
    for some, blocks in _over_expanded_keys(x):
        values = x.latent @ x.v_b[some].transpose(1, 2)
        for block, weights in blocks:
            out[some, block] = weights @ values[:, : weights.shape[-1]]
    return out.transpose(0, 1)


def keys_expanded(x: Inputs) -> Floats:
    """Attention over expanded keys and latent values; the observer is told what absorbed forms multiply."""
    _observed(x, "attn_k_b.weight", x.q_nope)
    count, heads, _ = x.q_nope.shape
    out = torch.empty(heads, count, x.latent.shape[1], device=x.q_nope.device)
    for some, blocks in _over_expanded_keys(x):
        for block, weights in blocks:
            attended = weights.flatten(0, 1) @ x.latent[: weights.shape[-1]]
            out[some, block] = attended.unflatten(0, weights.shape[:2])
    return expand(x, out.transpose(0, 1))


def _over_expanded_keys(x: Inputs) -> Iterator[tuple[slice, Iterator[tuple[slice, Floats]]]]:
    """Yield some heads, and for these some queries and their weights [heads, queries, tokens seen]."""
    count, cached = len(x.q_nope), len(x.latent)
    queries = torch.cat([x.q_nope, x.q_pe], dim=-1).transpose(0, 1)
    for some in _slices(len(x.k_b), EXPANDED // (cached * queries.shape[2])):
        keys = expanded_keys(x, some).transpose(1, 2)
        blocks = _slices(count, SCORES // (len(keys) * cached))
        yield some, ((block, _weights(x, queries[some, block], keys, block)) for block in blocks)


def _weights(x: Inputs, queries: Floats, keys: Floats, block: slice) -> Floats:
    """Return what queries [H, t, n+p], those in `block`, attend to of keys [H, n+p, S], [H, t, tokens seen]."""
    seen, hidden = sight(x.chosen, block, len(x.q_nope), len(x.latent), queries.device)
    return masked_softmax(queries @ keys[..., :seen], x.scale, hidden)


def _slices(count: int, step: int) -> Iterator[slice]:
    """Yield all of `count`, so many at a time, and at least one."""
    step = max(1, step)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def expanded_keys(x: Inputs, heads: slice) -> Floats:
    """Return the keys of some heads, [heads, S, n+p]."""
    own = x.latent @ x.k_b[heads]
    return torch.cat([own, x.k_pe.expand(len(own), -1, -1)], dim=-1)


def refuse_observer(x: Inputs) -> None:
    """Raise ValueError where products are observed: expanding multiplies attn_k_b, [r, n] per head, by its rows."""
    if x.observe is not None:
        raise ValueError("vanilla attention does not multiply the columns of attn_k_b; observe an absorbed form")


def unseen(chosen: Numbers | None, queries: int, cached: int, device: torch.device | None = None) -> Mask:
    """Return which tokens every query does not attend to, bool [T, S]; without a choice it sees the first S-T+t+1."""
    if chosen is None:
        return torch.ones(queries, cached, dtype=torch.bool, device=device).triu(cached - queries + 1)
    hidden = torch.ones(queries, cached + 1, dtype=torch.bool, device=chosen.device)
    places = torch.where(chosen == NOTHING, cached, chosen)  # the last column
    return hidden.scatter_(1, places, value=False)[:, :cached]


def sight(
    chosen: Numbers | None, block: slice, queries: int, cached: int, device: torch.device | None = None
) -> tuple[int, Mask]:
    """Return how many tokens some of the queries see, the first ones, and which of the last of these each does not."""
    if chosen is not None:
        part = chosen[block]
        seen = int(part.max()) + 1
        return seen, unseen(part, len(part), seen)
    own = block.stop - block.start
    return cached - queries + block.stop, unseen(None, own, own, device)


def causal_softmax(scores: Floats, scale: float) -> Floats:
    """Return softmax(scale·scores) of [..., T, S]; query t sees the first S-T+t+1 tokens. The scores are lost."""
    queries = scores.shape[-2]
    return masked_softmax(scores, scale, unseen(None, queries, queries, scores.device))


def masked_softmax(scores: Floats, scale: float, hidden: Mask) -> Floats:
    """Return softmax(scale·scores) of [..., T, S] without what is hidden [T, C] of the last C. The scores are lost."""
    scores.mul_(scale)[..., -hidden.shape[-1] :].masked_fill_(hidden, -torch.inf)
    return scores.softmax(dim=-1)


@dataclass(frozen=True)
class RowLayout:
    """The order of a cached row of r+p values: the latent first, or the rotated key first."""

    rank: int
    rope: int
    pe_first: bool = False

    def join(self, latent: Floats, pe: Floats) -> Floats:
        """Return rows [..., r+p]."""
        return torch.cat([pe, latent] if self.pe_first else [latent, pe], dim=-1)

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
    _observed(x, "attn_k_b.weight", x.q_nope)
    return _by_head(x.q_nope, x.k_b)


def expand(x: Inputs, attended: Floats) -> Floats:
    """Return the heads' values attended·W_UV, [T, H, v], of attended latents [T, H, r]."""
    _observed(x, "attn_v_b.weight", attended)
    return _by_head(attended, x.v_b)


def _observed(x: Inputs, name: str, rows: Floats) -> None:
    """Tell of every head's rows [T, H, cols], which its own matrix of a tensor multiplies."""
    if x.observe is not None:
        for head in range(rows.shape[1]):
            x.observe(name, head, rows[:, head])


def _by_head(rows: Floats, matrices: Floats) -> Floats:
    """Return every head's rows [T, H, cols] times its own matrix of [H, out, cols], [T, H, out]."""
    return (rows.transpose(0, 1) @ matrices.transpose(1, 2)).transpose(0, 1)


def attend(queries: Floats, rows: Floats, layout: RowLayout, scale: float, chosen: Numbers | None = None) -> Floats:
    """Attend with queries [T, H, r+p] over cached rows [S, r+p] of the same layout; return latents [T, H, r].

    All heads share the rows, so some queries with all their heads are one matrix. A choice [T, K] masks all others.
    """
    count, heads, width = queries.shape
    out = torch.empty(count, heads, layout.rank, device=queries.device)
    for block in _slices(count, SCORES // (heads * len(rows))):
        seen, hidden = sight(chosen, block, count, len(rows), rows.device)
        scores = (queries[block].reshape(-1, width) @ rows[:seen].T).unflatten(0, (-1, heads))
        weights = masked_softmax(scores, scale, hidden[:, None])
        out[block] = (weights.flatten(0, 1) @ rows[:seen, layout.latent]).unflatten(0, (-1, heads))
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
    values = codec.decode(codec.encode(as_array(rows), type_name), type_name)
    return torch.from_numpy(values).to(rows.device)


def token_by_token(x: Inputs) -> Floats:
    """Absorbed attention of one query at a time over the cache as it was then."""
    before = len(x.latent) - len(x.q_nope)
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1])
    rows, queries = layout.join(x.latent, x.k_pe), layout.join(absorb(x), x.q_pe)
    chosen: Sequence[Numbers | None] = [None] * len(queries) if x.chosen is None else x.chosen.split(1)
    steps = [attend(queries[t : t + 1], rows[: before + t + 1], layout, x.scale, now) for t, now in enumerate(chosen)]
    return expand(x, torch.cat(steps))


def gathered(x: Inputs, block: int = 1) -> Floats:
    """Absorbed attention over the rows that are chosen by so many queries at a time."""
    layout, out = RowLayout(x.latent.shape[1], x.k_pe.shape[1]), []
    rows, queries = layout.join(x.latent, x.k_pe), layout.join(absorb(x), x.q_pe)
    for part, used, columns in _unions(x, block):
        out.append(attend(queries[part], rows[used], layout, x.scale, columns))
    return expand(x, torch.cat(out))


def vanilla_gathered(x: Inputs, block: int = UNION) -> Floats:
    """Multi-head attention that expands only what is chosen by so many queries at a time."""
    out = []
    for part, used, columns in _unions(x, block):
        queries = replace(x, q_nope=x.q_nope[part], q_pe=x.q_pe[part])
        out.append(vanilla(replace(queries, latent=x.latent[used], k_pe=x.k_pe[used], chosen=columns)))
    return torch.cat(out)


def _unions(x: Inputs, block: int) -> Iterator[tuple[slice, Numbers, Numbers]]:
    """Yield blocks of queries, the tokens that any of them attends to, and where their choices lie among those."""
    chosen = everything(len(x.q_nope), len(x.latent), x.latent.device) if x.chosen is None else x.chosen
    for start in range(0, len(chosen), block):
        part = chosen[start : start + block]
        used = part[part != NOTHING].unique()
        yield slice(start, start + block), used, torch.where(part == NOTHING, NOTHING, torch.searchsorted(used, part))


def everything(queries: int, cached: int, device: torch.device | None = None) -> Numbers:
    """Return the choice [T, S] of all tokens up to the query's own."""
    return torch.where(unseen(None, queries, cached, device), NOTHING, torch.arange(cached, device=device))


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
    """Return latents [B, H, r] and the natural log-sum-exp [B, H] of one query per request, computed on the CPU."""
    out = torch.full(q_latent.shape, torch.nan)
    lse = torch.full(q_latent.shape[:2], torch.nan)
    parts = pages.data, pages.indptr, pages.indices, pages.lengths
    arrays = [as_array(part.contiguous()) for part in (q_latent, q_pe, *parts)]
    kernels.paged_decode(*arrays, scale, out.numpy(), lse.numpy())
    return out.to(q_latent.device), lse.to(q_latent.device)


def prefixes(rows: Floats, queries: int, page_size: int = PAGE) -> Pages:
    """Return rows [S, r+p] as pages, and the last `queries` tokens as requests that share them."""
    cached, device = len(rows), rows.device
    padded = torch.full((-(-cached // page_size) * page_size, rows.shape[1]), torch.nan, device=device)
    padded[:cached] = rows
    lengths = torch.arange(cached - queries + 1, cached + 1, device=device)
    counts = (lengths + page_size - 1) // page_size
    indices = torch.cat([torch.arange(count, device=device) for count in counts.tolist()])
    return Pages(padded.reshape(-1, page_size, rows.shape[1]), _starts(counts), indices, lengths)


def single_rows(rows: Floats, chosen: Numbers) -> Pages:
    """Return rows [S, r+p] as pages of one token, of which every query has those it chose [T, K]."""
    counts = (chosen != NOTHING).sum(dim=1)
    return Pages(rows[:, None], _starts(counts), chosen[chosen != NOTHING], counts)


def _starts(counts: Numbers) -> Numbers:
    """Return where each of some parts begins, and the last ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def paged(x: Inputs) -> Floats:
    """Absorbed attention over a paged cache, every query a request of its own length."""
    rows = RowLayout(x.latent.shape[1], x.k_pe.shape[1]).join(x.latent, x.k_pe)
    pages = prefixes(rows, len(x.q_nope)) if x.chosen is None else single_rows(rows, x.chosen)
    attended, _ = decode_paged(absorb(x), x.q_pe, pages, x.scale)
    return expand(x, attended)


def shift(rows: Floats, layout: RowLayout, by: int, model: Rotary) -> Floats:
    """Return cached rows [S, r+p] moved by so many positions: only their rotated part turns, the latent stays."""
    moved, positions = rows.clone(), torch.full((len(rows),), by, device=rows.device)
    moved[:, layout.pe] = rope.rotate(rows[:, layout.pe], positions, model)
    return moved


FORMS: dict[str, Form] = {
    "vanilla": vanilla,
    "absorbed": absorbed,
    "pe-first": lambda x: absorbed(x, pe_first=True),
    "expanded-keys": keys_expanded,
    "token-by-token": token_by_token,
    "paged": paged,
    "gathered": gathered,
    "union": lambda x: gathered(x, UNION),
    "vanilla-union": vanilla_gathered,
}
