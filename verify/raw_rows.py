"""Rows of a checkpoint decoded a second time: from the stored bytes, by ml_dtypes, without gguf-mla's readers.

Of the format's own code nothing is used but the numbers in config.json and the index. Tensors are found by what their
names have in every checkpoint, whatever a tool has put before it; what is not found so, as a part of a fused tensor, is
not judged. Sources: the safetensors format description;
for FP8 and INT4 those named in gguf_mla.sources.formats, read anew.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

INDEX = "model.safetensors.index.json"
# What a name has after the prefixes of tools and of models with more parts.
OWN_NAME = re.compile(r"(?:.*?\.)??((?:layers|embed_tokens|norm|lm_head)\..+)")
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I32": np.int32, "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": ml_dtypes.float8_e8m0fnu,  # only scales are bytes, and such a byte is an exponent
}  # fmt: skip
NIBBLES = np.arange(0, 32, 4)  # where in a word its eight values begin


@dataclass(frozen=True)
class Stored:
    """An entry of a shard's header; `begin` counts from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def rows(self) -> int:
        """How many rows there are; a vector is one row."""
        return math.prod(self.shape[:-1])

    def row(self, number: int) -> NDArray[Any]:
        """Return a row in the stored type."""
        dtype, cols = np.dtype(DTYPES[self.dtype]), (self.shape or (1,))[-1]
        size = cols * dtype.itemsize
        return np.fromfile(self.file, np.uint8, size, offset=self.begin + number * size).view(dtype)


@dataclass(frozen=True)
class RawRows:
    """The entries of all shards by their names without prefixes, and quantization_config."""

    stored: Mapping[str, Stored]
    quantization: Mapping[str, Any]

    def judged(self, name: str) -> tuple[int, ...]:
        """Return the numbers of two rows of a tensor, the first and the last; none of one beyond ml_dtypes."""
        name = own_name(name)
        held = self.stored.get(name) or self.stored.get(name + "_packed")
        if held is None or held.dtype not in DTYPES or not math.prod(held.shape):
            return ()
        return tuple(dict.fromkeys((0, held.rows - 1)))

    def row(self, name: str, number: int) -> Floats:
        """Return a row of a tensor, float32 [cols]."""
        name = own_name(name)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if name + "_packed" in self.stored:
                return self._int4(name, number)
            if self.stored[name].dtype == "F8_E4M3":
                return self._fp8(name, number)
            return self.stored[name].row(number).astype(np.float32)

    def _fp8(self, name: str, number: int) -> Floats:
        block_rows, block_cols = self.quantization["weight_block_size"]
        codes = self.stored[name].row(number)
        scales = self.stored[name + "_scale_inv"].row(number // block_rows)
        return _scaled(codes, scales, block_cols)

    def _int4(self, name: str, number: int) -> Floats:
        [group] = {entry["weights"]["group_size"] for entry in self.quantization["config_groups"].values()}
        cols = int(self.stored[name + "_shape"].row(0)[1])
        words = self.stored[name + "_packed"].row(number)
        integers = (words[:, None] >> NIBBLES & 15).reshape(-1)[:cols] - 8
        return _scaled(integers, self.stored[name + "_scale"].row(number), group)


def _scaled(codes: NDArray[Any], scales: NDArray[Any], group: int) -> Floats:
    """Return codes [cols] times the scale of their group; exact in float64, so it is rounded once."""
    each = np.repeat(scales.astype(np.float64), min(group, codes.size))[: codes.size]
    return (codes.astype(np.float64) * each).astype(np.float32)


def own_name(name: str) -> str:
    """Return a tensor's name without what may stand before it."""
    found = OWN_NAME.fullmatch(name)
    return found[1] if found else name


def open_raw(folder: Path, shards: Iterable[Path], quantization: Mapping[str, Any]) -> RawRows:
    """Read the headers of sound shards; whether they are sound has been checked when the checkpoint was opened.

    Of copies in several shards the one counts that the index names. Where two names have the same without prefixes, as
    in a checkpoint of two models, neither is judged.
    """
    placed, found = _placed(folder), dict[str, Stored]()
    for shard in shards:
        for name, entry in _entries(shard).items():
            if name not in found or folder / placed.get(name, "") == shard:
                found[name] = entry
    names = Counter(map(own_name, found))
    return RawRows({own: entry for name, entry in found.items() if names[own := own_name(name)] == 1}, quantization)


def _placed(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if not index.is_file():
        return {}
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    return weight_map


def _entries(shard: Path) -> dict[str, Stored]:
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Stored(shard, entry["dtype"], _matrix(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _matrix(shape: list[int]) -> tuple[int, ...]:
    """Return a shape without the dimensions of one that come after those of a matrix."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)
