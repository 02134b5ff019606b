"""What has happened to a tensor that is not the reference's: the likeliest mistake, in words.

Only a sample of rows is read: of every expert or head, and of the tensors that it may have been mistaken for; where
rows may be in another order, the matrix of one expert or head, too. A mistake is named only if it explains the sample:
with it, the rows are as near to the reference's as the type of the tensor allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.layout.names import split_name
from verify.comparison import pairs
from verify.levels.weights import unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import GgufWeights, Stack, Weights
    from verify.comparison import Pair
    from verify.levels.weights import TensorError

    Floats = NDArray[np.float64]

ROWS = 8  # of an expert or head, besides the worst
SAMPLE_VALUES = 1 << 23  # of all experts or heads together
MATRIX_VALUES = 1 << 24  # of a matrix that is read whole, to look for rows and columns in another order
NAMED = 3  # experts, heads or rows that a sentence names
WHOLE = 0.02  # a factor that is this near to 1 explains nothing


@dataclass(frozen=True)
class Sides:
    """A tensor of both sides as matrices of experts, heads or neither (`unit`, empty then), and the rows to look at.

    allowed  the relative RMS error of a row that is right
    """

    name: str
    unit: str
    reference: Stack
    candidate: Stack
    rows: NDArray[np.int64]
    allowed: float

    def ours(self, index: int) -> Floats:
        """Return the sampled rows of the reference."""
        return _rows(self.reference, index, self.rows)

    def theirs(self, index: int) -> Floats:
        """Return the sampled rows of the candidate."""
        return _rows(self.candidate, index, self.rows)

    def fits(self, found: Floats, expected: Floats) -> bool:
        """Whether rows are as near to others as the type allows, all together."""
        return _error(found, expected) <= self.allowed


@dataclass(frozen=True)
class Part:
    """Of one expert, head or matrix: the sampled rows that are off, from both sides."""

    sides: Sides
    index: int
    rows: NDArray[np.int64]
    ours: Floats
    theirs: Floats

    @property
    def matrix(self) -> Floats | None:
        """The reference's whole matrix, if it is small enough."""
        stack = self.sides.reference
        return stack.matrix(self.index).astype(np.float64) if stack.rows * stack.cols <= MATRIX_VALUES else None

    @property
    def whole(self) -> bool:
        """Whether all sampled rows are off."""
        return len(self.rows) == len(self.sides.rows)


def likeliest(error: TensorError, reference: Weights, candidate: GgufWeights, allowed: float) -> str | None:
    """Return what a tensor looks like, as a clause; None when nothing that is known explains it."""
    if error.pair is None:
        return None
    sides = _sides(error, error.pair, candidate, allowed)
    off = [part for index in range(sides.candidate.count) if len((part := _part(sides, index)).rows)]
    if not off:
        return None
    mistaken = _other_units(sides, off) if sides.candidate.count > 1 else None
    return mistaken or _other_tensor(error.pair, off, reference, candidate) or _same_for_all(off)


def _sides(error: TensorError, pair: Pair, candidate: GgufWeights, allowed: float) -> Sides:
    unit, split = unit_of(pair.name), _whole
    worst = error.row_place.row
    if not unit and (cut := HEADS.get(split_name(pair.name)[1])) is not None:
        unit, split = "head", lambda stack: cut(stack, candidate.model)
    ours, theirs = split(pair.reference), split(pair.candidate)
    least = max(1, min(ROWS, SAMPLE_VALUES // max(1, theirs.count * theirs.cols)))
    spread = np.linspace(0, theirs.rows - 1, least, dtype=np.int64)
    rows = np.unique(np.append(spread, np.arange(worst, worst + 3) % theirs.rows))
    return Sides(pair.name, unit, ours, theirs, rows, allowed)


def _whole(stack: Stack) -> Stack:
    return stack


def _by_rows(stack: Stack, count: int) -> Stack:
    """Return a matrix as a stack of groups of its rows."""
    rows = stack.rows // count
    return replace(
        stack, count=count, rows=rows, blocks=None,
        read=lambda i, start, stop: stack.read(0, i * rows + start, i * rows + stop),
    )  # fmt: skip


def _by_columns(stack: Stack, count: int) -> Stack:
    """Return a matrix as a stack of groups of its columns."""
    cols = stack.cols // count
    return replace(
        stack, count=count, cols=cols, blocks=None,
        read=lambda i, start, stop: np.ascontiguousarray(stack.read(0, start, stop)[:, i * cols : (i + 1) * cols]),
    )  # fmt: skip


HEADS: dict[str, Callable[[Stack, Any], Stack]] = {  # matrices that hold all heads, and how
    "attn_q.weight": lambda stack, model: _by_rows(stack, model.heads),
    "attn_q_b.weight": lambda stack, model: _by_rows(stack, model.heads),
    "attn_output.weight": lambda stack, model: _by_columns(stack, model.heads),
    "indexer.attn_q_b.weight": lambda stack, model: _by_rows(stack, model.size("index_heads")),
}
SIBLINGS = {  # tensors of one shape in a layer that are mistaken for each other, and what people call them
    "ffn_gate": ("ffn_up", "gate", "up"),
    "ffn_gate_exps": ("ffn_up_exps", "gate", "up"),
    "ffn_gate_shexp": ("ffn_up_shexp", "gate", "up"),
    "attn_norm": ("ffn_norm", "attn_norm", "ffn_norm"),
    "attn_k_b": ("attn_v_b", "attn_k_b", "attn_v_b"),
    "token_embd": ("output", "token_embd", "output"),
    "nextn.enorm": ("nextn.hnorm", "enorm", "hnorm"),
}
SIBLINGS |= {other: (name, theirs, ours) for name, (other, ours, theirs) in SIBLINGS.items()}


def _part(sides: Sides, index: int) -> Part:
    ours, theirs = sides.ours(index), sides.theirs(index)
    size = np.maximum(np.square(ours).sum(axis=1), np.square(ours).sum() / len(ours) * 1e-6)
    with np.errstate(invalid="ignore", divide="ignore"):
        off = ~(np.sqrt(np.square(theirs - ours).sum(axis=1) / size) <= sides.allowed)
    return Part(sides, index, sides.rows[off], ours[off], theirs[off])


# ------------------------------------------------------------------------------- experts or heads for each other


def _other_units(sides: Sides, off: list[Part]) -> str | None:
    """Return which experts or heads have which others' values, if that is what is wrong with all that are off."""
    ours = [sides.ours(index) for index in range(sides.reference.count)]
    found: dict[int, int] = {}
    for part in off:
        theirs = sides.theirs(part.index)
        errors = [np.inf if index == part.index else _error(theirs, each) for index, each in enumerate(ours)]
        best = int(np.argmin(errors))
        if not errors[best] <= sides.allowed:
            return None
        found[part.index] = best
    return _mapped(sides.unit, found, sides.reference.count)


def _mapped(unit: str, found: dict[int, int], count: int) -> str:
    """Return in words which of `count` things have which others' values."""
    (first, its), *rest = found.items()
    if not rest:
        return f"{unit} {first} has {unit} {its}'s values"
    if len(found) == 2 and found.get(its) == first:
        return f"{unit}s {first} and {its} are exchanged"
    shifts = {(index - other) % count for index, other in found.items()}
    named = ", ".join(f"{unit} {index} has {unit} {other}'s values" for index, other in [*found.items()][:NAMED])
    how = f"is shifted by {shifts.pop()}" if len(shifts) == 1 and len(found) > 2 else "is permuted"
    return f"{unit} order {how}: {named}"


# ----------------------------------------------------------------------------------------------- another tensor


def _other_tensor(pair: Pair, off: list[Part], reference: Weights, candidate: GgufWeights) -> str | None:
    """Return which tensor's values are there instead; the sibling's or another layer's."""
    layer, rest = split_name(pair.name)
    for name, ours, theirs in _others(layer, rest, candidate.model.blocks):
        other = _pair(name, pair, reference, candidate)
        if other is None or other.candidate.rows != pair.candidate.rows or other.candidate.cols != pair.candidate.cols:
            continue
        sides = off[0].sides
        cut = _sides_of(sides, other)
        if all(sides.fits(part.theirs, _rows(cut.reference, part.index, part.rows)) for part in off):
            exchanged = all(sides.fits(_rows(cut.candidate, part.index, part.rows), part.ours) for part in off)
            where = _where(off)
            if exchanged:
                return f"{ours} and {theirs}{' of ' + where if where else ''} are exchanged"
            return f"{where or ours} has {theirs}'s values"
    return None


def _others(layer: int | None, rest: str, blocks: int) -> Iterator[tuple[str, str, str]]:
    """Yield the tensors that this one may have been mistaken for, and what both are called in a sentence."""
    stem, _, kind = rest.rpartition(".")
    prefix = "" if layer is None else f"blk.{layer}."
    if stem in SIBLINGS:
        other, ours, theirs = SIBLINGS[stem]
        yield f"{prefix}{other}.{kind}", ours, theirs
    if layer is not None:
        for another in range(blocks):
            if another != layer:
                yield f"blk.{another}.{rest}", f"blk.{layer}", f"blk.{another}"


def _pair(name: str, like: Pair, reference: Weights, candidate: GgufWeights) -> Pair | None:
    """Return the pair of another tensor, None if one of the sides has no such tensor."""
    tensor = candidate.file.tensors.get(name)
    try:
        found = [] if tensor is None else [*pairs(reference, candidate, tensor)]
    except InputError:  # the reference has no such tensor
        return None
    return next((pair for pair in found if pair.part == like.part), None)


def _sides_of(like: Sides, pair: Pair) -> Sides:
    """Return another tensor cut like this one."""
    stack = like.reference
    if pair.reference.count == stack.count:
        return replace(like, reference=pair.reference, candidate=pair.candidate)
    cut = _by_rows if stack.cols == pair.reference.cols else _by_columns
    return replace(like, reference=cut(pair.reference, stack.count), candidate=cut(pair.candidate, stack.count))


# --------------------------------------------------------------------------------- one thing that was done to all


def _same_for_all(off: list[Part]) -> str | None:
    """Return what was done to all parts that are off, tried on every one until one has another explanation."""
    said = _alone(off[0])
    if said is None or not all(_alone(part) == said for part in off[1:]):
        return None
    where = _where(off)
    return f"{where}: {said}" if where else said


def _where(off: list[Part]) -> str:
    """Return which experts, heads or rows are off, empty when all are."""
    sides, first = off[0].sides, off[0]
    units = [part.index for part in off]
    words = []
    if len(units) < sides.candidate.count:
        named = ", ".join(map(str, units[:NAMED])) + (", ..." if len(units) > NAMED else "")
        words.append(f"{sides.unit}{'s' if len(units) > 1 else ''} {named}")
    if not first.whole and len(off) == 1 and len(first.rows) == 1:
        words.append(f"row {first.rows[0]}")
    return ", ".join(words)


def _alone(part: Part) -> str | None:
    for explain in (_zero, _scaled, _offset, _turned, _rows_moved, _columns_moved, _in_another_order):
        if said := explain(part):
            return said
    return None


def _zero(part: Part) -> str | None:
    return None if part.theirs.any() else "the values are all zero"


def _scaled(part: Part) -> str | None:
    size = float(np.square(part.ours).sum())
    factor = float((part.ours * part.theirs).sum()) / size if size else 0.0
    if abs(factor - 1) < WHOLE or not part.sides.fits(part.theirs, factor * part.ours):
        return None
    return f"the values are {_round(factor):g} times the reference's"


def _round(factor: float) -> float:
    """Return the shortest number that is as near to a factor as blocks let it be told."""
    shorter = (float(f"{factor:.{digits}g}") for digits in (1, 2, 3))
    return next((number for number in shorter if abs(number - factor) <= WHOLE * abs(factor)), factor)


def _offset(part: Part) -> str | None:
    distance = float((part.theirs - part.ours).mean())
    left = part.theirs - part.ours - distance
    if np.square(left).sum() > part.sides.allowed**2 * np.square(part.ours - part.ours.mean()).sum():
        return None
    return f"the values are the reference's {'plus' if distance > 0 else 'minus'} {abs(distance):.3g}"


TURNED: tuple[tuple[str, Callable[[Floats], Floats]], ...] = (  # what a matrix may have become, if it has this shape
    ("the matrix is transposed", lambda x: x.T),
    ("the matrix is transposed, under the shape that it should have", lambda x: x.T.reshape(x.shape)),
    ("the matrix is read column by column", lambda x: x.reshape(x.shape, order="F")),
    ("the rows are in reverse order", lambda x: x[::-1]),
    ("the columns are in reverse order", lambda x: x[:, ::-1]),
)


def _turned(part: Part) -> str | None:
    matrix = part.matrix
    if matrix is None or len(matrix) == 1:
        return None
    for said, turn in TURNED:
        turned = turn(matrix)
        if turned.shape == matrix.shape and part.sides.fits(part.theirs, turned[part.rows]):
            return said
    return None


def _rows_moved(part: Part) -> str | None:
    matrix = part.matrix
    if matrix is None or len(matrix) == 1:
        return None
    return _moved("row", part.theirs, matrix, part.rows, part.sides.allowed)


def _columns_moved(part: Part) -> str | None:
    columns = np.unique(np.linspace(0, part.ours.shape[1] - 1, ROWS, dtype=np.int64))
    if len(part.rows) < ROWS // 2:  # too few values to tell a column from another
        return None
    return _moved("column", part.theirs.T[columns], part.ours.T, columns, part.sides.allowed)


def _moved(what: str, found: Floats, known: Floats, places: NDArray[np.int64], allowed: float) -> str | None:
    """Return which rows are where, if every one found is one that is known."""
    sizes = np.maximum(np.linalg.norm(known, axis=1), np.finfo(float).tiny)
    origin = np.argmax(found @ known.T / sizes, axis=1)
    if (origin == places).all() or not _error(found, known[origin]) <= allowed:
        return None
    moved = {int(to): int(source) for to, source in zip(places, origin, strict=True) if to != source}
    return _mapped(what, moved, len(known))


def _in_another_order(part: Part) -> str | None:
    same = part.sides.fits(np.sort(part.theirs, axis=1), np.sort(part.ours, axis=1))
    return "the values are the reference's in another order" if same and len(part.ours) == 1 else None


def _rows(stack: Stack, index: int, rows: NDArray[np.int64]) -> Floats:
    """Return some rows of a matrix in float64, for which neighbours are read together."""
    ends = np.flatnonzero(np.diff(rows) > 1) + 1
    read = [stack.read(index, int(group[0]), int(group[-1]) + 1) for group in np.split(rows, ends)]
    return np.concatenate(read).astype(np.float64)


def _error(found: Floats, expected: Floats) -> float:
    size = float(np.square(expected).sum())
    return float(np.sqrt(np.square(found - expected).sum() / size)) if size else np.inf
