"""The one attention kernel: rows of queries over rows of a paged cache, with a running maximum, on float32.

Its shape covers every form. A request is a sequence of cached rows, reached through pages, and the query rows that
attend over it; a query row sees the rows before it and its own. The head of a cached row is the key, some part of
the row is the value:

                    request         query rows       cached row             key          value
    paged decode    a request       H heads          [kv: r | pe: p]        the row      its first r
    pe-first        likewise        likewise         [pe: p | kv: r]        the row      its last r
    absorbed        the sequence    T tokens × H     likewise               likewise     likewise
    vanilla         a head          T tokens         [nope: n | pe: p | v]  its first n+p  its last v
    sparse          a token         H heads          page size 1: the pages are the rows that were chosen

A block takes some query rows and a part of the request's cache (`splits` parts), so that one long request fills a GPU;
`combine` puts the parts together by their log-sum-exp. A block brings a few cached rows at a time into shared memory,
once for all its query rows, and once for score and sum, since the value is a view of the row. Scores are products of
MICRO × MICRO pieces, each split over `slices` threads along the key; sums are held in registers.
Source: the online softmax of FlashAttention, and the splitting of FlashDecoding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numba import cuda, float32, int64, uint64

from gguf_mla.errors import InputError
from gguf_mla.forward.cuda.specialise import compiled, greater, lesser, specialise
from gguf_mla.lanes.binding import unbound

if TYPE_CHECKING:
    from collections.abc import Mapping

MICRO = 4  # query rows and cached rows whose products a thread forms at once
REGISTERS = 128  # per thread: two blocks of 256 run at once; what does not fit is used outside the inner loops
# What `Tile.names` compiles in: of the rows, and of the tile.
WIDTH, KEY, VALUE, FIRST, PADDED = map(unbound, ("WIDTH", "KEY", "VALUE", "FIRST", "PADDED"))
QUERIES, TOKENS, THREADS, SLICES, PARTIALS = map(unbound, ("QUERIES", "TOKENS", "THREADS", "SLICES", "PARTIALS"))
SCORES, COLUMNS, HELD_ROWS, HELD_COLUMNS = map(unbound, ("SCORES", "COLUMNS", "HELD_ROWS", "HELD_COLUMNS"))


@dataclass(frozen=True)
class Row:
    """A cached row of `width` values: its first `key` values are the key, `value` values from `first` on the value."""

    width: int
    key: int
    first: int
    value: int


@dataclass(frozen=True)
class Tile:
    """What a block of threads takes at a time: query rows and cached rows, multiples of MICRO.

    columns  threads side by side over a value; threads / columns, the groups of query rows, divides queries
    """

    queries: int
    tokens: int
    threads: int
    columns: int

    @property
    def slices(self) -> int:
        """Threads that share a piece of MICRO × MICRO scores."""
        return self.threads * MICRO * MICRO // (self.queries * self.tokens)

    def held(self, row: Row) -> tuple[int, int]:
        """Return the query rows and value columns that a thread sums up in registers."""
        return self.queries * self.columns // self.threads, -(-row.value // self.columns)

    def padded(self, row: Row) -> int:
        """Return the width of a row in shared memory: the columns that threads read may go past its end."""
        return max(row.width, row.first + self.held(row)[1] * self.columns)

    def names(self, row: Row) -> Mapping[str, int]:
        """Return the constants of the kernel for rows like these."""
        held_rows, held_columns = self.held(row)
        return {
            "WIDTH": row.width, "KEY": row.key, "VALUE": row.value, "FIRST": row.first, "PADDED": self.padded(row),
            "QUERIES": self.queries, "TOKENS": self.tokens, "THREADS": self.threads, "SLICES": self.slices,
            "PARTIALS": self.slices + 1, "SCORES": self.queries * self.tokens, "COLUMNS": self.columns,
            "HELD_ROWS": held_rows, "HELD_COLUMNS": held_columns,
        }  # fmt: skip

    def shared_bytes(self, row: Row) -> int:
        """Return the shared memory of a block."""
        floats = self.tokens * self.padded(row) + self.queries * (self.tokens * (self.slices + 2) + 3)
        return 4 * floats


LATENT = Tile(queries=32, tokens=8, threads=256, columns=64)
"""For rows of some hundred values that all heads share: 576 in every published model."""
NARROW = Tile(queries=16, tokens=8, threads=256, columns=128)
"""The same for few heads."""
EXPANDED = Tile(queries=64, tokens=16, threads=256, columns=32)
"""For a head's own rows: 192 + 128 values."""
SHARED = 48 << 10
"""Bytes of shared memory that every GPU gives a block without being asked."""


def tile_for(row: Row, count: int) -> Tile:
    """Return the tile for `count` query rows per request over rows like these; InputError for rows too wide."""
    for tile in (EXPANDED, NARROW if count <= NARROW.queries else LATENT):
        if tile.shared_bytes(row) <= SHARED:
            return tile
    raise InputError(
        "a cached row does not fit a GPU's shared memory",
        expected="some 900 values at most",
        found=row.width,
        remedy="Use --device cpu",
    )


def bring(tile: Any, pages: Any, indptr: Any, indices: Any, request: int, start: int, end: int) -> None:
    """Copy the cached rows start … of a request to shared memory; zeros from `end` on and past a row's end."""
    loaders = THREADS // TOKENS
    token, lane = cuda.threadIdx.x // loaders, cuda.threadIdx.x % loaders
    at, page_size = start + token, pages.shape[1]
    if at < end:
        page = indices[indptr[request] + at // page_size]
        for col in range(lane, WIDTH, loaders):
            tile[token, col] = pages[page, at % page_size, col]
        for col in range(WIDTH + lane, PADDED, loaders):
            tile[token, col] = float32(0)
    else:
        for col in range(lane, PADDED, loaders):
            tile[token, col] = float32(0)


def multiply(tile: Any, queries: Any, first: int, last: int, partial: Any) -> None:
    """Form this thread's part of MICRO × MICRO scores; query rows past the last repeat it."""
    side, part = cuda.threadIdx.x % SLICES, cuda.threadIdx.x // SLICES
    row, token = part % (QUERIES // MICRO) * MICRO, part // (QUERIES // MICRO) * MICRO
    begin = cuda.local.array(MICRO, int64)
    for i in range(MICRO):
        begin[i] = lesser(first + row + i, last) * KEY
    products = cuda.local.array((MICRO, MICRO), float32)
    for i in range(MICRO):
        for j in range(MICRO):
            products[i, j] = float32(0)
    key = cuda.local.array(MICRO, float32)
    k = side
    while k < KEY:
        for j in range(MICRO):
            key[j] = tile[uint64(token + j), uint64(k)]
        for i in range(MICRO):
            query = queries[uint64(begin[i] + k)]
            for j in range(MICRO):
                products[i, j] += query * key[j]
        k += SLICES
    for i in range(MICRO):
        for j in range(MICRO):
            partial[(row + i) * TOKENS + token + j, side] = products[i, j]


def add_up(partial: Any, weights: Any, first_seen: int, per_token: int, first: int, start: int, scale: Any) -> None:
    """Turn partial products into scaled scores; a query row does not see the tokens after its own."""
    for number in range(cuda.threadIdx.x, SCORES, THREADS):
        row, token = number // TOKENS, number % TOKENS
        score = float32(0)
        for side in range(SLICES):
            score += partial[uint64(number), uint64(side)]
        seen = start + token < first_seen + (first + row) // per_token
        weights[row, token] = score * scale if seen else float32(-math.inf)


def soften(weights: Any, largest: Any, total: Any, shrink: Any) -> None:
    """Turn the scores of a tile into weights against the largest score so far; a thread per query row.

    What is not seen weighs nothing; NaN weighs NaN, so that it shows.
    """
    row = cuda.threadIdx.x
    if row < QUERIES:
        peak = largest[row]
        for token in range(TOKENS):
            peak = greater(peak, weights[row, token])
        shrink[row] = float32(math.exp(largest[row] - peak)) if largest[row] > -math.inf else float32(0)
        added = float32(0)
        for token in range(TOKENS):
            score = weights[row, token]
            weight = float32(0) if score == -math.inf else float32(math.exp(score - peak))
            weights[row, token] = weight
            added += weight
        total[row] = total[row] * shrink[row] + added
        largest[row] = peak


def gather(tile: Any, weights: Any, shrink: Any, held: Any) -> None:
    """Add the weighted values of a tile to this thread's sums."""
    col, row = FIRST + cuda.threadIdx.x % COLUMNS, cuda.threadIdx.x // COLUMNS * HELD_ROWS
    for i in range(HELD_ROWS):
        for j in range(HELD_COLUMNS):
            held[i, j] *= shrink[row + i]
    value = cuda.local.array(HELD_COLUMNS, float32)
    for token in range(TOKENS):
        for j in range(HELD_COLUMNS):
            value[j] = tile[uint64(token), uint64(col + j * COLUMNS)]
        for i in range(HELD_ROWS):
            weight = weights[uint64(row + i), uint64(token)]
            for j in range(HELD_COLUMNS):
                held[i, j] += weight * value[j]


def keep(held: Any, largest: Any, total: Any, out: Any, lse: Any) -> None:
    """Write a block's means and log-sum-exps, out [rows, value] and lse [rows]; nothing seen is 0 and -inf."""
    col, row = cuda.threadIdx.x % COLUMNS, cuda.threadIdx.x // COLUMNS * HELD_ROWS
    for i in range(HELD_ROWS):
        if row + i < out.shape[0]:
            empty = total[row + i] == float32(0)
            weight = float32(1) if empty else total[row + i]
            share = float32(1) / weight
            for j in range(HELD_COLUMNS):
                if col + j * COLUMNS < VALUE:
                    out[row + i, col + j * COLUMNS] = held[i, j] * share
            if col == 0:
                lse[row + i] = largest[row + i] + float32(math.log(weight))


def attend(
    queries: Any, pages: Any, indptr: Any, indices: Any, lengths: Any, per_token: int, scale: Any, out: Any, lse: Any
) -> None:
    """Attend with one tile of query rows over one part of a request's cache.

    queries [R·N·key], N query rows per request, `per_token` of them for each of its last tokens; pages
    [n_pages, page_size, width]; request b holds the pages indices[indptr[b]:indptr[b+1]] and lengths[b] rows; writes
    out [parts, R, N, value] and the natural log-sum-exp lse [parts, R, N], 0 and -inf for a row that sees nothing.
    Grid: query tiles × requests, parts.
    """
    tile = cuda.shared.array((TOKENS, PADDED), float32)
    partial = cuda.shared.array((SCORES, PARTIALS), float32)
    weights = cuda.shared.array((QUERIES, TOKENS), float32)
    largest = cuda.shared.array(QUERIES, float32)
    total = cuda.shared.array(QUERIES, float32)
    shrink = cuda.shared.array(QUERIES, float32)
    held = cuda.local.array((HELD_ROWS, HELD_COLUMNS), float32)
    for i in range(HELD_ROWS):
        for j in range(HELD_COLUMNS):
            held[i, j] = float32(0)
    if cuda.threadIdx.x < QUERIES:
        largest[cuda.threadIdx.x] = float32(-math.inf)
        total[cuda.threadIdx.x] = float32(0)
    cuda.syncthreads()  # a part without tokens comes to no other barrier
    count, part, parts = out.shape[2], cuda.blockIdx.y, cuda.gridDim.y
    tiles = (count + QUERIES - 1) // QUERIES
    request, first = cuda.blockIdx.x // tiles, cuda.blockIdx.x % tiles * QUERIES
    last = lesser(first + QUERIES, count)
    first_seen = lengths[request] - (count - 1) // per_token
    step = (lengths[request] + parts * TOKENS - 1) // (parts * TOKENS) * TOKENS
    end = lesser((part + 1) * step, first_seen + (last - 1) // per_token)
    for start in range(part * step, end, TOKENS):
        bring(tile, pages, indptr, indices, request, start, end)
        cuda.syncthreads()
        multiply(tile, queries, request * count + first, request * count + last - 1, partial)
        cuda.syncthreads()
        add_up(partial, weights, first_seen, per_token, first, start, scale)
        cuda.syncthreads()
        soften(weights, largest, total, shrink)
        cuda.syncthreads()
        gather(tile, weights, shrink, held)
        cuda.syncthreads()
    keep(held, largest, total, out[part, request, first:last], lse[part, request, first:last])


def combine(out: Any, lse: Any, combined: Any, combined_lse: Any) -> None:
    """Put the parts of one query row together: out [parts, rows, value] and lse [parts, rows] to the same without.

    A row's mean is the mean of its parts weighted with e^lse. A block per row, a thread per some values.
    """
    row = cuda.blockIdx.x
    peak = float32(-math.inf)
    for part in range(lse.shape[0]):
        peak = greater(peak, lse[part, row])
    total = float32(0)
    for part in range(lse.shape[0]):
        if lse[part, row] != -math.inf:
            total += float32(math.exp(lse[part, row] - peak))
    empty = total == float32(0)
    total = float32(1) if empty else total
    for col in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):
        mean = float32(0)
        for part in range(lse.shape[0]):
            if lse[part, row] != -math.inf:
                mean += float32(math.exp(lse[part, row] - peak)) * out[part, row, col]
        combined[row, col] = mean / total
    if cuda.threadIdx.x == 0:
        combined_lse[row] = peak + float32(math.log(total))


HELPERS = (lesser, greater, bring, multiply, add_up, soften, gather, keep)


def function(row: Row, tile: Tile) -> Any:
    """Return the kernel's function for rows like these."""
    return specialise(attend, HELPERS, tile.names(row))


@functools.cache
def kernel(row: Row, tile: Tile) -> Any:
    """Return the kernel for rows like these."""
    return compiled(function(row, tile), REGISTERS)


def combine_function() -> Any:
    """Return the function of the kernel that puts parts together."""
    return specialise(combine, (greater,))


@functools.cache
def combiner() -> Any:
    """Return the kernel that puts parts together."""
    return compiled(combine_function())
