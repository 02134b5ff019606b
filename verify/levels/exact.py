"""Whether the file is, byte for byte, what this encoder makes of the reference with the file's own types.

ggml's default build and this project's encoders write the same bytes, so a file made from the reference with the same
settings is the same in every block, and a single bit that has changed since shows. How the values came to the encoder
is not in the file: each way is tried on the first rows of a tensor, and the best is kept for the rest.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.codec.encoding import encodings
from gguf_mla.forward.tensors import GgufWeights
from verify.comparison import WeightPiece
from verify.findings import Finding, Grade
from verify.levels.weights import Position, groups, unit_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.forward.tensors import Weights
    from gguf_mla.importance.matrix import Imatrix
    from verify.comparison import Pair

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

LEVEL = "exact"
FIRST_ROWS = 64  # on which the ways are tried
FEW = 0.02  # of a tensor's blocks; more than these are not damage, the tensor was made otherwise


@dataclass(frozen=True)
class Way:
    """How values came to the encoder.

    via       what they were rounded to before: a file of this type was quantized
    weighted  whether the importance that is given was used
    search    whose search for scales
    before    what the keys were quantized as in an attn_kv_b, before they were transposed
    copied    whether the bytes are the reference's own
    """

    via: str | None = None
    weighted: bool = False
    search: str = "ggml"
    before: str | None = None
    copied: bool = False


@dataclass
class Sameness:
    """How much of a tensor, or of half of a joined one, is what the encoder writes.

    blocks   how many there are; values, where a type has no blocks
    changed  how many are not the encoder's
    first    where the first of these lies
    """

    name: str
    type: str
    part: str
    way: Way
    blocks: int = 0
    changed: int = 0
    first: Position | None = None

    def add(self, piece: WeightPiece, expected: Bytes, found: Bytes) -> None:
        """Take in the rows of a piece, as encoded and as stored."""
        kind = ggtypes.by_name(self.type)
        apart = (expected != found).reshape(len(found), -1, kind.bytes).any(axis=2)
        self.blocks += apart.size
        self.changed += int(apart.sum())
        if self.first is None and apart.any():
            row, block = np.unravel_index(int(apart.argmax()), apart.shape)
            self.first = Position(piece.index, piece.start + int(row), int(block) * kind.block)


def compare(encoder: Encoder, pool: ThreadPoolExecutor, likely: Way | None) -> Generator[int, None, Sameness]:
    """Return how much of a tensor is what the encoder makes of the reference; yield the bytes as they are through.

    `likely` is the way that is tried first.
    """
    pair = encoder.pair
    ways = sorted(encoder.ways(), key=lambda way: way != likely)
    same, block = Sameness(pair.name, pair.candidate.stored, pair.part, _best(encoder, ways)), encoder.block
    every, done = pair.candidate.count * pair.candidate.rows * pair.candidate.cols // block, 0
    for pieces in groups(pair.pieces()):
        encoded = pool.map(functools.partial(encoder.encoded, way=same.way), pieces)
        for piece, expected in zip(pieces, encoded, strict=True):
            same.add(piece, expected, encoder.stored(piece))
        before, done = done, pair.nbytes * same.blocks // every
        yield done - before
    return same


def _best(encoder: Encoder, ways: list[Way]) -> Way:
    """Return the way by which the fewest of the first rows differ, and the first of several."""
    piece = WeightPiece(0, 0, min(FIRST_ROWS, encoder.pair.candidate.rows))
    if encoder.pair.keys:
        piece = next(encoder.pair.pieces())
    found = encoder.stored(piece)
    best, least = ways[0], found.size + 1
    for way in ways:
        apart = int((encoder.encoded(piece, way) != found).sum())
        if apart < least:
            best, least = way, apart
        if not apart:
            break
    return best


@dataclass(frozen=True)
class Encoder:
    """Encodes pieces of the reference as the candidate stores them."""

    pair: Pair
    tensor: GgufTensor
    reference: Weights
    candidate: GgufWeights
    imatrix: Imatrix | None

    @property
    def block(self) -> int:
        """How many values a block of the tensor has."""
        return ggtypes.by_name(self.tensor.type).block

    def ways(self) -> list[Way]:
        """Return every way that a tensor of this type may have come by."""
        kind = ggtypes.by_name(self.tensor.type)
        copied = [Way(copied=True)] if self._original() is not None else []
        if kind.block == 1:
            return [*copied, Way()]
        known = [(each.search, each.weighted) for each in encodings(kind)]
        weights = self._importance()
        usable = [(search, weighted) for search, weighted in known if weights is not None or not weighted]
        before = [None, self._sibling()] if self.pair.keys else [None]
        found = itertools.product(dict.fromkeys(before), usable, ("BF16", None, "F16"))
        return [*copied, *(Way(via, weighted, search, was) for was, (search, weighted), via in found)] or [Way()]

    def stored(self, piece: WeightPiece) -> Bytes:
        """Return a piece as the file has it, uint8 [rows, row_bytes]."""
        return self.tensor.read(*self._rows(piece, self.tensor))

    def encoded(self, piece: WeightPiece, way: Way) -> Bytes:
        """Return a piece of the reference encoded in a way."""
        original = self._original() if way.copied else None
        if original is not None:
            return original.read(*self._rows(piece, original))
        values = self.pair.reference.read(piece.index, piece.start, piece.stop)
        rows, source = _rounded(values, way.via)
        if way.before is not None:
            rows, source = _requantized(values, way), "F32"
        weights = self._importance() if way.weighted else None
        row = None if weights is None else weights[piece.index % len(weights)]
        if row is None and ggtypes.by_name(self.tensor.type).needs_importance:
            row = np.ones(values.shape[1], np.float32)
        kind = self.tensor.type
        return codec.encode(rows, kind, source=source, importance=row, search=way.search, check=False)

    def _rows(self, piece: WeightPiece, tensor: GgufTensor) -> tuple[int, int]:
        rows = tensor.rows // self.pair.candidate.count
        half = rows - self.pair.candidate.rows if self.pair.later else 0
        first = piece.index * rows + half
        return first + piece.start, first + piece.stop

    def _original(self) -> GgufTensor | None:
        """Return the tensor of a GGUF reference that was copied if the bytes are the same."""
        if not isinstance(self.reference, GgufWeights):
            return None
        found = self.reference.file.tensors.get(self.pair.name)
        return (
            found if found is not None and (found.type, found.shape) == (self.tensor.type, self.tensor.shape) else None
        )

    def _importance(self) -> NDArray[np.float32] | None:
        return None if self.imatrix is None else self.imatrix.rows(self.tensor.name, self.tensor.shape)

    def _sibling(self) -> str | None:
        """Return the type that the values' half of a head has: that of the attn_kv_b that both were."""
        found = self.candidate.file.tensors.get(self.pair.name.replace("attn_k_b", "attn_v_b"))
        fits = found is not None and ggtypes.by_name(found.type).fits(self.pair.candidate.rows)
        return found.type if found is not None and fits and not ggtypes.by_name(found.type).needs_importance else None


def _rounded(values: Floats, via: str | None) -> tuple[NDArray[np.generic], str]:
    if via is None:
        return values, "F32"
    return codec.encode(values, via, check=False).view(np.uint16 if via == "BF16" else np.float16), via


def _requantized(values: Floats, way: Way) -> Floats:
    """Return keys [r, n] as they come out of an attn_kv_b whose rows lie along the rank."""
    rows, source = _rounded(np.ascontiguousarray(values.T), way.via)
    kind = str(way.before)
    return np.ascontiguousarray(codec.decode(codec.encode(rows, kind, source=source, check=False), kind).T)


def judge(found: Iterable[Sameness]) -> Iterator[Finding]:
    """Yield what is not byte for byte the encoder's: the file, types or tensors made otherwise, or damaged blocks."""
    by_type: dict[str, list[Sameness]] = {}
    for same in found:
        by_type.setdefault(same.type, []).append(same)
    otherwise = {name: each for name, each in by_type.items() if all(_made_otherwise(same) for same in each)}
    coded = [name for name in by_type if ggtypes.by_name(name).block > 1]
    if coded and all(name in otherwise for name in coded):
        count = sum(len(by_type[name]) for name in coded)
        what = "was not made from this reference with these settings: no quantized tensor has the encoder's bytes"
        yield Finding(LEVEL, "the file", what, None, f"{count} tensors", Grade.DIFFERS)
        by_type = {name: each for name, each in by_type.items() if name not in otherwise}
    for each in by_type.values():
        changed = [same for same in each if same.changed]
        yield from (_finding(same, alone=len(changed) == 1) for same in changed)


def _made_otherwise(same: Sameness) -> bool:
    return same.changed > FEW * same.blocks + 1


def _finding(same: Sameness, *, alone: bool) -> Finding:
    assert same.first is not None  # noqa: S101 - it has changed
    unit = unit_of(same.name)
    place = f"{unit + f' {same.first.index}, ' if unit else ''}row {same.first.row}, column {same.first.col}"
    if _made_otherwise(same):
        what, grade = "was not made from this reference with these settings", Grade.DIFFERS
    elif alone:
        what, grade = "has blocks that the encoder does not write, and no other tensor of its type has", Grade.WRONG
    else:
        what, grade = "has blocks that the encoder does not write, as from a build that rounds otherwise", Grade.DIFFERS
    kind = "blocks" if ggtypes.by_name(same.type).block > 1 else "values"
    found = f"{same.changed} of {same.blocks} {kind}, the first in {place}"
    return Finding(LEVEL, same.name, what, f"the bytes of {same.type}", found, grade)
