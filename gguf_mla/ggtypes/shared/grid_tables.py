"""The tables of `ggtypes.shared.grid`: which grid point a group of levels is, and which ones lie near it."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@functools.cache
def grid_tables(name: str, distances: int) -> tuple[Array, ...]:
    """Tables of one type, in the order `ggtypes.shared.grid` numbers them; its grid comes from the `gguf` package.

    POINT_OF    int32 [4096 or 65536]: for a number made of levels the grid point, or -1 - n for list n of neighbours
    STARTS      int32 [lists + 1]: where list n begins in the next two
    CODES       int32: per neighbour its levels, 4 bits each
    POINTS      int32: per neighbour its number
    CODE_OF     int32 [points]: per grid point its levels, coded likewise
    MAGNITUDES  float32 [points * group]: what its levels stand for when decoded
    """
    values, levels = _grid(name)
    group = levels.shape[1]
    bits = 2 if group == 8 else 3
    numbers = _number(levels, bits)
    corners = _corners(int(levels.max()) + 1, group)
    off_grid = corners[~np.isin(_number(corners, bits), numbers)]
    starts, points = _neighbours(off_grid, levels, distances)
    point_of = np.zeros(1 << bits * group, np.int32)
    point_of[numbers] = np.arange(len(levels))
    point_of[_number(off_grid, bits)] = -1 - np.arange(len(off_grid))
    code_of = _codes(levels)
    padded = np.concatenate([points, np.zeros(16, np.int32)])  # a run of 16 may begin at the last one
    return point_of, starts, code_of[padded], padded, code_of, values.reshape(-1)


def _grid(name: str) -> tuple[Array, Array]:
    """Values float32 [points, group], and their levels int32."""
    quant = getattr(import_module("gguf.quants"), name)
    quant.init_grid()
    values = np.ascontiguousarray(quant.grid[0, 0], np.float32)
    return values, np.searchsorted(np.array(quant.grid_map, np.float32), values).astype(np.int32)


def _number(levels: Array, bits: int) -> Array:
    """Levels [n, group] as one number each."""
    number: Array = np.asarray(np.sum(levels << bits * np.arange(levels.shape[1]), axis=1))
    return number


def _corners(top: int, group: int) -> Array:
    """Every combination of levels 0 … top - 1, int32 [top ** group, group]."""
    return np.indices((top,) * group).reshape(group, -1).T.astype(np.int32)


def _codes(levels: Array) -> Array:
    """Levels [n, group] as one number each, value i's level above bit 4 i."""
    shifts = np.arange(levels.shape[1], dtype=np.uint32) * np.uint32(4)
    return np.asarray(np.sum(levels.astype(np.uint32) << shifts, axis=1, dtype=np.uint32)).view(np.int32)


def _neighbours(off_grid: Array, levels: Array, distances: int) -> tuple[Array, Array]:
    """Return where each off-grid point's list begins, and all lists: the points at the smallest distances."""
    a, b = off_grid.astype(np.float32), levels.astype(np.float32)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    distance = squares.astype(np.int16)
    limit = np.full(len(distance), -1, np.int16)
    for _ in range(distances):
        limit = np.where(distance > limit[:, None], distance, np.int16(32767)).min(axis=1)
    rows, points = np.nonzero(distance <= limit[:, None])
    order = np.lexsort((points, distance[rows, points], rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(distance)))])
    return starts.astype(np.int32), points[order].astype(np.int32)
