"""Which entries the matrix of a model has, and the sums of each while a layer is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.forward.tensors import shapes
from gguf_mla.importance.exact import Exact, Sums
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import Weights

    Doubles = NDArray[np.float64]

TABLES = ("token_embd.weight", "nextn.embed_tokens.weight")  # are looked up, not multiplied
OUTPUT, EMBEDDINGS, OWN_HEAD = "output.weight", "token_embd.weight", "nextn.shared_head_head.weight"
PIECE = 1 << 18  # values that are squared at a time


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a matrix.

    name      as the matrix has it: tied output weights are the embeddings
    asked     as a forward pass has it
    layer     that multiplies with it, None for the output head
    matrices  experts or heads, 1 for a single matrix
    cols      of each
    """

    name: str
    asked: str
    layer: int | None
    matrices: int
    cols: int

    @property
    def of_experts(self) -> bool:
        """Whether each matrix has its own count; otherwise all rows are one, as llama-imatrix stores those of heads."""
        return self.asked.endswith("_exps.weight")

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of its sums in a file."""
        return (self.matrices, self.cols) if self.of_experts else (1, self.matrices * self.cols)

    @property
    def counts(self) -> int:
        """How many counts it has."""
        return self.matrices if self.of_experts else 1


def entries(weights: Weights, *, output: bool, prediction: bool) -> dict[str, Entry]:
    """Return the entries by the names that a forward pass has for them.

    output      with the output head's
    prediction  with those of multi-token prediction
    """
    model, found = weights.model, {}
    layers = model.blocks if prediction else model.layers
    for name, shape in shapes(model).items():
        layer, rest = split_name(name)
        if len(shape) < 2 or rest in TABLES or name == OUTPUT or (layer or 0) >= layers:
            continue
        if rest == OWN_HEAD and not weights.holds(name):
            continue
        found[name] = Entry(name, name, layer, shape[0] if len(shape) == 3 else 1, shape[-1])
    if output:
        found[OUTPUT] = Entry(EMBEDDINGS if model.tied else OUTPUT, OUTPUT, None, 1, model.hidden)
    return found


@dataclass
class Collector:
    """An observer of a forward pass: adds up what every entry's matrices are multiplied with, in float64.

    A product with a tensor that has no entry is not looked at.
    """

    entries: dict[str, Entry]
    _sums: dict[str, tuple[Doubles, Doubles, NDArray[np.int64]]] = field(default_factory=dict)
    _last: tuple[Any, Doubles, Doubles] | None = None

    def __call__(self, name: str, index: int, rows: Any) -> None:
        """Add rows [N, cols] that a matrix of a tensor is about to be multiplied with."""
        entry = self.entries.get(name)
        if entry is None:
            return
        if name not in self._sums:
            shape = entry.matrices, entry.cols
            self._sums[name] = np.zeros(shape), np.zeros(shape), np.zeros(entry.matrices, np.int64)
        squares, plain, counts = self._sums[name]
        added = self._added(rows)
        squares[index] += added[0]
        plain[index] += added[1]
        counts[index] += len(rows)

    def _added(self, rows: Any) -> tuple[Doubles, Doubles]:
        """Return the sums over rows; several matrices in turn are multiplied with the same ones."""
        if self._last is None or not _same(rows, self._last[0]):
            self._last = (rows, *sums_of(rows))
        return self._last[1:]

    def done(self, entry: Entry) -> Sums:
        """Return the sums of an entry, and forget them; InputError where a value was not finite."""
        shape = entry.matrices, entry.cols
        empty = np.zeros(shape), np.zeros(shape), np.zeros(entry.matrices, np.int64)
        squares, plain, counts = self._sums.pop(entry.asked, empty)
        self._last = None
        _check(entry, squares)
        tokens = counts if entry.of_experts else counts[:1]
        return Sums(
            Exact.of(squares.reshape(entry.shape)), Exact.of(plain.reshape(entry.shape)), tokens.astype(np.float64)
        )


def _check(entry: Entry, squares: Doubles) -> None:
    with np.errstate(over="ignore"):
        sound = np.isfinite(squares.astype(np.float32)).all(axis=1)
    if sound.all():
        return
    where = "" if entry.layer is None else f" in layer {entry.layer}"
    which = f", {'expert' if entry.of_experts else 'head'} {int(np.argmin(sound))}" if entry.matrices > 1 else ""
    raise InputError(
        f"is multiplied{where} with values that are not finite numbers, or too large{which}",
        tensor=entry.name,
        remedy="A weight before it is damaged, or the model does not fit float32: `gguf-mla verify` finds which",
    )


def _same(rows: Any, other: Any) -> bool:
    """Whether two arrays are the same memory; the other one is held, so nothing else can lie there."""
    return rows.shape == other.shape and _place(rows) == _place(other)


def _place(rows: Any) -> tuple[Any, ...]:
    return rows.ctypes.data, rows.strides


def sums_of(rows: Any) -> tuple[Doubles, Doubles]:
    """Return the sums of squares and of values over rows [N, cols], float64 [cols]."""
    squares, plain = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for piece in _pieces(rows):
        plain += piece.sum(axis=0)
        squares += np.einsum("ij,ij->j", piece, piece)
    return squares, plain


def _pieces(rows: Any) -> Iterator[Doubles]:
    step = max(1, PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        yield np.asarray(rows[start : start + step], np.float64)
