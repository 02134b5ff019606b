"""Level 2: every tensor of the candidate, value by value, against what its type should cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes
from verify.findings import Finding
from verify.levels import kernels
from verify.limits import exceeds

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from verify.comparison import Pair, WeightPiece
    from verify.limits import Limits

    Floats = NDArray[np.float32]

LEVEL = "weights"
HEADS = ("attn_k_b.weight", "attn_v_b.weight", "attn_kv_b.weight")  # stacks of heads' matrices
LEAST_BLOCK = 32  # values; the block of types that have none
HELD = 8  # pieces of a tensor that are in memory at a time
NEGLIGIBLE = 1e-3  # of a piece's RMS: a block of smaller values is measured against this


@dataclass(frozen=True)
class Position:
    """Where in a tensor something is worst: head or expert, row, first column of the block."""

    index: int
    row: int
    col: int


@dataclass
class TensorError:
    """The error of one tensor, relative to the reference's size.

    rms       √(Σ(c-r)² / Σr²) of the tensor
    row_rms   that of its worst row, with the row's place
    peak      the largest max|c-r| / max|r| of its blocks, with the block's place
    special   how many values are NaN or infinite
    part      which half of a joined tensor it is, empty for a whole tensor
    pair      what was compared
    """

    name: str
    type: str
    nbytes: int
    values: int = 0
    sums: NDArray[Any] = field(default_factory=lambda: np.zeros(4))
    row_rms: float = 0.0
    row_place: Position = Position(0, 0, 0)
    peak: float = 0.0
    peak_place: Position = Position(0, 0, 0)
    special: int = 0
    part: str = ""
    pair: Pair | None = field(default=None, repr=False)

    @property
    def rms(self) -> float:
        """Relative RMS error."""
        return _ratio(self.sums[0], self.sums[1])

    @property
    def cosine(self) -> float:
        """Cosine between reference and candidate."""
        return float(self.sums[3] / math.sqrt(self.sums[1] * self.sums[2])) if self.sums[1] * self.sums[2] else 1.0

    def add(self, piece: WeightPiece, reference: Floats, candidate: Floats, block: int) -> None:
        """Take in a piece of the tensor from both sides."""
        self.values += candidate.size
        finite = np.isfinite(candidate)
        self.special += int(candidate.size - finite.sum())
        sums, worst = np.zeros((len(reference), 4)), np.zeros((len(reference), 2))
        floor = (
            NEGLIGIBLE * float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) or np.finfo(np.float32).tiny
        )
        kernels.compare_rows(reference, np.where(finite, candidate, 0), block, floor, sums, worst)
        self.sums = self.sums + sums.sum(axis=0)
        self._worst_row(piece, sums, floor * floor * reference.shape[1])
        self._worst_block(piece, worst)

    def _worst_row(self, piece: WeightPiece, sums: NDArray[Any], floor: float) -> None:
        ratios = np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], floor or np.finfo(np.float64).tiny))
        row = int(ratios.argmax())
        if ratios[row] > self.row_rms:
            self.row_rms, self.row_place = float(ratios[row]), Position(piece.index, piece.start + row, 0)

    def _worst_block(self, piece: WeightPiece, worst: NDArray[Any]) -> None:
        row = int(worst[:, 0].argmax())
        if worst[row, 0] > self.peak:
            self.peak, self.peak_place = (
                float(worst[row, 0]),
                Position(piece.index, piece.start + row, int(worst[row, 1])),
            )


def compare(pair: Pair, pool: ThreadPoolExecutor) -> Generator[int, None, TensorError]:
    """Return the error of a tensor, or of half of a joined one; yield the bytes of the file as they are through."""
    kind, stack = pair.candidate.stored, pair.candidate
    error = TensorError(pair.name, kind, pair.nbytes, part=pair.part, pair=pair)
    block, every, done = max(LEAST_BLOCK, ggtypes.by_name(kind).block), stack.count * stack.rows * stack.cols, 0
    for pieces in groups(pair.pieces()):
        for piece, (ours, theirs) in zip(pieces, pool.map(pair.read, pieces), strict=True):
            error.add(piece, ours, theirs, block)
        before, done = done, pair.nbytes * error.values // every
        yield done - before
    return error


def groups(pieces: Iterator[WeightPiece]) -> Iterator[list[WeightPiece]]:
    """Yield pieces by as many as are in memory at a time."""
    return iter(lambda: list(itertools.islice(pieces, HELD)), [])


def judge(error: TensorError, limits: Limits) -> Finding | None:
    """Return what is wrong with a tensor, the gravest first; None when it is as its type allows."""
    limit = limits.of(error.type)
    if error.special:
        return Finding(LEVEL, error.name, f"has {error.special} values that are NaN or infinite")
    for what, found, allowed, place in (
        ("the values are not the reference's: relative RMS error", error.rms, limit.rms, None),
        ("a row is not the reference's: relative RMS error", error.row_rms, limit.row, error.row_place),
        ("a block is not the reference's: largest error by largest value", error.peak, limit.peak, error.peak_place),
    ):
        if exceeds(found, allowed):
            return Finding(
                LEVEL,
                error.name,
                what + _where(error, place),
                f"at most {allowed:.3g} for {error.type}",
                f"{found:.3g}",
            )
    return None


def unit_of(name: str) -> str:
    """Return what a stack's matrices are: "expert", "head", or empty for a tensor that is one matrix."""
    return "head" if name.endswith(HEADS) else "expert" if "_exps." in name else ""


def _where(error: TensorError, place: Position | None) -> str:
    if place is None:
        return ""
    unit = unit_of(error.name)
    index = f"{unit} {place.index}, " if unit else ""
    row = f"{error.part} row {place.row}".lstrip()
    return f" in {index}{row}, column {place.col}"


def _ratio(error: float, size: float) -> float:
    if size:
        return math.sqrt(error / size)
    return math.inf if error else 0.0
