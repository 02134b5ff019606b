"""Which entries the matrix of a model has, and the sums of each while a layer is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from gguf_mla.errors import InputError
from gguf_mla.forward.place import as_array
from gguf_mla.forward.tensors import shapes
from gguf_mla.importance.exact import Exact, Sums
from gguf_mla.importance.names import GROUPED, kind_of
from gguf_mla.layout.names import split_name
from quantize.imatrix.added import sums_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.forward.tensors import Weights

    Doubles = NDArray[np.float64]
    Tensor = torch.Tensor

# Are looked up or added, not multiplied with.
TABLES = (
    "nextn.embed_tokens.weight", "ffn_gate_tid2eid.weight", "attn_compressor_ape.weight",
    "indexer_compressor_ape.weight",
)  # fmt: skip
OUTPUT, EMBEDDINGS, OWN_HEAD = "output.weight", "token_embd.weight", "nextn.shared_head_head.weight"


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a matrix.

    name      as the matrix has it: tied output weights are the embeddings
    asked     as a forward pass has it
    layer     that multiplies with it, None for the output head
    matrices  experts or heads, groups of rows with an input of their own, 1 for a single matrix
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
        if len(shape) < 2 or layer is None or layer >= layers or rest in TABLES:
            continue
        if rest == OWN_HEAD and not weights.holds(name):
            continue
        stacked = shape[0] if len(shape) == 3 else 1
        matrices = model.size("groups") if kind_of(name) in GROUPED else stacked
        found[name] = Entry(name, name, layer, matrices, shape[-1])
    if output:
        found[OUTPUT] = Entry(EMBEDDINGS if model.tied else OUTPUT, OUTPUT, None, 1, model.hidden)
    return found


@dataclass
class Collector:
    """An observer of a forward pass: adds up what every entry's matrices are multiplied with, in float64.

    A product with a tensor that has no entry is not looked at.
    """

    entries: dict[str, Entry]
    _sums: dict[str, tuple[Tensor, Tensor, list[int]]] = field(default_factory=dict)
    _last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, name: str, index: int, rows: Tensor) -> None:
        """Add rows [N, cols] that a matrix of a tensor is about to be multiplied with."""
        entry = self.entries.get(name)
        if entry is None:
            return
        if name not in self._sums:
            self._sums[name] = _nothing(entry, rows.device)
        squares, plain, counts = self._sums[name]
        added = self._added(rows)
        squares[index] += added[0]
        plain[index] += added[1]
        counts[index] += len(rows)

    def _added(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over rows; several matrices in turn are multiplied with the same ones."""
        if self._last is None or not _same(rows, self._last[0]):
            self._last = (rows, *sums_of(rows))
        return self._last[1:]

    def done(self, entry: Entry) -> Sums:
        """Return the sums of an entry, and forget them; InputError where a value was not finite."""
        if entry.asked not in self._sums:
            self._sums[entry.asked] = _nothing(entry)
        squares, plain, counts = self._sums.pop(entry.asked)
        self._last = None
        found = as_array(squares)
        _check(entry, found)
        tokens = np.array(counts if entry.of_experts else counts[:1], np.float64)
        shape = entry.shape
        return Sums(Exact.of(found.reshape(shape)), Exact.of(as_array(plain).reshape(shape)), tokens)


def _nothing(entry: Entry, device: torch.device | None = None) -> tuple[Tensor, Tensor, list[int]]:
    """Return the sums of squares and of values, and the counts, before anything is added."""
    squares, plain = torch.zeros(2, entry.matrices, entry.cols, dtype=torch.float64, device=device)
    return squares, plain, [0] * entry.matrices


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


def _same(rows: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory; the other one is held, so nothing else can lie there."""
    return rows.shape == other.shape and rows.data_ptr() == other.data_ptr() and rows.stride() == other.stride()
