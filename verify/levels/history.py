"""How a tensor came to its error: through its own type alone, or through another before it, or beside the reference's.

Where the limits of the file's own type do not explain a tensor, longer histories are tried, the shortest first:

* a GGUF reference has an error of its own, and the two add up;
* the values were quantized before, as another type: a file was requantized to a finer type, or an attn_kv_b was
  quantized along the rank and its keys transposed since, when the file was upgraded.

Any noise would fit a history that is coarse enough. So a coarser type must be seen in the values: what was quantized
lies on that type's grid, and quantizing it again changes it less than it changes the reference. Noise of the same size
changes as much as the reference does (0.94 to 1.16 of it; what was quantized 0.02 to 0.82).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import codec, ggtypes
from verify.comparison import KEYS, transposed
from verify.levels.weights import LEAST_BLOCK, NEGLIGIBLE
from verify.limits import UNRELATED, Stage, allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import Stack
    from verify.comparison import Pair
    from verify.levels.weights import TensorError
    from verify.limits import Limits

    Floats = NDArray[np.float32]

ON_GRID = 0.88  # of the reference's change, at most: between what was quantized before and noise
AS_COARSE = 2.0  # times the error of the own type; below, a history costs too little to need to be seen
LEAST_SHARE = 0.3  # of its type's limit, which the error of what has been quantized reaches
SAMPLED_MATRICES, SAMPLED_ROWS = 4, 16


@dataclass(frozen=True)
class History:
    """What a tensor went through: the reference's own blocks, if it has some, a type before, and the type it has."""

    reference: Stage | None
    before: Stage | None
    own: Stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every quantization whose error may be in the difference, in order."""
        return tuple(stage for stage in (self.reference, self.before, self.own) if stage is not None)

    def sentence(self, pair: Pair) -> str:
        """Return what the file is like, for people."""
        if self.before is None:
            return f"within the error of the reference's own {self.stages[0].type}"
        where = "" if not self.before.turned else f" in an {'attn_k_b' if pair.part == KEYS else 'attn_kv_b'}"
        return f"as if quantized twice: {self.before.type}{where}, then {self.own.type}"


def explain(error: TensorError, limits: Limits) -> History | None:
    """Return the shortest history that explains a tensor's error; None where none does."""
    pair = error.pair
    if pair is None or error.type not in limits.table or not np.isfinite(error.rms):
        return None
    for history in _histories(pair, error, limits):
        if _explained_by_limits(error, history, limits) or _explained(pair, history, limits):
            return history
    return None


def _histories(pair: Pair, error: TensorError, limits: Limits) -> Iterator[History]:
    own = Stage(error.type)
    reference = Stage(pair.blocks, pair.turned) if pair.blocks is not None else None
    if reference is not None:
        yield History(reference, None, own)
    seen = list(_before(pair, error, limits))
    for beside in dict.fromkeys((None, reference)):
        for stage in seen:
            yield History(beside, stage, own)


def _before(pair: Pair, error: TensorError, limits: Limits) -> Iterator[Stage]:
    """Yield what the values may have been quantized as before, the likeliest first."""
    own = limits.of(error.type).rms
    coarser = [name for name, limit in limits.table.items() if limit.rms > own and _may_be(error, name, pair, limits)]
    if pair.keys:
        fine = [error.type, *(name for name in coarser if limits.of(name).rms < AS_COARSE * own)]
        yield from (Stage(name, turned=True) for name in fine)
    found = [(_change(pair, stage), stage) for stage in _stages(pair, coarser)]
    yield from (stage for change, stage in sorted(found, key=lambda each: each[0])[:2] if change < ON_GRID)


def _may_be(error: TensorError, before: str, pair: Pair, limits: Limits) -> bool:
    """Whether a tensor's error is neither too small nor too large for another type before its own."""
    types = (before, error.type) if pair.blocks is None else (before, error.type, pair.blocks)
    most = allowed(map(Stage, types), limits).rms
    return LEAST_SHARE * limits.of(before).rms <= error.rms <= most


def _stages(pair: Pair, names: Iterable[str]) -> Iterator[Stage]:
    stack = pair.candidate
    for name in names:
        kind = ggtypes.by_name(name)
        if kind.fits(stack.cols):
            yield Stage(name)
        if pair.keys and kind.fits(stack.rows):
            yield Stage(name, turned=True)


def _change(pair: Pair, stage: Stage) -> float:
    """Return how much quantizing changes sampled rows of the candidate, by how much it changes the reference's."""
    theirs, ours = (_sample(stack, stage) for stack in (pair.candidate, pair.reference))
    size = _requantized(ours, stage.type)
    return _requantized(theirs, stage.type) / size if size and theirs.any() else np.inf


def _sample(stack: Stack, stage: Stage) -> Floats:
    stack = transposed(stack) if stage.turned else stack
    matrices = np.unique(np.linspace(0, stack.count - 1, SAMPLED_MATRICES, dtype=int))
    first = np.linspace(0, max(0, stack.rows - SAMPLED_ROWS), len(matrices), dtype=int)
    return np.concatenate(
        [
            stack.read(int(i), int(start), min(int(start) + SAMPLED_ROWS, stack.rows))
            for i, start in zip(matrices, first, strict=True)
        ]
    )


def _requantized(rows: Floats, name: str) -> float:
    """Return the relative RMS error of rows quantized as a type."""
    weights = np.ones(rows.shape[1], np.float32) if ggtypes.by_name(name).needs_importance else None
    again = codec.decode(codec.encode(rows, name, importance=weights, check=False), name).astype(np.float64)
    size = float(np.square(rows, dtype=np.float64).sum())
    return float(np.sqrt(np.square(again - rows).sum() / size)) if size else 0.0


def _explained_by_limits(error: TensorError, history: History, limits: Limits) -> bool:
    """Whether what was measured already is within a history; the blocks of turned ones were not."""
    if any(stage.turned for stage in history.stages):
        return False
    limit = allowed(history.stages, limits)
    return error.rms <= limit.rms and error.row_rms <= limit.row and error.peak <= limit.peak


def _explained(pair: Pair, history: History, limits: Limits) -> bool:
    """Whether every value and row of a tensor, and the tensor, is as near to the reference as its history allows."""
    error, size = 0.0, 0.0
    for piece in pair.pieces():
        reference, candidate = pair.read(piece)
        difference = candidate.astype(np.float64) - reference
        floor = NEGLIGIBLE * float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        bound, energy = allowances(reference, history.stages, limits, floor)
        square = difference * difference
        allowed_square = energy.sum(axis=1)
        if not any(stage.turned for stage in history.stages):
            own = np.maximum(np.square(reference).sum(axis=1), floor * floor * reference.shape[1])
            allowed_square = np.minimum(allowed_square, UNRELATED**2 * own)
        if (np.abs(difference) > bound).any() or (square.sum(axis=1) > allowed_square).any():
            return False
        error, size = error + float(square.sum()), size + float(np.square(reference, dtype=np.float64).sum())
    return error <= allowed(history.stages, limits).rms ** 2 * size


def allowances(
    reference: Floats, stages: Iterable[Stage], limits: Limits, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each value of a piece [rows, cols] may be off, and the mean square that each adds to its row's.

    A stage errs by `peak` of the largest value of its block at most, wherever that block lies, and on average by `row`
    of its row's size, or of its block's where the blocks lie along the columns; what it takes in has the errors before.
    """
    size = np.abs(reference).astype(np.float64)
    bound, energy = np.zeros_like(size), np.zeros_like(size)
    for stage in stages:
        limit, block = limits.of(stage.type), max(LEAST_BLOCK, ggtypes.by_name(stage.type).block)
        axis = 0 if stage.turned else 1
        before = np.maximum(_blocks(np.maximum, size + bound, block, axis), floor)
        square = np.maximum(size * size + energy, floor * floor)
        mean = _means(square, block) if stage.turned else square.mean(axis=1, keepdims=True)
        bound, energy = bound + limit.peak * before, energy + limit.row**2 * mean
    return bound, energy


def _blocks(ufunc: np.ufunc, x: NDArray[np.float64], block: int, axis: int) -> NDArray[np.float64]:
    """Return of every value what `ufunc` makes of its block along an axis."""
    starts = np.arange(0, x.shape[axis], block)
    lengths = np.diff(np.append(starts, x.shape[axis]))
    spread: NDArray[np.float64] = np.repeat(ufunc.reduceat(x, starts, axis=axis), lengths, axis=axis)
    return spread


def _means(x: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    return _blocks(np.add, x, block, 0) / _blocks(np.add, np.ones_like(x), block, 0)
