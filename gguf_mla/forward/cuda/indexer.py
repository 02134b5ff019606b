"""The lightning indexer of DeepSeek-V3.2 on a GPU: Hadamard transform, scores, and the tokens they choose.

Source: DeepSeek's report on V3.2-Exp. score[t, s] = Σ_h w[t, h] · relu(q[t, h]·k[s]) for the tokens s that
query t sees; the best K of them are attended to (`attention.attend_chosen`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import cuda, float32, uint64

from gguf_mla.errors import InputError
from gguf_mla.forward.cuda.device import explained, received, sent
from gguf_mla.forward.cuda.selection import best
from gguf_mla.forward.cuda.specialise import compiled, specialise
from gguf_mla.lanes.binding import unbound

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Numbers

MICRO = 4  # heads and tokens whose products a thread forms at once
LARGEST = 2048  # values of a Hadamard row: two per thread of a block
SCORES = 1 << 28  # that are held at a time
# What `ScoreTile.names` compiles in, and `transform_function`.
HEADS, TOKENS, DEPTH, PADDED = map(unbound, ("HEADS", "TOKENS", "DEPTH", "PADDED"))
THREADS, SIDES = map(unbound, ("THREADS", "SIDES"))
SIZE, HALF, SHRINK = map(unbound, ("SIZE", "HALF", "SHRINK"))


@dataclass(frozen=True)
class ScoreTile:
    """What a block scores at a time: heads × tokens, multiples of MICRO, over `depth` values of their product."""

    heads: int
    tokens: int
    depth: int

    @property
    def threads(self) -> int:
        """A thread per MICRO × MICRO products."""
        return self.heads * self.tokens // (MICRO * MICRO)

    def names(self) -> dict[str, int]:
        """Return the constants of the kernel."""
        return {
            "HEADS": self.heads, "TOKENS": self.tokens, "DEPTH": self.depth, "PADDED": self.depth + 1,
            "THREADS": self.threads, "SIDES": self.heads // MICRO,
        }  # fmt: skip

    def shared_bytes(self) -> int:
        """Return the shared memory of a block."""
        return 4 * ((self.heads + self.tokens) * (self.depth + 1) + self.heads // MICRO * self.tokens)


PIECE = ScoreTile(heads=64, tokens=64, depth=32)


def transform(x: Any) -> None:
    """Multiply row x[b] of block b by the Hadamard matrix in Sylvester's order, over √SIZE; two values per thread."""
    values = cuda.shared.array(SIZE, float32)
    row, i = cuda.blockIdx.x, cuda.threadIdx.x
    values[i], values[i + HALF] = x[row, i], x[row, i + HALF]
    cuda.syncthreads()
    span = 1
    while span < SIZE:
        low = i // span * 2 * span + i % span
        a, b = values[low], values[low + span]
        values[low], values[low + span] = a + b, a - b
        span *= 2
        cuda.syncthreads()
    x[row, i], x[row, i + HALF] = values[i] * float32(SHRINK), values[i + HALF] * float32(SHRINK)


def bring(tile: Any, rows: Any, count: int, first: int, depth: int) -> None:
    """Copy DEPTH values of `count` rows from `first` on to shared memory; zeros where there are none."""
    for number in range(cuda.threadIdx.x, count * DEPTH, THREADS):
        row, col = number // DEPTH, number % DEPTH
        inside = first + row < rows.shape[0] and depth + col < rows.shape[1]
        tile[row, col] = rows[first + row, depth + col] if inside else float32(0)


def multiply(q_tile: Any, k_tile: Any, products: Any) -> None:
    """Add the products of this thread's heads and tokens over DEPTH values."""
    head, token = cuda.threadIdx.x % SIDES * MICRO, cuda.threadIdx.x // SIDES * MICRO
    key = cuda.local.array(MICRO, float32)
    for d in range(DEPTH):
        for j in range(MICRO):
            key[j] = k_tile[uint64(token + j), uint64(d)]
        for i in range(MICRO):
            query = q_tile[uint64(head + i), uint64(d)]
            for j in range(MICRO):
                products[i, j] += query * key[j]


def weigh(products: Any, weights: Any, first: int, total: Any) -> None:
    """Add w·relu(product) of this thread's heads to its tokens' totals, and clear the products."""
    head = first + cuda.threadIdx.x % SIDES * MICRO
    for i in range(MICRO):
        weight = weights[head + i] if head + i < weights.shape[0] else float32(0)
        for j in range(MICRO):
            if not products[i, j] <= float32(0):  # NaN, too, so that it shows
                total[j] += weight * products[i, j]
            products[i, j] = float32(0)


def score(q: Any, k: Any, weights: Any, out: Any) -> None:
    """Score some tokens for one query: q [T, H, D], k [S, D], weights [T, H], out [T, S]; grid: token tiles × T.

    The queries are the last of the S tokens; what a query does not see yet scores -inf.
    """
    q_tile = cuda.shared.array((HEADS, PADDED), float32)
    k_tile = cuda.shared.array((TOKENS, PADDED), float32)
    sums = cuda.shared.array((SIDES, TOKENS), float32)
    products, total = cuda.local.array((MICRO, MICRO), float32), cuda.local.array(MICRO, float32)
    for j in range(MICRO):
        total[j] = float32(0)
        for i in range(MICRO):
            products[i, j] = float32(0)
    tiles = (k.shape[0] + TOKENS - 1) // TOKENS
    query, first = cuda.blockIdx.x // tiles, cuda.blockIdx.x % tiles * TOKENS
    seen = k.shape[0] - q.shape[0] + query + 1
    if first < seen:
        for head in range(0, q.shape[1], HEADS):
            for depth in range(0, q.shape[2], DEPTH):
                bring(q_tile, q[query], HEADS, head, depth)
                bring(k_tile, k, TOKENS, first, depth)
                cuda.syncthreads()
                multiply(q_tile, k_tile, products)
                cuda.syncthreads()
            weigh(products, weights[query], head, total)
    for j in range(MICRO):
        sums[cuda.threadIdx.x % SIDES, cuda.threadIdx.x // SIDES * MICRO + j] = total[j]
    cuda.syncthreads()
    for token in range(cuda.threadIdx.x, TOKENS, THREADS):
        if first + token < k.shape[0]:
            whole = float32(0)
            for side in range(SIDES):
                whole += sums[side, token]
            out[query, first + token] = whole if first + token < seen else float32(-math.inf)


def score_function(piece: ScoreTile) -> Any:
    """Return the function of the scoring kernel."""
    return specialise(score, (bring, multiply, weigh), piece.names())


def transform_function(size: int) -> Any:
    """Return the function of the Hadamard kernel for rows of so many values."""
    return specialise(transform, (), {"SIZE": size, "HALF": size // 2, "SHRINK": size**-0.5})


@functools.cache
def scorer(piece: ScoreTile) -> Any:
    """Return the scoring kernel."""
    return compiled(score_function(piece))


@functools.cache
def transformer(size: int) -> Any:
    """Return the Hadamard kernel."""
    return compiled(transform_function(size))


@explained()
def hadamard(x: Floats) -> Floats:
    """Return rows x [..., D] times the Hadamard matrix over √D; InputError if D is not a power of two up to 2048."""
    size = x.shape[-1]
    if size < 2 or size > LARGEST or size & (size - 1):
        raise InputError("these rows have no Hadamard transform here", expected="a power of two up to 2048", found=size)
    rows = sent(x.reshape(-1, size).clone())
    transformer(size)[len(rows), size // 2](rows)
    return received(rows, x).reshape(x.shape)


@explained()
def scores(q: Floats, k: Floats, weights: Floats, piece: ScoreTile = PIECE) -> Floats:
    """Return the scores [T, S] of queries q [T, H, D], the last of the tokens of k [S, D]; weights [T, H].

    Tokens that a query does not see score -inf.
    """
    return received(_scored(sent(q), sent(k), sent(weights), piece), q)


def _scored(q: Any, k: Any, weights: Any, piece: ScoreTile) -> Any:
    out = cuda.device_array((q.shape[0], k.shape[0]), np.float32)
    scorer(piece)[q.shape[0] * -(-k.shape[0] // piece.tokens), piece.threads](q, k, weights, out)
    return out


@explained()
def choose(q: Floats, k: Floats, weights: Floats, count: int, piece: ScoreTile = PIECE) -> Numbers:
    """Return the tokens that queries attend to, int64 [T, min(count, S)] in rising order, -1 after the last.

    Queries q [T, H, D] are the last of the tokens of k [S, D]; weights [T, H]. Scores stay on the device.
    """
    before, width = len(k) - len(q), min(count, len(k))
    keys, step, found = sent(k), max(1, SCORES // len(k)), []
    for start in range(0, len(q), step):
        stop = min(start + step, len(q))
        scored = _scored(sent(q[start:stop]), keys[: before + stop], sent(weights[start:stop]), piece)
        found.append(received(best(scored, width), q))
    return torch.cat(found)
