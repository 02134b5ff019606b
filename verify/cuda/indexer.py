"""The lightning indexer of DeepSeek-V3.2 on a GPU: Hadamard transform, scores, and the choice of the best rows.

Source: DeepSeek's report on V3.2-Exp. score[t, s] = Σ_h w[t, h] · relu(q[t, h]·k[s]) for the tokens s that
query t sees; the best K of them are attended to (`attention.attend_chosen`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda, float32, int32, int64, uint64

from gguf_mla.errors import InputError
from verify.cuda.device import explained, sent
from verify.cuda.specialise import compiled, lesser, specialise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]

MICRO = 4  # heads and tokens whose products a thread forms at once
LARGEST = 2048  # values of a Hadamard row: two per thread of a block
DIGITS = 256  # a radix digit is 8 bits of a score
# Placeholders for what `Piece.names` and `transformer` compile in.
HEADS = TOKENS = DEPTH = PADDED = THREADS = SIDES = SIZE = HALF = 4
SHRINK = 0.5


@dataclass(frozen=True)
class Piece:
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


PIECE = Piece(heads=64, tokens=64, depth=32)


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
    for place in range(cuda.threadIdx.x, count * DEPTH, THREADS):
        row, col = place // DEPTH, place % DEPTH
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


def ordered(bits: Any) -> Any:
    """Return a number that is ordered as the float32 with these bits is; the two zeros are equal."""
    wide = int64(bits)
    if wide > 0x80000000:
        return 0xFFFFFFFF - wide
    return wide % 0x80000000 + 0x80000000


def count_digits(bits: Any, seen: int, prefix: int, shift: int, histogram: Any) -> None:
    """Count the values of the digit at `shift`, among numbers whose higher digits are `prefix`."""
    for digit in range(cuda.threadIdx.x, DIGITS, cuda.blockDim.x):
        histogram[digit] = 0
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, seen, cuda.blockDim.x):
        number = ordered(bits[i]) >> shift
        if number >> 8 == prefix:
            cuda.atomic.add(histogram, number % DIGITS, 1)
    cuda.syncthreads()


def pick_digit(histogram: Any, found: Any) -> None:
    """Set found[0] to the digit of the found[1]-th largest number, and found[1] to its place among those."""
    if cuda.threadIdx.x == 0:
        digit, left = DIGITS - 1, found[1]
        while histogram[digit] < left:
            left -= histogram[digit]
            digit -= 1
        found[0], found[1] = digit, left
    cuda.syncthreads()


def add_before(above: Any, same: Any) -> None:
    """Replace every thread's counts by the sums of the threads before it."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        above_sum, same_sum = 0, 0
        for thread in range(cuda.blockDim.x):
            above_here, same_here = above[thread], same[thread]
            above[thread], same[thread] = above_sum, same_sum
            above_sum += above_here
            same_sum += same_here
    cuda.syncthreads()


def compact(bits: Any, seen: int, threshold: int, ties: int, above: Any, same: Any, chosen: Any) -> None:
    """Write the places of the numbers above the threshold and of the first `ties` that equal it, in their order."""
    thread, share = cuda.threadIdx.x, (seen + cuda.blockDim.x - 1) // cuda.blockDim.x
    start = thread * share
    end = lesser(start + share, seen)
    above[thread], same[thread] = 0, 0
    for i in range(start, end):
        number = ordered(bits[i])
        above[thread] += 1 if number > threshold else 0
        same[thread] += 1 if number == threshold else 0
    add_before(above, same)
    before, equal = above[thread], same[thread]
    for i in range(start, end):
        number = ordered(bits[i])
        if number > threshold or (number == threshold and equal < ties):
            chosen[before + lesser(equal, ties)] = i
        before += 1 if number > threshold else 0
        equal += 1 if number == threshold else 0


def select(bits: Any, first_seen: int, chosen: Any, counts: Any) -> None:
    """Choose the largest of scores, given by their bits: uint32 [T, S]; a block of THREADS threads per query.

    Query t sees the first first_seen + t scores. Writes the places of its K largest, in order, to chosen [T, K], -1
    behind the last, and their number to counts [T].
    """
    histogram = cuda.shared.array(DIGITS, int32)
    above = cuda.shared.array(THREADS, int32)
    same = cuda.shared.array(THREADS, int32)
    found = cuda.shared.array(2, int64)
    query, wanted = cuda.blockIdx.x, chosen.shape[1]
    seen = first_seen + query
    if cuda.threadIdx.x == 0:
        counts[query] = lesser(seen, wanted)
        found[1] = wanted
    if seen <= wanted:
        for i in range(cuda.threadIdx.x, wanted, cuda.blockDim.x):
            chosen[query, i] = i if i < seen else -1
    else:
        prefix = 0
        for digit in range(4):
            count_digits(bits[query], seen, prefix, 24 - 8 * digit, histogram)
            pick_digit(histogram, found)
            prefix = prefix * DIGITS + found[0]
        compact(bits[query], seen, prefix, found[1], above, same, chosen[query])


def score_function(piece: Piece) -> Any:
    """Return the function of the scoring kernel."""
    return specialise(score, (bring, multiply, weigh), piece.names())


def select_function(threads: int) -> Any:
    """Return the function of the selecting kernel."""
    return specialise(select, (lesser, ordered, count_digits, pick_digit, add_before, compact), {"THREADS": threads})


def transform_function(size: int) -> Any:
    """Return the function of the Hadamard kernel for rows of so many values."""
    return specialise(transform, (), {"SIZE": size, "HALF": size // 2, "SHRINK": size**-0.5})


@functools.cache
def scorer(piece: Piece) -> Any:
    """Return the scoring kernel."""
    return compiled(score_function(piece))


@functools.cache
def selector(threads: int) -> Any:
    """Return the selecting kernel."""
    return compiled(select_function(threads))


@functools.cache
def transformer(size: int) -> Any:
    """Return the Hadamard kernel."""
    return compiled(transform_function(size))


@explained()
def hadamard(x: Floats) -> Floats:
    """Return rows x [..., D] times the orthonormal Hadamard matrix; InputError if D is no power of two up to 2048."""
    size = x.shape[-1]
    if size < 2 or size > LARGEST or size & (size - 1):
        raise InputError("these rows have no Hadamard transform here", expected="a power of two up to 2048", found=size)
    rows = sent(x.reshape(-1, size))
    transformer(size)[len(rows), size // 2](rows)
    transformed: Floats = rows.copy_to_host()
    return transformed.reshape(x.shape)


@explained()
def scores(q: Floats, k: Floats, weights: Floats, piece: Piece = PIECE) -> Floats:
    """Return the scores [T, S] of queries q [T, H, D], the last of the tokens of k [S, D]; weights [T, H].

    Tokens that a query does not see score -inf.
    """
    out = cuda.device_array((len(q), len(k)), np.float32)
    grid = len(q) * -(-len(k) // piece.tokens)
    scorer(piece)[grid, piece.threads](sent(q), sent(k), sent(weights), out)
    found: Floats = out.copy_to_host()
    return found


@explained()
def top_k(values: Floats, count: int, threads: int = DIGITS) -> tuple[Numbers, Numbers]:
    """Return the places of the `count` largest of every row's scores [T, S], in order, and how many there are.

    Row t sees the first S-T+t+1 scores; of equal ones the first are taken. Places are int64 [T, min(count, S)], -1
    where a row sees fewer; numbers int64 [T]. Exact: a radix selection on the bits of the
    scores, for which NaN is the largest number.
    """
    queries, cached = values.shape
    chosen, counts = cuda.device_array((queries, min(count, cached)), np.int64), cuda.device_array(queries, np.int64)
    bits = sent(np.ascontiguousarray(values).view(np.uint32))
    selector(threads)[queries, threads](bits, cached - queries + 1, chosen, counts)
    return chosen.copy_to_host(), counts.copy_to_host()
