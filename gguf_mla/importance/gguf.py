"""Importance matrices in GGUF form, as llama-imatrix lays them out: read and written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gguf_mla.container.values import Kind, Value, array, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import SUMS as SUMS_AT_MOST
from gguf_mla.files.bounds import bounded
from gguf_mla.files.guard import check_free
from gguf_mla.files.output import OutputFile
from gguf_mla.importance.entries import COUNTS, PLAIN, SUMS, Contents, Made, StoredSums, check_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gguf_mla.container.reader import GgufFile, GgufTensor

PREDICTORS = "imatrix.n_layer_nextn"


class Written(Protocol):
    """A file that knows how to write itself."""

    @property
    def size(self) -> int:
        """How many bytes it has."""

    def write(self, file: OutputFile) -> None:
        """Write all of it; MachineError when that fails."""


def contents_of(file: GgufFile, path: Path) -> Contents:
    """Return what a matrix in GGUF form holds, `file` being opened from `path`; InputError where it is not sound."""
    sums, counts, plain = (_by_suffix(file, suffix) for suffix in (SUMS, COUNTS, PLAIN))
    if file.metadata.get("general.type", "imatrix") != "imatrix" or not sums:
        raise InputError("is a GGUF file, but not an importance matrix", file=path)
    for name in sums.keys() ^ counts.keys():
        raise InputError("has sums without counts or counts without sums", file=path, tensor=name)
    entries = {name: _gguf_entry(name, tensor, counts[name], plain.get(name)) for name, tensor in sums.items()}
    chunk_count, chunk_size = _number(file, "imatrix.chunk_count"), _number(file, "imatrix.chunk_size")
    return Contents(path, _datasets(file), chunk_count, chunk_size, entries, _number(file, PREDICTORS))


def _by_suffix(file: GgufFile, suffix: str) -> dict[str, GgufTensor]:
    return {name.removesuffix(suffix): tensor for name, tensor in file.tensors.items() if name.endswith(suffix)}


def _gguf_entry(name: str, sums: GgufTensor, counts: GgufTensor, plain: GgufTensor | None) -> StoredSums:
    path = sums.file.name
    for tensor in (sums, counts, plain):
        if tensor is not None and tensor.type != "F32":
            raise InputError("has another type", file=path, tensor=tensor.name, expected="F32", found=tensor.type)
    length, rows = math.prod(sums.shape), math.prod(counts.shape)
    bounded(length, SUMS_AT_MOST, "the number of importance values", file=path, tensor=name)
    bounded(rows, length, "the number of counts", at_least=1, file=path, tensor=name)
    if length % rows:
        raise InputError(
            "has sums that are not the same number for every count",
            file=path,
            tensor=name,
            expected=f"a multiple of {rows}",
            found=length,
        )
    if plain is not None and math.prod(plain.shape) != length:
        found = math.prod(plain.shape)
        raise InputError("has another number of values", file=path, tensor=plain.name, expected=length, found=found)
    numbers = counts.file.read(counts.offset, counts.nbytes).view(np.float32)
    check_values(numbers, path, counts.name, "count")
    # Rounded as llama-quantize does it: a count is a whole number that a file can only store as float32.
    rounded = np.floor(numbers.astype(np.float64) + 0.5)
    return StoredSums(sums.file, name, sums.offset, length, rounded, plain=None if plain is None else plain.offset)


def _datasets(file: GgufFile) -> tuple[str, ...]:
    value = file.values.get("imatrix.datasets", array(Kind.STRING, []))
    if value.item is not Kind.STRING:
        raise InputError("has no list of names under 'imatrix.datasets'", file=file.path)
    return tuple(value.data)


def _number(file: GgufFile, key: str) -> int:
    number = file.metadata.get(key, 0)
    if not isinstance(number, int) or not 0 <= number < 2**31:
        raise InputError(f"has no count under {key!r}", file=file.path, expected="0 to 2147483647", found=number)
    return number


class MatrixFile:
    """An importance matrix in GGUF form that is to be written, as llama-imatrix lays it out.

    entries      by tensor name; sums are [n, cols] and counts [n], n experts or heads
    datasets     names, not paths, of what the model was run over
    chunk_count  how many chunks of text, each of `chunk_size` tokens
    predictors   how many of the model's last layers are of multi-token prediction
    size         how many bytes it will have
    """

    def __init__(
        self,
        entries: Mapping[str, Made],
        *,
        datasets: Sequence[str],
        chunk_count: int,
        chunk_size: int,
        predictors: int = 0,
    ) -> None:
        self._entries = entries
        specs = [
            spec
            for name, entry in sorted(entries.items())
            for spec in _specs(name, entry.shape, entry.counts.size)[: entry.arrays]
        ]
        self._layout = lay_out(metadata_of(datasets, chunk_count, chunk_size, predictors), specs)
        self.size = self._layout.size

    def write(self, file: OutputFile) -> None:
        """Write all of it; MachineError when that fails."""
        file.write(np.frombuffer(self._layout.head, np.uint8), 0)
        arrays = (data for name in sorted(self._entries) for data in self._entries[name].make())
        for data, offset in zip(arrays, self._layout.offsets, strict=True):
            file.write(np.ascontiguousarray(data, np.float32), offset)


def metadata_of(
    datasets: Sequence[str], chunk_count: int, chunk_size: int, predictors: int = 0, kind: str = "imatrix"
) -> dict[str, Value]:
    """Return what a matrix says of itself, with the three keys that llama-quantize insists on."""
    keys = {
        "general.type": string(kind),
        "imatrix.datasets": array(Kind.STRING, list(datasets)),
        "imatrix.chunk_count": u32(chunk_count),
        "imatrix.chunk_size": u32(chunk_size),
    }
    return keys | ({PREDICTORS: u32(predictors)} if predictors else {})


def matrix_specs(name: str, shape: tuple[int, ...], counts: int) -> list[TensorSpec]:
    """Return the tensors of an entry with sums [n, cols], in the order in which llama-imatrix stores them."""
    return _specs(name, stored_shape(shape), counts)


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return how llama-imatrix stores sums [n, cols]: without a leading 1."""
    return shape[1:] if shape[0] == 1 else shape


def _specs(name: str, shape: tuple[int, ...], counts: int) -> list[TensorSpec]:
    rows = (counts,) if len(shape) == 1 else (counts, 1)
    return [TensorSpec(name + suffix, rows if suffix == COUNTS else shape, "F32") for suffix in (SUMS, COUNTS, PLAIN)]


def write_matrix(path: Path, matrix: Written, *, overwrite: bool = False) -> None:
    """Write what knows its size and how to write itself; InputError when another file is in the way."""
    check_free(path, overwrite=overwrite)
    with OutputFile(path, matrix.size, overwrite=overwrite) as file:
        matrix.write(file)
        file.finish()
        file.commit()
