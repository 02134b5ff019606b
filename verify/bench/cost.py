"""When to absorb: what the two forms of latent attention compute and read, from their formulas.

T queries over S cached tokens, H heads, n = nope, p = rope, v = value, r = kv_rank, W = H·(n+v)·r weights of kv_b. In
multiplications, per head:

    vanilla     S·r·(n+v) to expand the cache, then T·S·(n+p+v)
    absorbed    T·r·(n+v) to absorb queries and expand results, then T·S·(2r+p)

Vanilla reads W and the latent rows and writes and reads expanded keys and values; absorbed reads W and the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

VALUE_BYTES = 4  # float32, as the forms here compute


@dataclass(frozen=True)
class HeadSizes:
    """The head sizes of a model; those of DeepSeek-V2 and V3 by default."""

    heads: int = 128
    nope: int = 128
    rope: int = 64
    value: int = 128
    rank: int = 512


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiplication and an addition are two) and bytes read or written."""

    operations: int
    nbytes: int


def vanilla(heads: HeadSizes, queries: int, cached: int) -> Cost:
    """Return the cost of expanding the whole cache for these queries."""
    expanded = heads.nope + heads.rope + heads.value
    per_head = cached * heads.rank * (heads.nope + heads.value) + queries * cached * expanded
    return Cost(2 * heads.heads * per_head, _read(heads, cached) + 2 * VALUE_BYTES * heads.heads * cached * expanded)


def absorbed(heads: HeadSizes, queries: int, cached: int) -> Cost:
    """Return the cost of attending over the latent rows as they are."""
    per_head = queries * heads.rank * (heads.nope + heads.value) + queries * cached * (2 * heads.rank + heads.rope)
    return Cost(2 * heads.heads * per_head, _read(heads, cached))


def _read(heads: HeadSizes, cached: int) -> int:
    weights = heads.heads * (heads.nope + heads.value) * heads.rank
    return VALUE_BYTES * (weights + cached * (heads.rank + heads.rope))


def crossover(heads: HeadSizes, cached: int) -> float:
    """Return the number of queries above which vanilla computes less, for a cache of so many tokens."""
    expansion = heads.rank * (heads.nope + heads.value)
    per_query = expansion + cached * (2 * heads.rank - heads.nope - heads.value)
    return cached * expansion / per_query if per_query > 0 else float("inf")
