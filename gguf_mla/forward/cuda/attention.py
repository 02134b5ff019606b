"""The forms of attention on a GPU by kernels of our own, with the signatures of `forward.attention`.

Tensors that are on the GPU are used where they lie, and so is the result; those of the host are copied up, and the
result down. Products with W_UK and W_UV are torch's; what a kernel does is attend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import cuda

from gguf_mla.forward.attention import (
    Inputs,
    Pages,
    RowLayout,
    absorb,
    expand,
    expanded_keys,
    prefixes,
    refuse_observer,
    single_rows,
)
from gguf_mla.forward.cuda import attend as kernels
from gguf_mla.forward.cuda.attend import Row, Tile, tile_for
from gguf_mla.forward.cuda.device import explained, received, sent
from gguf_mla.forward.indexer import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.forward.arrays import Floats, Numbers
    from gguf_mla.forward.attention import Form

BLOCKS = 512  # that keep a GPU busy: two on each of 132 multiprocessors, twice
SHORTEST = 256  # cached rows that are worth a block of their own
EXPANDED_VALUES = 1 << 26  # of keys and values that are expanded at a time


@dataclass(frozen=True)
class Work:
    """What to attend with and over, on the device, as `kernels.attend` takes it; queries [R, N, key]."""

    row: Row
    queries: Any
    pages: Any
    indptr: Any
    indices: Any
    lengths: Any
    per_token: int
    scale: float

    @classmethod
    def sent(cls, row: Row, queries: Floats, pages: Pages, per_token: int, scale: float) -> Work:
        """Bring everything to the device, and in order."""
        return cls(
            row, sent(queries), sent(pages.data), sent(pages.indptr), sent(pages.indices), sent(pages.lengths),
            per_token, scale,
        )  # fmt: skip


def parts_for(blocks: int, longest: int) -> int:
    """Return how many parts to split the caches into: enough for all multiprocessors, none too short."""
    return max(1, min(-(-BLOCKS // blocks), longest // SHORTEST))


def parts_of(work: Work) -> int:
    """Return how many parts to split the caches of some work into."""
    requests, count = work.queries.shape[:2]
    blocks = requests * -(-count // tile_for(work.row, count).queries)
    return parts_for(blocks, int(work.lengths.copy_to_host().max(initial=0)))


def prepare(work: Work, parts: int, tile: Tile | None = None) -> tuple[Callable[[], None], Any, Any]:
    """Return what attends, and the device arrays that it fills: [R, N, value] and log-sum-exp [R, N]."""
    requests, count = work.queries.shape[:2]
    rows, value = requests * count, work.row.value
    tile = tile or tile_for(work.row, count)
    kernel, grid = kernels.kernel(work.row, tile), (requests * -(-count // tile.queries), parts)
    out = cuda.device_array((parts, requests, count, value), np.float32)
    lse = cuda.device_array((parts, requests, count), np.float32)
    inputs = work.queries.ravel(), work.pages, work.indptr, work.indices, work.lengths

    def attend_parts() -> None:
        kernel[grid, tile.threads](*inputs, work.per_token, np.float32(work.scale), out, lse)

    if parts == 1:
        return attend_parts, out.reshape(requests, count, value), lse.reshape(requests, count)
    whole, whole_lse = cuda.device_array((rows, value), np.float32), cuda.device_array(rows, np.float32)
    split = out.reshape(parts, rows, value), lse.reshape(parts, rows)

    def attend_and_combine() -> None:
        attend_parts()
        kernels.combiner()[rows, min(128, value)](*split, whole, whole_lse)

    return attend_and_combine, whole.reshape(requests, count, value), whole_lse.reshape(requests, count)


def _run(work: Work, parts: int | None, tile: Tile | None, like: Floats) -> tuple[Floats, Floats]:
    run, out, lse = prepare(work, parts or parts_of(work), tile)
    run()
    return received(out, like), received(lse, like)


def row_of(layout: RowLayout) -> Row:
    """Return what the kernel needs to know of a latent row: all of it is the key, the latent is the value."""
    width = layout.rank + layout.rope
    return Row(width, width, layout.latent.start, layout.rank)


@explained()
def decode_paged(
    q_latent: Floats,
    q_pe: Floats,
    pages: Pages,
    scale: float,
    *,
    pe_first: bool = False,
    parts: int | None = None,
    tile: Tile | None = None,
) -> tuple[Floats, Floats]:
    """Return latents [B, H, r] and the natural log-sum-exp [B, H] of one query per request.

    Like `gguf_mla.forward.attention.decode_paged`, for both row layouts; a request without tokens gets 0 and -inf.
    """
    layout = RowLayout(q_latent.shape[2], q_pe.shape[2], pe_first)
    work = Work.sent(row_of(layout), layout.join(q_latent, q_pe), pages, q_latent.shape[1], scale)
    return _run(work, parts, tile, q_latent)


@explained()
def attend(
    queries: Floats,
    rows: Floats,
    layout: RowLayout,
    scale: float,
    *,
    parts: int | None = None,
    tile: Tile | None = None,
) -> Floats:
    """Attend with queries [T, H, r+p], the last of the tokens of rows [S, r+p]; return latents [T, H, r].

    Like `gguf_mla.forward.attention.attend`: one request, whose only page is the whole cache.
    """
    count, heads, width = queries.shape
    pages = Pages(rows[None], *(torch.tensor(numbers) for numbers in ([0, 1], [0], [len(rows)])))
    work = Work.sent(row_of(layout), queries.reshape(1, count * heads, width), pages, heads, scale)
    return _run(work, parts, tile, queries)[0].reshape(count, heads, layout.rank)


@explained()
def attend_chosen(
    queries: Floats,
    rows: Floats,
    layout: RowLayout,
    chosen: Numbers,
    scale: float,
    *,
    parts: int | None = None,
    tile: Tile | None = None,
) -> tuple[Floats, Floats]:
    """Attend with queries [T, H, r+p] over chosen rows of [S, r+p] only, the sparse form of DeepSeek-V3.2.

    chosen [T, K] is what the indexer chose. Returns latents [T, H, r] and the natural log-sum-exp [T, H].
    It is paged decoding with pages of one row.
    """
    work = Work.sent(row_of(layout), queries, single_rows(rows, chosen), queries.shape[1], scale)
    return _run(work, parts, tile, queries)


def absorbed(x: Inputs, tile: Tile | None = None) -> Floats:
    """Attention over the latent cache, as `gguf_mla.forward.attention.absorbed`."""
    layout = RowLayout(x.latent.shape[1], x.k_pe.shape[1])
    rows, queries = layout.join(x.latent, x.k_pe), layout.join(absorb(x), x.q_pe)
    if x.chosen is None:
        return expand(x, attend(queries, rows, layout, x.scale, tile=tile))
    return expand(x, attend_chosen(queries, rows, layout, x.chosen, x.scale, tile=tile)[0])


def paged(x: Inputs, tile: Tile | None = None) -> Floats:
    """Absorbed attention over a paged cache, every query a request of its own length."""
    rows = RowLayout(x.latent.shape[1], x.k_pe.shape[1]).join(x.latent, x.k_pe)
    pages = prefixes(rows, len(x.q_nope)) if x.chosen is None else single_rows(rows, x.chosen)
    attended, _ = decode_paged(absorb(x), x.q_pe, pages, x.scale, tile=tile)
    return expand(x, attended)


@explained()
def vanilla(x: Inputs, tile: Tile | None = None) -> Floats:
    """Multi-head attention over expanded keys and values, some heads at a time; every head is a request."""
    refuse_observer(x)
    count, heads, nope = x.q_nope.shape
    (cached, rope), value = x.k_pe.shape, x.v_b.shape[1]
    row = Row(nope + rope + value, nope + rope, nope + rope, value)
    out = torch.empty(count, heads, value, device=x.latent.device)
    step = max(1, EXPANDED_VALUES // (cached * row.width))
    for start in range(0, heads, step):
        some = slice(start, min(start + step, heads))
        queries = torch.cat([x.q_nope[:, some], x.q_pe[:, some]], dim=2).transpose(0, 1)
        rows = torch.cat([expanded_keys(x, some), x.latent @ x.v_b[some].transpose(1, 2)], dim=2)
        found, _ = _run(_of_heads(row, queries, rows, x.chosen, x.scale), None, tile, x.latent)
        out[:, some] = found.reshape(-1, count, value).transpose(0, 1)
    return out


def _of_heads(row: Row, queries: Floats, rows: Floats, chosen: Numbers | None, scale: float) -> Work:
    """Return the work of heads with queries [heads, T, n+p] over their own rows [heads, S, n+p+v].

    With a choice every query of every head is a request, since each reads other rows.
    """
    heads, count, width = queries.shape
    each, cached = torch.arange(heads, device=rows.device), rows.shape[1]
    if chosen is None:
        pages = Pages(rows, torch.arange(heads + 1), each, torch.full((heads,), cached))
        return Work.sent(row, queries, pages, 1, scale)
    own = torch.where(chosen == NOTHING, NOTHING, each[:, None, None] * cached + chosen)
    pages = single_rows(rows.reshape(-1, row.width), own.reshape(heads * count, -1))
    return Work.sent(row, queries.reshape(heads * count, 1, width), pages, 1, scale)


FORMS: dict[str, Form] = {"vanilla": vanilla, "absorbed": absorbed, "paged": paged}
