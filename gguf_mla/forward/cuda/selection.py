"""The largest of many scores on a GPU: an exact radix selection on their bits.

Four times, a block counts the values of 8 bits among the scores that are still in question, and finds where the K-th
largest lies. Then all above it are written in their order, and of those equal to it the first.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda, int32, int64

from gguf_mla.forward.cuda.device import explained, received, sent
from gguf_mla.forward.cuda.specialise import compiled, lesser, specialise
from gguf_mla.lanes.binding import unbound

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Numbers

DIGITS = 256  # of 8 bits
BLOCK = 256  # threads
THREADS = unbound("THREADS")  # `function` compiles it in


def ordered(bits: Any) -> Any:
    """Return a number that is ordered as the float32 with these bits is; zeros are equal, NaN is above all."""
    wide = int64(bits)
    if wide % 0x80000000 > 0x7F800000:
        return 0xFFFFFFFF
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
    """Set found[0] to the digit of the found[1]-th largest number, and found[1] to its rank among those."""
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
    """Write the positions of the numbers above the threshold and of the first `ties` that equal it, in their order."""
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


def select(bits: Any, first_seen: int, chosen: Any) -> None:
    """Choose the largest of scores, given by their bits: uint32 [T, S]; a block of THREADS threads per query.

    Query t sees the first first_seen + t scores. Writes the positions of its K largest, in order, to chosen [T, K], -1
    after the last.
    """
    histogram = cuda.shared.array(DIGITS, int32)
    above = cuda.shared.array(THREADS, int32)
    same = cuda.shared.array(THREADS, int32)
    found = cuda.shared.array(2, int64)
    query, wanted = cuda.blockIdx.x, chosen.shape[1]
    seen = first_seen + query
    if cuda.threadIdx.x == 0:
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


def function(threads: int = BLOCK) -> Any:
    """Return the function of the kernel."""
    return specialise(select, (lesser, ordered, count_digits, pick_digit, add_before, compact), {"THREADS": threads})


@functools.cache
def selector(threads: int) -> Any:
    """Return the kernel."""
    return compiled(function(threads))


def best(scores: Any, count: int, threads: int = BLOCK) -> Any:
    """Return what `top_k` does, of scores on the device and there, int64 [T, count]."""
    queries, cached = scores.shape
    chosen = cuda.device_array((queries, count), np.int64)
    selector(threads)[queries, threads](scores.view(np.uint32), cached - queries + 1, chosen)
    return chosen


@explained()
def top_k(scores: Floats, count: int, threads: int = BLOCK) -> Numbers:
    """Return the positions of the `count` largest of every row's scores [T, S], int64 [T, min(count, S)].

    Row t sees the first S-T+t+1 scores. Positions are in rising order, -1 after the last where a row sees fewer; of
    equal scores the first are taken, and NaN is the largest.
    """
    return received(best(sent(scores), min(count, scores.shape[1]), threads), scores)
