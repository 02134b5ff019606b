"""The header of a safetensors shard, checked against the file's size before anything is read.

Format: 8 bytes little-endian header length, a JSON object name → {dtype, shape, data_offsets}, then the data without
holes. Source: the safetensors format description.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import SAVED_SO, InputError
from gguf_mla.files import bounds, impostors, json_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_mla.files.readable import Readable

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_INTEGERS = frozenset({int})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a shard, undecoded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: Readable = field(repr=False, compare=False)

    @property
    def row_bytes(self) -> int:
        """How many bytes a row of `shape[-1]` values takes."""
        return self.shape[-1] * ITEM_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """How many rows there are; a vector is one row."""
        return math.prod(self.shape[:-1])

    def called(self, name: str) -> StoredTensor:
        """Return the tensor under another name."""
        if name == self.name:
            return self
        if type(self) is StoredTensor:  # `replace` takes four times as long, and a model has 200,000 names
            return StoredTensor(name, self.dtype, self.shape, self.offset, self.nbytes, self.file)
        return replace(self, name=name)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows `start:stop` as uint8 [rows, row_bytes]."""
        first, last, _ = slice(start, stop).indices(self.rows)
        data = self.file.read(self.offset + first * self.row_bytes, (last - first) * self.row_bytes)
        return data.reshape(last - first, self.row_bytes)

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop` in the background."""
        self.file.will_read(self.offset + start * self.row_bytes, (stop - start) * self.row_bytes)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.file.was_read(self.offset + start * self.row_bytes, (stop - start) * self.row_bytes)


def read_shard(file: Readable) -> dict[str, StoredTensor]:
    """Return the tensors of one shard by name, in the order of their data; InputError for anything unsound."""
    header = _header(file)
    start = 8 + header.length
    bounds.bounded(len(header.entries), bounds.TENSORS, "the number of tensors", file=file.name)
    entries = [_entry(file, start, name, entry) for name, entry in header.entries.items() if name != "__metadata__"]
    entries.sort(key=operator.attrgetter("offset", "nbytes"))
    _check_tiling(file, start, entries)
    return {tensor.name: tensor for tensor in entries}


@dataclass(frozen=True)
class _Header:
    length: int
    entries: dict[str, Any]


def _header(file: Readable) -> _Header:
    if file.size < 8:
        raise InputError(
            "is not a safetensors file",
            file=file.name,
            expected="at least 8 bytes",
            found=f"{file.size} bytes",
            remedy="Download it again",
        )
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > min(file.size - 8, json_text.MAX_BYTES):
        impostors.check(file)
        raise InputError(
            "the header claims to be longer than it can be",
            file=file.name,
            expected=f"at most {min(file.size - 8, json_text.MAX_BYTES)} bytes",
            found=f"{length} bytes",
            remedy="The file is damaged or not a safetensors file, download it again",
        )
    try:
        entries = json_text.parse(file.read(8, length).tobytes(), json_text.unique)
    except ValueError as error:
        raise InputError(
            f"the header is not valid JSON ({error})", file=file.name, remedy="Download the file again"
        ) from None
    if not isinstance(entries, dict):
        raise InputError("the header is not a JSON object", file=file.name, remedy="Download the file again")
    return _Header(length, entries)


def _entry(file: Readable, start: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        sound = _INTEGERS.issuperset(map(type, numbers)) and min(numbers) >= 0 and begin <= end
        sound = sound and len(shape) <= bounds.DIMENSIONS
    except (TypeError, KeyError, ValueError):
        sound, dtype, shape, begin, end = False, None, (), 0, 0
    if not sound:
        raise InputError(
            "has a malformed header entry",
            file=file.name,
            tensor=name,
            expected="dtype, shape and data_offsets",
            found=bounds.shown(entry),
        )
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InputError(
            "has an unknown dtype",
            file=file.name,
            tensor=name,
            expected=", ".join(ITEM_BYTES),
            found=bounds.shown(dtype),
        )
    values = bounds.product(shape, file.size)
    if values * ITEM_BYTES[dtype] != end - begin:
        more = values > file.size
        raise InputError(
            f"has data offsets that contradict its shape {bounds.shown(list(shape))} of {dtype}",
            file=file.name,
            tensor=name,
            expected="more bytes than the file has" if more else f"{values * ITEM_BYTES[dtype]} bytes",
            found=f"{bounds.shown(end - begin)} bytes",
        )
    if shape and shape[-1] > bounds.ROW_VALUES:
        bounds.bounded(shape[-1], bounds.ROW_VALUES, "the length of a row", file=file.name, tensor=name)
    # A scalar has no rows; as a vector of one value everything below treats it alike.
    return StoredTensor(name, dtype, shape or (1,), start + begin, end - begin, file)


def _check_tiling(file: Readable, start: int, entries: list[StoredTensor]) -> None:
    end = start
    for tensor in entries:
        if tensor.offset != end:
            fault = "leaves a hole before its data" if tensor.offset > end else "overlaps the data of another tensor"
            raise InputError(
                fault,
                file=file.name,
                tensor=tensor.name,
                expected=f"offset {end - start}",
                found=tensor.offset - start,
                remedy=SAVED_SO,
            )
        end += tensor.nbytes
    if end != file.size:
        cut = "is cut off" if end > file.size else "has data that no tensor names"
        raise InputError(
            f"the shard {cut}",
            file=file.name,
            expected=f"{end} bytes",
            found=f"{file.size} bytes",
            remedy="Download it again",
        )
