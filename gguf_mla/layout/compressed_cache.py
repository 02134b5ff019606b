"""What a DeepSeek-V4 keeps of the tokens that it has read, and how many bytes that is.

Every layer keeps a row of `head` values, key and value at once, for each token of its window. Layers that compress keep
one more row for each 4 tokens, of which an indexer with keys of its own chooses (CSA), or for each 128 (HCA), and in
float32 the products of the tokens that are not yet compressed. Source: llama.cpp's llama-kv-cache-dsv4: a part of a
batch lies beside the window, rows are multiples of 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.errors import InputError
from gguf_mla.layout.cache import CACHE_TYPES
from gguf_mla.layout.heads import count

if TYPE_CHECKING:
    from gguf_mla.container.reader import GgufFile

ARCHITECTURE = "deepseek4"
CSA, HCA = 4, 128  # tokens that become one row
BATCH = 512  # tokens that are computed at a time, llama.cpp's --ubatch-size
PADDING = 256  # rows


@dataclass(frozen=True)
class Part:
    """One kind of rows: values and type of a row, in how many layers, and how many there are.

    every  tokens for which there is a row; 0 where the number of rows is `most` from the start
    most   rows that there are at most; 0 for no bound
    """

    name: str
    values: int
    type: str
    layers: int
    every: int
    most: int = 0

    def rows(self, context: int) -> int:
        """Return how many rows a layer has for so many tokens."""
        if not self.every:
            return self.most
        rows = -(-_padded(context) // self.every)
        return _padded(min(rows, self.most) if self.most else rows)

    def nbytes(self, context: int) -> int:
        """Return the bytes of all layers for so many tokens."""
        return self.layers * self.rows(context) * self._row_bytes

    @property
    def token_bytes(self) -> float:
        """Bytes that one token more takes in all layers, in the long run."""
        return self.layers * self._row_bytes / self.every if self.every and not self.most else 0

    @property
    def _row_bytes(self) -> int:
        return ggtypes.by_name(self.type).row_bytes(self.values)


def is_compressed(file: GgufFile) -> bool:
    """Tell whether a file is of a model that keeps such parts."""
    return file.metadata.get("general.architecture") == ARCHITECTURE


def parts_by_type(file: GgufFile) -> dict[str, list[Part]]:
    """Return the parts of a model's cache for every type of its rows; InputError for keys that are not there."""
    blocks, head = count(file, "block_count"), count(file, "attention.key_length")
    key, window = count(file, "attention.indexer.key_length"), count(file, "attention.sliding_window")
    ratios = file.metadata.get(f"{ARCHITECTURE}.attention.compress_ratios")
    listed = list(ratios[:blocks]) if isinstance(ratios, Sequence) and not isinstance(ratios, str) else []
    if len(listed) < blocks or not {*listed} <= {0, CSA, HCA}:
        name = f"{ARCHITECTURE}.attention.compress_ratios"
        raise InputError(f"{name} is not what layers keep", file=file.path, expected=f"{blocks} times 0, 4 or 128")
    csa, hca = listed.count(CSA), listed.count(HCA)
    states = [
        Part("CSA, not yet compressed", 4 * head, "F32", csa, 0, 2 * CSA),
        Part("indexer, not yet compressed", 4 * key, "F32", csa, 0, 2 * CSA),
        Part("HCA, not yet compressed", 2 * head, "F32", hca, 0, HCA),
    ]
    return {
        kind: [
            Part("window", head, kind, blocks, 1, window + BATCH),
            Part("CSA entries", head, kind, csa, CSA),
            Part("indexer keys", key, kind, csa, CSA),
            Part("HCA entries", head, kind, hca, HCA),
            *states,
        ]
        for kind in CACHE_TYPES
        if ggtypes.by_name(kind).fits(head) and ggtypes.by_name(kind).fits(key)
    }


def total(parts: Sequence[Part], context: int) -> int:
    """Return the bytes of all parts for so many tokens."""
    return sum(part.nbytes(context) for part in parts)


def longest(parts: Sequence[Part], room: int) -> int:
    """Return for how many tokens the parts fit into so many bytes; at most 2^40."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(parts, middle) <= room else (low, middle - 1)
    return low


def _padded(rows: int) -> int:
    return -(-rows // PADDING) * PADDING
