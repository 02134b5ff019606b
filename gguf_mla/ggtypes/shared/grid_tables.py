"""The tables of `ggtypes.shared.grid`: which grid point a group of levels is, and which ones lie near it."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FIRST = 16  # how many neighbours of a list may make others needless; later ones seldom do


@functools.cache
def grid_tables(name: str, distances: int, *, rounded: bool = True) -> tuple[Array, ...]:
    """Tables of one type, in the order `ggtypes.shared.grid` numbers them; its grid comes from the `gguf` package.

    POINT_OF    int32 [4096 or 65536]: for a number made of levels the grid point, or minus the place in LISTS
    LISTS       int32 [4 * (lists + 1)]: where in NEIGHBOURS a list begins and ends, without those that are `needless`,
                then with them; groups of 4 have one for every number n, at 4 n + 4, those of 8 off the grid only
    NEIGHBOURS  int32: per neighbour its number; a list's last one is repeated up to a multiple of 8 or 16
    MAGNITUDES  float32 [points * group]: what a point's levels stand for when decoded

    rounded  whether a group's levels are what its values are rounded to; else no neighbour is needless
    """
    values, levels = _grid(name)
    group = levels.shape[1]
    bits, run = (2, 16) if group == 8 else (3, 8)
    numbers, corners = _number(levels, bits), _corners(int(levels.max()) + 1, group)
    listed = corners[~np.isin(_number(corners, bits), numbers)] if group == 8 else corners
    starts, points = _neighbours(listed, levels, distances)
    needed = np.ones(len(points), bool)
    if rounded:
        needed = ~needless(np.repeat(listed, np.diff(starts), axis=0), levels[points], starts)
    short, long = _runs(starts, numbers[points], needed, run), _runs(starts, numbers[points], needed | True, run)
    point_of = np.zeros(1 << bits * group, np.int32)
    point_of[_number(listed, bits)] = -4 * np.arange(1, len(listed) + 1)
    point_of[numbers] = np.arange(len(levels))
    places = np.concatenate([short[0], long[0] + len(short[1])], axis=1)
    lists = np.concatenate([np.zeros((1, 4), np.int32), places]).astype(np.int32).reshape(-1)
    return point_of, lists, np.concatenate([short[1], long[1]]), values.reshape(-1)


def _grid(name: str) -> tuple[Array, Array]:
    """Values float32 [points, group], and their levels int32."""
    quant = getattr(import_module("gguf.quants"), name)
    quant.init_grid()
    values = np.ascontiguousarray(quant.grid[0, 0], np.float32)
    return values, np.searchsorted(np.array(quant.grid_map, np.float32), values).astype(np.int32)


def _number(levels: Array, bits: int) -> Array:
    """Levels [n, group] as one number each, int32."""
    return np.asarray(np.sum(levels << bits * np.arange(levels.shape[1]), axis=1)).astype(np.int32)


def _corners(top: int, group: int) -> Array:
    """Every combination of levels 0 … top - 1, the first changing fastest, int32 [top ** group, group]."""
    return np.indices((top,) * group).reshape(group, -1).T[:, ::-1].astype(np.int32)


def _neighbours(off_grid: Array, levels: Array, distances: int) -> tuple[Array, Array]:
    """Return where each point's list begins, and all lists: the grid points at the smallest distances, or itself."""
    a, b = off_grid.astype(np.float32), levels.astype(np.float32)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    distance = squares.astype(np.int16)
    limit = np.full(len(distance), -1, np.int16)
    for _ in range(distances):
        further = np.where(distance > limit[:, None], distance, np.int16(32767)).min(axis=1)
        limit = np.where(limit == 0, limit, further)
    rows, points = np.nonzero(distance <= limit[:, None])
    order = np.lexsort((points, distance[rows, points], rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(distance)))])
    return starts.astype(np.int32), points[order].astype(np.int32)


def needless(rounded: Array, levels: Array, starts: Array) -> Array:
    """Mask of neighbours that an earlier one in their list beats, whatever the values were, if they were rounded so.

    rounded, levels  int32 [neighbours, group]: the levels whose neighbour it is, and its own
    starts           int32 [lists + 1]: where each list begins

    A value lies nearer to the level it was rounded to than to any other. So of two levels on the same side the one
    closer to that is nearer to the value, too: a neighbour is beaten by one that lies, in every value, between it and
    the rounded levels. Which ways and how far a neighbour is off is a set of bits, and `between` is being a subset.
    """
    off = levels - rounded
    steps = np.arange(1, 1 + int(np.abs(off).max(initial=0)))
    ways = np.concatenate([off[:, :, None] >= steps, off[:, :, None] <= -steps], axis=2).reshape(len(off), -1)
    packed = np.packbits(ways, axis=1)
    sets = np.pad(packed, ((0, 0), (0, 8 - packed.shape[1]))).view(np.uint64)[:, 0]
    sizes = np.diff(starts)
    place = np.arange(len(off)) - np.repeat(starts[:-1], sizes)
    found = np.zeros(len(off), bool)
    for earlier in range(FIRST):
        one = np.repeat(sets[np.minimum(starts[:-1] + earlier, starts[1:] - 1)], sizes)
        found |= (place > earlier) & (one & ~sets == 0)
    return found


def _runs(starts: Array, items: Array, wanted: Array, run: int) -> tuple[Array, Array]:
    """Return where the wanted items of each list begin and end, int32 [lists, 2], and they, in whole runs."""
    of_list = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[wanted]
    counts = np.bincount(of_list, minlength=len(starts) - 1)
    room = -(-counts // run) * run
    begins = np.cumsum(room) - room
    place = np.minimum(np.arange(room.sum()) - np.repeat(begins, room), np.repeat(counts - 1, room))
    place += np.repeat(np.cumsum(counts) - counts, room)
    return np.stack([begins, begins + counts], axis=1), items[wanted][place]
