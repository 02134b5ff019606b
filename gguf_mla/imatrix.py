"""Importance matrices: how much each input column of a weight matters when it is rounded.

llama-imatrix runs a model over a text and adds up, for every weight and column, the squares of what the weight is
multiplied with, together with how many tokens were added: `importance = sum / count`, one row per expert or head.
Files of both of its formats are read, GGUF and the older `.dat`, by position and one tensor at a time: a matrix for
DeepSeek-V3 holds 250 million sums (1.0 GB), its largest tensor 1.8 million (7.3 MB).
"""

from __future__ import annotations

import math
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.container.reader import GgufFile, GgufTensor, open_gguf
from gguf_mla.container.values import Kind, Value, array, string, u32
from gguf_mla.container.writer import MAGIC, TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.files import InputFile, OutputFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# The input of a legacy attn_kv_b is the normalised latent, which is also what attn_v_b is multiplied with, in every
# head. The input of attn_k_b is a head's query: nothing in a legacy file says anything about it.
STAND_INS = {"attn_v_b": "attn_kv_b"}
DEFAULT_CHUNK_SIZE = 512  # tokens; llama-imatrix's own where no file says
RECENT = 4  # tensors kept, so that threads on chunks of the same tensor read it once
MAX_NAME_BYTES = 1024
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class _Sums:
    """Where the sums of one tensor lie in one file, and over how many tokens (or calls) each row was taken.

    `counts` is float64 [n] of whole numbers, `unit` what both sums and counts are multiplied by before merging.
    """

    file: InputFile
    name: str
    offset: int
    length: int
    counts: NDArray[np.float64]
    unit: int = 1

    def read(self) -> NDArray[np.float32]:
        """Return the sums as float32 [length]; InputError for one that is no finite number of at least 0."""
        values = self.file.read(self.offset, 4 * self.length).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # found by the check
            values *= np.float32(self.unit)
        _check_values(values, self.file.path, self.name, "importance")
        return values


@dataclass(frozen=True)
class _Contents:
    """What one file holds; `chunk_size` is None for a `.dat` file, which counts calls instead of tokens."""

    path: Path
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int | None
    entries: Mapping[str, _Sums]


def read_imatrix(
    paths: Sequence[Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    stand_ins: Mapping[str, str] = STAND_INS,
) -> Imatrix:
    """Open importance files and find the tensors in them; the sums stay on the disk until they are asked for.

    paths      GGUF or `.dat` files, merged as `sum / count = Σ sums / Σ counts`
    include    only tensors whose name in the files contains one of these; not together with `exclude`
    exclude    no tensor whose name contains one of these
    stand_ins  which tensor's importance serves one that has none, by the part of the name between two dots

    Raises InputError for a file that is not sound, or when files disagree about a tensor's size.
    """
    if not paths:
        raise InputError("no importance file is named")
    if include and exclude:
        raise InputError("importance can be limited to tensors or kept from tensors, not both at once")
    contents = [_open(path) for path in paths]
    entries = _merged(contents)
    kept = [name for name in entries if not _matches(name, exclude) and (not include or _matches(name, include))]
    return Imatrix(contents, {name: entries[name] for name in kept}, exclude, stand_ins)


class Imatrix:
    """One or several importance files as one; made by `read_imatrix`, usable from any number of threads.

    `names` are the tensors it has, without those filtered out; `files` the paths, `datasets` and `chunk_count` what and
    how much of it the matrix was computed on, `chunk_size` the tokens of a chunk.
    """

    def __init__(
        self,
        contents: Sequence[_Contents],
        entries: Mapping[str, Sequence[_Sums]],
        exclude: Sequence[str],
        stand_ins: Mapping[str, str],
    ) -> None:
        self.names, self.files = tuple(entries), tuple(content.path for content in contents)
        self.datasets = tuple(dataset for content in contents for dataset in content.datasets)
        self.chunk_count = sum(content.chunk_count for content in contents)
        self.chunk_size = next((size for c in contents if (size := c.chunk_size)), DEFAULT_CHUNK_SIZE)
        self._entries, self._exclude, self._stand_ins = entries, exclude, stand_ins
        self._lock, self._recent = threading.Lock(), lru_cache(maxsize=RECENT)(self._importance)

    def rows(self, name: str, shape: Sequence[int]) -> NDArray[np.float32] | None:
        """Return the importance of a tensor as float32 [n, cols], one row per expert or head, or None if there is none.

        `shape` is the tensor's, [..., rows, cols], where the leading dimensions make n. A row that saw no token is all
        1. The array is shared: do not change it. InputError for another number of values, or one that is no importance.
        """
        entry = self._entry(name)
        if entry is None:
            return None
        with self._lock:
            values = self._recent(entry)
        count, cols = math.prod(shape[:-2]), shape[-1]
        if entry != name and values.size == cols:
            return np.tile(values, (count, 1))
        if values.size != count * cols:
            raise InputError(
                f"the importance{'' if entry == name else ' of ' + entry} does not fit the tensor",
                file=self._entries[entry][0].file.path,
                tensor=name,
                expected=f"{count} rows of {cols} values",
                found=f"{values.size} values",
                remedy="Use a matrix that was made from this model, or exclude this tensor from it",
            )
        return values.reshape(count, cols)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` for which there is no importance."""
        return [name for name in names if self._entry(name) is None]

    def unseen(self, names: Iterable[str]) -> dict[str, int]:
        """Return how many rows (experts) saw no token and are taken as all 1, by tensor, where there are any."""
        zeros = {name: int((self._counts(entry) == 0).sum()) for name in names if (entry := self._entry(name))}
        return {name: count for name, count in zeros.items() if count}

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Read the importance of every tensor once, so that what is wrong is found before the work begins."""
        for name, shape in shapes.items():
            self.rows(name, shape)

    def metadata(self) -> dict[str, Value]:
        """Return the `quantize.imatrix.*` keys of a file quantized with this matrix, typed as llama-quantize has them.

        File and dataset are given by their base names, because no output holds a path.
        """
        if not self.names:
            return {}
        values = {"quantize.imatrix.file": string(", ".join(path.name for path in self.files))}
        if self.datasets:
            values["quantize.imatrix.dataset"] = string(re.split(r"[/\\]", self.datasets[0].rstrip("/\\"))[-1])
        values["quantize.imatrix.entries_count"] = u32(len(self.names))
        if self.chunk_count:
            values["quantize.imatrix.chunks_count"] = u32(self.chunk_count)
        return values

    def _entry(self, name: str) -> str | None:
        """Name the entry that serves a tensor: its own, or one that stands in."""
        if name in self._entries:
            return name
        other = name
        for wanted, stand_in in self._stand_ins.items():
            other = other.replace(f".{wanted}.", f".{stand_in}.")
        return other if other in self._entries and not _matches(name, self._exclude) else None

    def _counts(self, entry: str) -> NDArray[np.float64]:
        """Add up the counts of the files; one count stands for all rows."""
        stored = self._entries[entry]
        total = np.zeros(max(len(sums.counts) for sums in stored))
        for sums in stored:
            total += sums.counts * sums.unit
        return total

    def sums(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the sums of one of `names`, float32 [n, cols], and its counts [n, 1], of all files together."""
        first, *others = self._entries[name]
        values = first.read()
        with np.errstate(over="ignore"):
            for other in others:
                values += other.read()
        if others:
            _check_values(values, first.file.path, name, "merged importance")
        counts = self._counts(name).astype(np.float32)[:, None]
        return values.reshape(len(counts), -1), counts

    def _importance(self, entry: str) -> NDArray[np.float32]:
        rows, counts = self.sums(entry)
        np.divide(rows, counts, out=rows, where=counts > 0)
        rows[counts[:, 0] == 0] = 1
        return rows.reshape(-1)


def _merged(contents: Sequence[_Contents]) -> dict[str, list[_Sums]]:
    """Collect what the files hold by tensor; InputError when they disagree about its size."""
    entries: defaultdict[str, list[_Sums]] = defaultdict(list)
    call = _tokens_per_call(contents)
    for content in contents:
        for name, sums in content.entries.items():
            entries[name].append(replace(sums, unit=call) if content.chunk_size is None else sums)
    for name, stored in entries.items():
        if len({sums.length for sums in stored}) > 1 or len({len(sums.counts) for sums in stored} - {1}) > 1:
            raise InputError(
                "files that are to be merged differ in size",
                tensor=name,
                expected="the same number of values and counts",
                found="; ".join(f"{sums.length} and {len(sums.counts)} in {sums.file.path}" for sums in stored),
                remedy="Merge only matrices of the same model",
            )
    return dict(entries)


def _tokens_per_call(contents: Sequence[_Contents]) -> int:
    """How many tokens a call of a `.dat` file counts for; 1 among such files alone, where it cancels out."""
    sizes = [content.chunk_size for content in contents if content.chunk_size is not None]
    return next(filter(None, sizes), DEFAULT_CHUNK_SIZE) if sizes else 1


def _matches(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def _check_values(values: NDArray[np.float32], path: Path, name: str, what: str) -> None:
    sound = (values >= 0) & (values < np.inf)
    if not sound.all():
        position = int(np.argmin(sound))
        raise InputError(
            f"holds {what} that is none",
            file=path,
            tensor=name,
            expected="finite numbers of at least 0",
            found=f"{values[position]} at position {position}",
            remedy="Make the matrix anew, or exclude this tensor from it",
        )


def _open(path: Path) -> _Contents:
    if path.is_dir():
        raise InputError("is a directory, not an importance matrix", file=path)
    file = InputFile(path)
    return _open_gguf(path) if file.read(0, min(4, file.size)).tobytes() == MAGIC else _DatParser(file).parse()


def _open_gguf(path: Path) -> _Contents:
    file = open_gguf(path)
    sums, counts = _by_suffix(file, SUMS), _by_suffix(file, COUNTS)
    if file.metadata.get("general.type", "imatrix") != "imatrix" or not sums:
        raise InputError("is a GGUF file, but not an importance matrix", file=path)
    for name in sums.keys() ^ counts.keys():
        raise InputError("has sums without counts or counts without sums", file=path, tensor=name)
    entries = {name: _gguf_entry(name, tensor, counts[name]) for name, tensor in sums.items()}
    chunk_count, chunk_size = _number(file, "imatrix.chunk_count"), _number(file, "imatrix.chunk_size")
    return _Contents(path, _datasets(file), chunk_count, chunk_size, entries)


def _by_suffix(file: GgufFile, suffix: str) -> dict[str, GgufTensor]:
    return {name.removesuffix(suffix): tensor for name, tensor in file.tensors.items() if name.endswith(suffix)}


def _gguf_entry(name: str, sums: GgufTensor, counts: GgufTensor) -> _Sums:
    path = sums.file.path
    for tensor in (sums, counts):
        if tensor.type != "F32":
            raise InputError("has another type", file=path, tensor=tensor.name, expected="F32", found=tensor.type)
    length, rows = math.prod(sums.shape), math.prod(counts.shape)
    if length % rows:
        raise InputError(
            "has sums that are not the same number for every count",
            file=path,
            tensor=name,
            expected=f"a multiple of {rows}",
            found=length,
        )
    numbers = counts.file.read(counts.offset, counts.nbytes).view(np.float32)
    _check_values(numbers, path, counts.name, "a count")
    # Rounded as llama-quantize does it: a count is a whole number that a file can only store as float32.
    return _Sums(sums.file, name, sums.offset, length, np.floor(numbers.astype(np.float64) + 0.5))


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


class _DatParser:
    """A cursor over a `.dat` file, everything int32 and float32, little endian.

    Number of entries; per entry the length of the name, the name, number of calls, number of values, the values; then,
    both optional, the number of chunks, and the length and name of the dataset. A value is the mean over the tokens
    times the number of calls, already 1 times that number where an expert saw no token.
    """

    def __init__(self, file: InputFile) -> None:
        self._file, self._at = file, 0

    def parse(self) -> _Contents:
        count = self._within("number of entries", 1, (self._file.size - 4) // 16)  # an entry takes 16 bytes or more
        entries: dict[str, _Sums] = {}
        for number in range(1, count + 1):
            entry = self._entry(number)
            if entry.name in entries:
                raise InputError("occurs twice", file=self._file.path, tensor=entry.name)
            entries[entry.name] = entry
        chunk_count = self._within("number of chunks", 0) if self._left else 0
        dataset = self._text(self._within("length of the dataset's name", 0, self._left - 4)) if self._left else ""
        return _Contents(self._file.path, (dataset,) if dataset else (), chunk_count, None, entries)

    def _entry(self, number: int) -> _Sums:
        length = self._within("length of a name", 0, min(MAX_NAME_BYTES, self._left - 4), f"entry {number}")
        name = self._text(length)
        calls = self._within("number of calls", 0, entry=name)
        count = self._within("number of values", 1, (self._left - 4) // 4, name)
        self._at += 4 * count
        # Without a number of calls the values are taken as they are.
        return _Sums(self._file, name, self._at - 4 * count, count, np.array([max(calls, 1)], np.float64))

    @property
    def _left(self) -> int:
        return self._file.size - self._at

    def _within(self, what: str, least: int, most: int = 2**31 - 1, entry: str | None = None) -> int:
        """Take an int32 that must lie between two bounds."""
        number = int(self._take(4).view(np.int32)[0])
        if not least <= number <= most:
            raise InputError(
                f"has an impossible {what}: it is not an importance matrix or was cut off",
                file=self._file.path,
                tensor=entry,
                expected=f"{least} to {most}" if most >= least else "more bytes",
                found=number,
            )
        return number

    def _text(self, length: int) -> str:
        return self._take(length).tobytes().decode(errors="replace")

    def _take(self, count: int) -> NDArray[np.uint8]:
        self._at += count
        return self._file.read(self._at - count, count)


def write_imatrix(
    path: Path,
    entries: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    *,
    datasets: Sequence[str],
    chunk_count: int,
    chunk_size: int,
) -> None:
    """Write an importance matrix in GGUF form, as llama-imatrix lays it out.

    entries      tensor name → sums of squares [n, cols] and the tokens added [n], n experts or heads; asked for twice
    datasets     names, not paths, of what the model was run over
    chunk_count  how many chunks of text, each of `chunk_size` tokens
    """
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(Kind.STRING, list(datasets)),
        "imatrix.chunk_count": u32(chunk_count),
        "imatrix.chunk_size": u32(chunk_size),
    }
    specs: list[TensorSpec] = []
    for name in sorted(entries):
        sums, counts = entries[name]
        specs += [TensorSpec(name + SUMS, sums.shape, "F32"), TensorSpec(name + COUNTS, (counts.size, 1), "F32")]
    layout = lay_out(metadata, specs)
    with OutputFile(path, layout.size) as file:
        file.write(np.frombuffer(layout.head, np.uint8), 0)
        arrays = (data for name in sorted(entries) for data in entries[name])
        for data, offset in zip(arrays, layout.offsets, strict=True):
            file.write(np.ascontiguousarray(data, np.float32), offset)
        file.commit()
