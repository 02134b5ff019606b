"""The compiled kernels of the proof; importing this module imports numba."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.codec.kernel_cache import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int64]


@kernel(nogil=True)
def rotate(x: Floats, cos: Floats, sin: Floats) -> None:
    """Rotate the pairs (2i, 2i+1) of x [N, H, p] in place by cos, sin [N, p/2]."""
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            for i in range(x.shape[2] // 2):
                even, odd = x[token, head, 2 * i], x[token, head, 2 * i + 1]
                x[token, head, 2 * i] = even * cos[token, i] - odd * sin[token, i]
                x[token, head, 2 * i + 1] = even * sin[token, i] + odd * cos[token, i]


@kernel(nogil=True)
def largest(values: Floats, count: int, found: Numbers) -> None:
    """Write the indices of the `count` largest values, largest first, the lower index first among equals."""
    for rank in range(count):
        best = -1
        for i in range(values.size):
            taken = False
            for earlier in range(rank):
                taken = taken or found[earlier] == i
            if not taken and (best < 0 or values[i] > values[best]):
                best = i
        found[rank] = best


@kernel(nogil=True)
def choose_one(
    select: Floats,
    groups: int,
    groups_used: int,
    by_two: bool,
    best: Numbers,
    group_scores: Floats,
    best_groups: Numbers,
    allowed: Floats,
    chosen: Numbers,
) -> None:
    """Choose the experts of one token, as `choose` says; best [2], group_scores, best_groups, allowed are scratch."""
    per_group = select.size // groups
    for group in range(groups):
        scores = select[group * per_group : (group + 1) * per_group]
        largest(scores, 2 if per_group > 1 else 1, best)
        group_scores[group] = scores[best[0]] + (scores[best[1]] if by_two and per_group > 1 else np.float32(0))
    largest(group_scores, groups_used, best_groups)
    allowed[:] = -np.inf
    for rank in range(groups_used):
        first = best_groups[rank] * per_group
        for expert in range(first, first + per_group):
            allowed[expert] = select[expert]
    largest(allowed, chosen.size, chosen)


@kernel(nogil=True)
def choose(select: Floats, groups: int, groups_used: int, by_two: bool, chosen: Numbers) -> None:
    """Choose the experts of every token: `select` [N, E] are the scores to choose by, `chosen` [N, K] the result.

    Only the best `groups_used` of `groups` equal groups may be chosen from; a group counts by the sum of its best two
    experts, or by its best.
    """
    group_scores, best_groups = np.empty(groups, np.float32), np.empty(groups_used, np.int64)
    best, allowed = np.empty(2, np.int64), np.empty(select.shape[1], np.float32)
    for token in range(select.shape[0]):
        choose_one(select[token], groups, groups_used, by_two, best, group_scores, best_groups, allowed, chosen[token])


@kernel(nogil=True, fastmath={"reassoc", "contract"})
def paged_decode(
    q_latent: Floats,
    q_pe: Floats,
    pages: Floats,
    indptr: Numbers,
    indices: Numbers,
    lengths: Numbers,
    scale: float,
    out: Floats,
    lse: Floats,
) -> None:
    """Attend with one query per request over a paged latent cache, in one sweep with a running maximum.

    q_latent [B, H, r] and q_pe [B, H, p]; pages [n_pages, page_size, r+p] with rows [kv | pe]; request b holds the
    pages indices[indptr[b]:indptr[b+1]] and lengths[b] tokens; writes out [B, H, r] and the natural log-sum-exp
    lse [B, H].
    """
    rank, page_size = q_latent.shape[2], pages.shape[1]
    for request in range(q_latent.shape[0]):
        for head in range(q_latent.shape[1]):
            query, query_pe = q_latent[request, head], q_pe[request, head]
            total = np.zeros(rank, np.float32)
            largest, weight_sum = np.float32(-np.inf), np.float32(0)
            for token in range(lengths[request]):
                row = pages[indices[indptr[request] + token // page_size], token % page_size]
                score = np.float32(0)
                for i in range(rank):
                    score += query[i] * row[i]
                for i in range(query_pe.size):
                    score += query_pe[i] * row[rank + i]
                score *= np.float32(scale)
                if score > largest:
                    shrink = np.float32(math.exp(largest - score))
                    weight_sum *= shrink
                    total *= shrink
                    largest = score
                weight = np.float32(math.exp(score - largest))
                weight_sum += weight
                for i in range(rank):
                    total[i] += weight * row[i]
            out[request, head] = total / weight_sum
            lse[request, head] = largest + math.log(weight_sum)
