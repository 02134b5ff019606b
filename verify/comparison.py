"""Which matrices are held against which: a tensor of the file in its own axes, and the reference in the same.

A legacy attn_kv_b has its blocks along the rank in both halves. Its key half is therefore compared as it lies, not as
the transposed attn_k_b that an MLA file would have: errors of blocks are bounded in the axes of the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.forward.tensors import FUSED, LEGACY, LEGACY_HALVES, GgufWeights
from gguf_mla.layout.names import split_name
from verify.limits import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.forward.tensors import Stack, Weights

    Floats = NDArray[np.float32]

PIECE_VALUES = 1 << 20
ALIGNED = 256  # rows; a piece of a matrix whose columns may hold blocks begins with a whole one
KEYS, VALUES = "key", "value"
PARTS = {LEGACY: (KEYS, VALUES), FUSED: ("gate", "up")}  # of the rows of each head or expert, the first and the rest


@dataclass(frozen=True)
class WeightPiece:
    """Rows `start:stop` of matrix number `index` of a tensor."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pair:
    """A tensor of the candidate, or half of a joined one, and the same of the reference, with the same axes.

    name     the tensor in the file
    part     which half of each head's or expert's rows it is, empty for a whole tensor
    later    whether it is the later half
    nbytes   of the file
    keys     whether it holds the keys of heads, which are transposed when a file changes its layout
    blocks   the type of a GGUF reference, None for a checkpoint, whose values are what is right
    turned   whether the reference's blocks lie along this pair's columns
    """

    name: str
    part: str
    nbytes: int
    reference: Stack
    candidate: Stack
    keys: bool = False
    blocks: str | None = None
    turned: bool = False
    later: bool = False

    def read(self, piece: WeightPiece) -> tuple[Floats, Floats]:
        """Return a piece of the reference and of the candidate."""
        place = piece.index, piece.start, piece.stop
        return self.reference.read(*place), self.candidate.read(*place)

    def pieces(self) -> Iterator[WeightPiece]:
        """Yield what to read at a time, about PIECE_VALUES values of one matrix."""
        stack = self.candidate
        step = max(1, PIECE_VALUES // stack.cols)
        if self.keys:
            step = max(1, step // ALIGNED) * ALIGNED
        for index in range(stack.count):
            for start in range(0, stack.rows, step):
                yield WeightPiece(index, start, min(start + step, stack.rows))


def pairs(reference: Weights, candidate: GgufWeights, tensor: GgufTensor) -> Iterator[Pair]:
    """Yield what a tensor of the candidate is compared with: each of the model's tensors that it stands for."""
    rest = split_name(tensor.name)[1]
    legacy, parts = rest == LEGACY, PARTS.get(rest, ())
    for number, name in enumerate(candidate.answers(tensor.name)):
        ours, theirs = reference.stack(name), candidate.stack(name)
        keys = name.endswith(LEGACY_HALVES[0])
        if legacy and keys:
            ours, theirs = transposed(ours), transposed(theirs)
        share = theirs.count * theirs.rows * theirs.cols / math.prod(tensor.shape)
        part, shown = (parts[number], tensor.name) if parts else ("", name)
        pair = Pair(shown, part, round(tensor.nbytes * share), ours, theirs, keys, later=bool(parts) and number > 0)
        if isinstance(reference, GgufWeights) and ours.stored in TABLE:
            pair = replace(pair, blocks=ours.stored, turned=keys and legacy == (name in reference.file.tensors))
        yield pair


def transposed(stack: Stack) -> Stack:
    """Return a stack of transposed matrices, each read whole: those of heads, which are small."""

    def read(index: int, start: int, stop: int) -> Floats:
        return np.ascontiguousarray(stack.matrix(index).T[start:stop])

    return replace(stack, rows=stack.cols, cols=stack.rows, read=read, blocks=None)
