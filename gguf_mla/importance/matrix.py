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
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Value, string, u32
from gguf_mla.container.writer import MAGIC
from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.files.stamp import stamp
from gguf_mla.importance.dat import DatParser
from gguf_mla.importance.entries import DEFAULT_CHUNK_SIZE, Contents, StoredSums, check_values
from gguf_mla.importance.exact import Exact, Sums
from gguf_mla.importance.gguf import contents_of
from gguf_mla.importance.names import GROUPED, HEADS, STAND_INS, kind_of, others_for, plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLANK = 16  # columns; the smallest group that shares a scale in any type
ONES, LAYER_MEAN = "ones", "layer-mean"  # what is taken for the importance of an expert that saw no token
UNSEEN_KEY = "quantize.imatrix.unseen"  # of a file whose experts got LAYER_MEAN
RECENT = 4  # tensors kept, so that threads on chunks of the same tensor read it once


def read_imatrix(
    paths: Sequence[Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    stand_ins: Mapping[str, str] = STAND_INS,
    literal: bool = False,
    unseen: str = ONES,
) -> Imatrix:
    """Open importance files and find the tensors in them; the sums stay on the disk until they are asked for.

    paths      GGUF or `.dat` files, merged as `sum / count = Σ sums / Σ counts`
    include    only tensors whose name in the files contains one of these; not together with `exclude`
    exclude    no tensor whose name contains one of these
    stand_ins  which tensor's importance serves one that has none, by the part of the name between two dots; empty:
               none does, not even that of a weight with the same input
    literal    as llama.cpp takes them: names as they are, sizes as they must be, and zeros as importance
    unseen     what an expert that saw no token gets: all 1 (ONES), or the mean of those that saw some (LAYER_MEAN)

    Raises InputError for a file that is not sound, or when files disagree about a tensor's size.
    """
    if not paths:
        raise InputError("no importance file is named")
    if include and exclude:
        raise InputError("importance can be limited to tensors or kept from tensors, not both at once")
    contents = [_open(path) for path in paths]
    entries = _merged(contents, plain=not literal)
    kept = [name for name in entries if not _matches(name, exclude) and (not include or _matches(name, include))]
    return Imatrix(
        contents,
        {name: entries[name] for name in kept},
        Selection((*include,), (*exclude,), {**stand_ins}, literal, unseen),
    )


def as_stored(content: Contents) -> Imatrix:
    """Return the matrix that one opened file is, names and zeros as llama.cpp takes them."""
    return Imatrix([content], _merged([content], plain=False), Selection((), (), STAND_INS, literal=True))


@dataclass(frozen=True)
class Selection:
    """Which importance serves which tensor; the fields are explained at `read_imatrix`."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    stand_ins: Mapping[str, str]
    literal: bool = False
    unseen: str = ONES


class Imatrix:
    """One or several importance files as one; made by `read_imatrix`, an Importance usable from any number of threads.

    `names` are the tensors it has, without those filtered out; `files` the paths, `datasets` and `chunk_count` what and
    how much of it the matrix was computed on, `chunk_size` the tokens of a chunk, `predictors` the number of layers of
    multi-token prediction.
    """

    def __init__(
        self,
        contents: Sequence[Contents],
        entries: Mapping[str, Sequence[StoredSums]],
        selection: Selection,
    ) -> None:
        self.names, self.files = tuple(entries), tuple(content.path for content in contents)
        self.datasets = tuple(dataset for content in contents for dataset in content.datasets)
        self.chunk_count = sum(content.chunk_count for content in contents)
        self.chunk_size = next((size for c in contents if (size := c.chunk_size)), DEFAULT_CHUNK_SIZE)
        self.predictors = max(content.predictors for content in contents)
        alone = all(content.chunk_size is None for content in contents)
        self._call = self.chunk_size if alone else 1  # tokens of a call of `.dat` files alone: a mean does not need it
        self._entries, self._selection = entries, selection
        self._lock, self._recent = threading.Lock(), lru_cache(maxsize=RECENT)(self._importance)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights: the files with their stamps, in order, and what is chosen from them."""
        return {"files": [stamp(path) for path in self.files], **asdict(self._selection)}

    @property
    def fills_in(self) -> bool:
        """Whether an expert that saw no token gets the mean importance of its layer's others."""
        return self._selection.unseen == LAYER_MEAN

    @property
    def literal(self) -> bool:
        """Whether zeros are taken as importance, as llama.cpp does."""
        return self._selection.literal

    def rows(self, name: str, shape: Sequence[int], /) -> NDArray[np.float32] | None:
        """Return the importance of a tensor as float32 [n, cols], one row per expert or head, or None if there is none.

        `shape` is the tensor's, [..., rows, cols], where the leading dimensions make n; of a grouped one n are its
        groups of rows. A row that saw no token is all 1, or the mean of the others. The array is shared: do not change
        it. InputError for another number of values, or an invalid one.
        """
        entry = self._entry(name)
        if entry is None:
            return None
        with self._lock:
            values = self._recent(entry)
        count, cols = math.prod(shape[:-2]), shape[-1]
        for_heads = kind_of(name) in HEADS and not self.literal
        if values.size == cols and (for_heads or entry != name):
            return np.tile(values, (count, 1))
        if count == 1 and kind_of(entry) in HEADS and not self.literal and values.size % cols == 0:
            return np.asarray(values.reshape(-1, cols).mean(axis=0, keepdims=True, dtype=np.float64), np.float32)
        if kind_of(name) in GROUPED and not self.literal and count == 1 and values.size % cols == 0:
            return values.reshape(-1, cols)
        if values.size != count * cols:
            raise InputError(
                f"the importance{'' if entry == name else ' of ' + entry} does not fit the tensor",
                file=self._entries[entry][0].file.name,
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
        zeros = {name: int((self.counts(entry) == 0).sum()) for name in names if (entry := self._entry(name))}
        return {name: count for name, count in zeros.items() if count}

    def check(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Read the importance of every tensor once, so that what is wrong is found before the work begins.

        Return those where that of neighbouring columns is zero: nothing says how they are to be rounded.
        """
        return [name for name, shape in shapes.items() if blanks(self.rows(name, shape)).any()]

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
        if self.fills_in:
            values[UNSEEN_KEY] = string(LAYER_MEAN)
        return values

    def _entry(self, name: str) -> str | None:
        """Name the entry that serves a tensor: its own, or one that stands in."""
        if name in self._entries:
            return name
        if _matches(name, self._selection.exclude):
            return None
        return next(others_for(name, self._entries, self._selection.stand_ins), None)

    def counts(self, entry: str) -> NDArray[np.float64]:
        """Return how many tokens each row of one of `names` was taken over, in all files; one stands for all rows."""
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
            check_values(values, first.file.name, name, "merged importance value")
        counts = self.counts(name).astype(np.float32)[:, None]
        return values.reshape(len(counts), -1), counts

    def exact(self, name: str) -> Sums:
        """Return the sums of one of `names` so that their order has no influence; plain ones are 0 if a file has none.

        `has_plain` says whether all files have them. Counts are of tokens, `chunk_size` for a call of a `.dat` file.
        """
        total: Sums | None = None
        shape = self.shape(name)
        for stored in self._entries[name]:
            squares = Exact.of(stored.read().reshape(shape).astype(np.float64) * self._call)
            plain = stored.read_plain()
            values = np.zeros(stored.length) if plain is None else plain.astype(np.float64) * stored.unit
            tokens = stored.counts * (stored.unit * self._call)
            found = Sums(squares, Exact.of(values.reshape(shape)), tokens)
            total = found if total is None else total + found
        assert total is not None  # noqa: S101 - a name has an entry in some file
        return total

    def shape(self, name: str) -> tuple[int, int]:
        """Return the shape of the sums of one of `names`, [n, cols]: a row for every count."""
        rows = len(self.counts(name))
        return rows, self._entries[name][0].length // rows

    def has_plain(self, name: str) -> bool:
        """Whether all files have the sums of the values themselves for one of `names`."""
        return all(stored.plain is not None for stored in self._entries[name])

    def _importance(self, entry: str) -> NDArray[np.float32]:
        rows, counts = self.sums(entry)
        np.divide(rows, counts, out=rows, where=counts > 0)
        seen = counts[:, 0] > 0
        rows[~seen] = rows[seen].mean(axis=0, dtype=np.float64) if self.fills_in and seen.any() else 1
        return rows.reshape(-1)


def _merged(contents: Sequence[Contents], *, plain: bool) -> dict[str, list[StoredSums]]:
    """Collect what the files hold by tensor, `plain` names restored; InputError when they disagree about its size."""
    entries: defaultdict[str, list[StoredSums]] = defaultdict(list)
    call = _tokens_per_call(contents)
    for content in contents:
        for stored_name, sums in content.entries.items():
            restored = plain_name(stored_name)
            name = restored if plain and restored not in content.entries else stored_name
            entries[name].append(replace(sums, unit=call) if content.chunk_size is None and call > 1 else sums)
    for name, stored in entries.items():
        if len(stored) == 1:
            continue
        if len({sums.length for sums in stored}) > 1 or len({len(sums.counts) for sums in stored} - {1}) > 1:
            raise InputError(
                "files that are to be merged differ in size",
                tensor=name,
                expected="the same number of values and counts",
                found="; ".join(f"{sums.length} and {len(sums.counts)} in {sums.file.name}" for sums in stored),
                remedy="Merge only matrices of the same model",
            )
    return dict(entries)


def blanks(rows: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    """Tell of each group of BLANK columns whether all of its importance is zero, [n, groups]; none for no rows."""
    if rows is None or rows.shape[1] < BLANK:
        return np.zeros((0, 0), np.bool_)
    whole = rows[:, : rows.shape[1] // BLANK * BLANK]
    return np.asarray(~whole.reshape(len(rows), -1, BLANK).any(axis=2))


def _tokens_per_call(contents: Sequence[Contents]) -> int:
    """How many tokens a call of a `.dat` file counts for; 1 among such files alone, where it cancels out."""
    sizes = [content.chunk_size for content in contents if content.chunk_size is not None]
    return next(filter(None, sizes), DEFAULT_CHUNK_SIZE) if sizes else 1


def _matches(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def _open(path: Path) -> Contents:
    if path.is_dir():
        raise InputError("is a directory, not an importance matrix", file=path)
    file = InputFile(path)
    is_gguf = file.read(0, min(4, file.size)).tobytes() == MAGIC
    return contents_of(open_gguf(path), path) if is_gguf else DatParser(file).parse()
