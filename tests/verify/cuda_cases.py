"""What the CUDA kernels compute, in numba's simulator or on a GPU, for `test_cuda` to judge.

Run as `python -m tests.verify.cuda_cases OUT.npz`. Every array that a kernel writes, and in the simulator its shared
and local memory too, is full of NaN or nonsense before, and races are found (`tests.support.simulator`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gguf_mla.forward.attention import Inputs, Pages, RowLayout, unseen
from gguf_mla.forward.indexer import best
from tests.support import simulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    Arrays = dict[str, np.ndarray]

NOPE, ROPE, VALUE, RANK = 8, 6, 11, 30  # no multiple of a tile's columns, as 512 is
SCALE = (NOPE + ROPE) ** -0.5
SHAPES = [(1, 1), (5, 5), (3, 21)]  # queries, cached tokens
FORMS = ["vanilla", "absorbed", "paged"]
LENGTHS = [1, 9, 40, 0, 5]
DECODES = [(1, 1), (3, 3), (16, 2)]  # page size, parts of the cache
PIECES = {
    "small": (5, 6, 10, 13),
    "one query": (1, 4, 8, 8),
    "many heads": (9, 20, 8, 11),
    "real": (1, 40, 40, 20),
}  # T H D S
WANTED = [1, 7, 45, 60]
ROUTINGS = {"V3": (4, 2, True), "V2": (4, 2, False), "no groups": (1, 1, True), "groups of one": (16, 5, True)}


def bell(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(bell(seed, *shape))


def inputs(queries: int, cached: int, heads: int = 3) -> Inputs:
    return Inputs(
        drawn(1, queries, heads, NOPE),
        drawn(2, queries, heads, ROPE),
        drawn(3, cached, RANK),
        drawn(4, cached, ROPE),
        drawn(5, heads, RANK, NOPE) * RANK**-0.5,
        drawn(6, heads, VALUE, RANK) * RANK**-0.5,
        SCALE,
    )


def sparse_inputs(queries: int, cached: int) -> Inputs:
    """Inputs whose queries attend to at most 4 tokens each."""
    scores = drawn(22, queries, cached).masked_fill(unseen(None, queries, cached), -torch.inf)
    return replace(inputs(queries, cached), chosen=best(scores, 4))


@dataclass(frozen=True)
class Batch:
    """Requests over one paged cache, whose pages lie mixed and hold NaN where no token is."""

    q_latent: torch.Tensor
    q_pe: torch.Tensor
    pages: Pages
    rows: list[np.ndarray]


def batch(page_size: int, layout: RowLayout, heads: int = 5, lengths: list[int] = LENGTHS) -> Batch:
    counts = [-(-length // page_size) for length in lengths]
    order = np.random.default_rng(7).permutation(sum(counts) + 1)[: sum(counts)]
    data = np.full((sum(counts) + 1, page_size, layout.rank + layout.rope), np.nan, np.float32)
    indptr = np.cumsum([0, *counts])
    rows = [bell(8 + number, length, layout.rank + layout.rope) for number, length in enumerate(lengths)]
    for number, own in enumerate(rows):
        for page, place in enumerate(order[indptr[number] : indptr[number + 1]]):
            piece = own[page * page_size : (page + 1) * page_size]
            data[place, : len(piece)] = piece
    pages = Pages(*map(torch.tensor, (data, indptr, order, lengths)))
    return Batch(drawn(9, len(lengths), heads, layout.rank), drawn(10, len(lengths), heads, layout.rope), pages, rows)


def chosen_rows() -> torch.Tensor:
    """Rows for 4 queries to attend to, of 21: in rising order, -1 behind the last of each."""
    chosen = np.full((4, 9), -1)
    for query, count in enumerate([1, 6, 9, 4]):
        chosen[query, :count] = np.sort(np.random.default_rng(query).permutation(21)[:count])
    return torch.from_numpy(chosen)


def indexed(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries, heads, size, cached = PIECES[name]
    return drawn(11, queries, heads, size), drawn(12, cached, size), drawn(13, queries, heads)


def scored() -> np.ndarray:
    """Scores [10, 45] with everything that sorting could get wrong."""
    rng = np.random.default_rng(14)
    rows = bell(15, 10, 45)
    rows[0] = np.float32(-0.0)
    rows[1] = rng.integers(-2, 3, 45)
    rows[2] = np.where(rng.random(45) < 0.5, 0.0, -0.0)
    rows[3] = np.where(rng.random(45) < 0.3, np.inf, rows[3])
    rows[4] = np.where(rng.random(45) < 0.5, -np.inf, rows[4])
    rows[5] *= np.float32(1e-45 / np.abs(rows[5]).max() * 50)
    rows[6] = -np.abs(rows[6])
    rows[7] = 1 + rng.integers(0, 8, 45) * np.float32(2**-23)
    rows[8] = np.maximum(rows[8], 0) * np.where(rng.random(45) < 0.5, 1, -1)
    rows[9, 3:40:6] = np.nan
    rows[9, 9] = -rows[9, 9]  # the sign of NaN says nothing
    return rows


def experts() -> np.ndarray:
    """Scores [6, 16] to choose experts by, half of them with ties."""
    scores = bell(16, 6, 16)
    scores[::2] = np.round(scores[::2])
    return scores


def compute() -> Iterator[tuple[str, Any]]:
    yield from attended()
    yield from real_tiles()
    yield from pointwise()
    yield from sparse()
    yield from measured()


def small_tile() -> Any:
    from gguf_mla.forward.cuda.attend import Tile

    return Tile(queries=8, tokens=4, threads=16, columns=4)


def attended() -> Iterator[tuple[str, Any]]:
    from gguf_mla.forward.cuda import attention

    small = small_tile()
    layouts = {False: RowLayout(RANK, ROPE), True: RowLayout(RANK, ROPE, pe_first=True)}
    for queries, cached in SHAPES:
        for name in FORMS:
            run: Any = attention.FORMS[name]
            yield f"{name} {queries} {cached}", run(inputs(queries, cached), small)
            if cached > 1:
                yield f"{name} sparse {queries} {cached}", run(sparse_inputs(queries, cached), small)
    for page_size, parts in DECODES:
        layout = layouts[page_size == 3]
        b = batch(page_size, layout)
        out, lse = attention.decode_paged(
            b.q_latent, b.q_pe, b.pages, SCALE, pe_first=layout.pe_first, parts=parts, tile=small
        )
        yield f"decode {page_size}", out
        yield f"lse {page_size}", lse
    x = inputs(6, 21)
    rows, queries = layouts[True].join(x.latent, x.k_pe), drawn(17, 6, 3, RANK + ROPE)
    yield "attend in parts", attention.attend(queries, rows, layouts[True], SCALE, parts=3, tile=small)
    out, lse = attention.attend_chosen(queries[:4], rows, layouts[True], chosen_rows(), SCALE, tile=small)
    yield "chosen", out
    yield "chosen lse", lse
    rows[13, 8] = np.nan
    yield "with NaN", attention.attend(queries, rows, layouts[True], SCALE, parts=3, tile=small)


def real_tiles() -> Iterator[tuple[str, Any]]:
    """The tiles of a GPU, with all their threads."""
    from gguf_mla.forward.cuda import attention
    from gguf_mla.forward.cuda.attend import EXPANDED, LATENT, NARROW

    for name, heads, tile in (("LATENT", 33, LATENT), ("NARROW", 9, NARROW)):
        b = batch(4, RowLayout(RANK, ROPE), heads, [10])
        yield name, attention.decode_paged(b.q_latent, b.q_pe, b.pages, SCALE, tile=tile)[0]
    yield "EXPANDED", attention.vanilla(inputs(5, 21, 1), EXPANDED)


def pointwise() -> Iterator[tuple[str, Any]]:
    from gguf_mla.forward.cuda import pointwise

    cos, sin, x = drawn(18, 5, 4), drawn(19, 5, 4), drawn(20, 5, 3, 12)
    for halves in (False, True):
        yield f"rope {halves}", pointwise.rotate(x[..., :8], cos, sin, halves=halves)
    yield "rope leaves", x
    for name, routing in ROUTINGS.items():
        yield f"routing {name}", pointwise.choose(torch.from_numpy(experts()), *routing, 5)


def sparse() -> Iterator[tuple[str, Any]]:
    from gguf_mla.forward.cuda import indexer, selection

    for size in (2, 8, 128):
        yield f"hadamard {size}", indexer.hadamard(drawn(21, 2, 1, size))
    small = indexer.ScoreTile(heads=8, tokens=8, depth=4)
    for name in PIECES:
        yield f"scores {name}", indexer.scores(*indexed(name), indexer.PIECE if name == "real" else small)
    for count in WANTED:
        yield f"best {count}", selection.top_k(torch.from_numpy(scored()), count, threads=8)
    indexer.SCORES = 50  # so few that queries are scored in blocks
    yield "chosen tokens", indexer.choose(*indexed("many heads"), 4, small)


def measured() -> Iterator[tuple[str, np.ndarray]]:
    from numba import config

    from gguf_mla.forward.cuda import attention
    from verify.bench import cost, gpu

    gpu.COPIED = 1 << 10
    attention.tile_for = lambda _row, _count: small_tile()  # a tenth of the threads to simulate
    bounds = gpu.Peak(1e9, 1e9) if config.ENABLE_CUDASIM else None
    tiny = cost.HeadSizes(heads=2, nope=4, rope=2, value=3, rank=6)
    lines = list(gpu.lines(tiny, batch=2, cached=5, queries=3, bounds=bounds, repeats=1))
    yield "bench names", np.array([line.name for line in lines])
    slow = gpu.GpuLine("slow", cost.Cost(3 * 10**12, 2 * 10**9), 0.5, 0.25, 1.0)
    yield "bench table", np.array(gpu.text([slow]).split())
    yield "bench costs", np.array([(line.cost.operations, line.cost.nbytes) for line in lines])


if __name__ == "__main__":
    import time
    import warnings

    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", message="Simulator timings are bogus")
    simulator.poison()
    found = {}
    begin = time.monotonic()
    for name, array in compute():
        found[name] = np.asarray(array)
        print(f"{time.monotonic() - begin:6.2f} {name}", file=sys.stderr)
    np.savez(sys.argv[1], **found)
