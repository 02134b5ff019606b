"""The searches of IQ2 and IQ3 on grids: neighbours that are left out would never have been chosen."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_mla import ggtypes
from gguf_mla.ggtypes.shared import grid
from gguf_mla.lanes.binding import variant

FOUR = (grid.choose_four, 4, 3, 8)  # what chooses, values in a group, bits of a level, levels
EIGHT = (grid.choose_eight, 8, 2, 3)


def number_of(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels [group, lanes] as one number each."""
    return sum(level.astype(int) << bits * i for i, level in enumerate(levels))


def chosen_from_all(values: np.ndarray, roots: np.ndarray, scale: np.float32, candidates: np.ndarray, bits: int) -> int:
    """Return the number, of a whole list, with the least error; of equals the first."""
    best, found = np.float32(np.inf), candidates[0]
    for number in candidates:
        total = np.float32(0)
        for i, (value, root) in enumerate(zip(values, roots, strict=True)):
            off = scale * np.float32(2 * (int(number) >> bits * i & (1 << bits) - 1) + 1) - value
            total += root * off * off
        if total < best:
            best, found = total, number
    return int(found)


def some_values(rng: np.random.Generator, group: int, top: int, scale: np.ndarray) -> np.ndarray:
    """Values [group, 16] in the grid's range and beyond, some where rounding changes sides, some on a level."""
    place = rng.uniform(-0.9, top + 1.5, (group, 16))
    place = np.where(rng.random(place.shape) < 0.25, np.floor(place) + 0.5, place)
    place = np.where(rng.random(place.shape) < 0.1, np.rint(place), place)
    return ((2 * place + 1) * scale).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "choose", "group", "bits", "top"),
    [("IQ3_XXS", *FOUR), ("IQ3_S", *FOUR), ("IQ2_XXS", *EIGHT), ("IQ2_XS", *EIGHT), ("IQ2_S", *EIGHT)],
)
def test_what_is_chosen_is_the_best_of_all_neighbours(name: str, choose, group: int, bits: int, top: int) -> None:
    tables = ggtypes.by_name(name).tables()
    point_of, lists, neighbours = tables[grid.POINT_OF], tables[grid.LISTS], tables[grid.NEIGHBOURS]
    rng = np.random.default_rng(group)
    for _ in range(6):
        scratch = np.full((grid.SCRATCH, 16), np.nan, np.float32)
        scale = rng.uniform(0.001, 3, 16).astype(np.float32)
        values, roots = some_values(rng, group, top, scale), rng.random((group, 16), np.float32) ** 2
        roots[rng.random(roots.shape) < 0.1] = 0
        scratch[grid.VALUES : grid.VALUES + group], scratch[grid.ROOTS : grid.ROOTS + group] = values, roots
        inverse = np.float32(1) / scale
        choose(scratch, tables, 0, inverse, scale)
        rounded = number_of(np.clip(np.rint((inverse * values - 1) * np.float32(0.5)), 0, top - 1), bits)
        for lane, number in enumerate(rounded):
            place = 4 * number + 4 if group == 4 else -point_of[number]
            expected = number
            if point_of[number] < 0:
                whole = neighbours[lists[place + 2] : lists[place + 3]]
                expected = chosen_from_all(values[:, lane], roots[:, lane], scale[lane], whole, bits)
            assert scratch[grid.TRIAL, lane] == expected
            assert scratch[grid.TRIAL_ON, lane] == (point_of[number] >= 0)


@pytest.mark.parametrize(
    ("place", "sure"), [(0, True), (2.45, True), (2.5, False), (2.49998, False), (9.5, True), (-0.9, True)]
)
def test_a_level_is_sure_unless_the_value_lies_next_to_where_rounding_changes_sides(place: float, sure: bool) -> None:
    rounded = variant(grid.rounded_number, GROUP=4, BITS=3, TOP=8)
    scratch = np.full((grid.SCRATCH, 16), 3, np.float32)
    scratch[grid.VALUES + 2] = 2 * place + 1
    number, surely = rounded(scratch, 0, np.ones(16, np.float32))
    assert (surely == sure).all()
    assert (number == number_of(np.array([1, 1, np.clip(np.rint(place), 0, 7), 1]), 3)).all()
    assert not rounded(scratch, 0, np.full(16, np.inf, np.float32))[1].any()


def test_most_neighbours_are_left_out_but_not_where_a_value_lies_between_levels() -> None:
    lists = ggtypes.by_name("IQ2_XS").tables()[grid.LISTS].reshape(-1, 4)[1:]
    kept, whole = lists[:, 1] - lists[:, 0], lists[:, 3] - lists[:, 2]
    assert (kept >= 1).all()
    assert (kept <= whole).all()
    assert kept.sum() < 0.6 * whole.sum()
