"""What a model with multi-head latent attention keeps for every token, and how many bytes that is.

H heads of n + p key and v value numbers, a latent of r: expanded to plain multi-head attention a token takes H·(n+p)
numbers for K and H·v for V in every layer; the absorbed form caches the one row [latent: r | rotated key: p] as K, and
V is a view of its first r numbers. Engines before that view kept the latent a second time as V. Sparse attention adds
the indexer's key. Source: the DeepSeek-V2 paper, section 2.1, and llama.cpp's pull requests 13529 and 19067.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.errors import InputError
from gguf_mla.layout.heads import count, has_heads, heads_of

if TYPE_CHECKING:
    from gguf_mla.container.reader import GgufFile

CACHE_TYPES = ("F16", "Q8_0", "Q4_0")
EXPANDED, WITH_V, K_ONLY = "MHA, expanded", "MLA, K and V", "MLA, K only"
K_AND_INDEXER = "MLA, K only, and DSA indexer"


@dataclass(frozen=True)
class Cache:
    """A way to cache: its name, the numbers in the rows that a token has in each layer, their type, how many layers."""

    name: str
    rows: tuple[int, ...]
    type: str
    layers: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of a token in one layer."""
        return sum(ggtypes.by_name(self.type).row_bytes(row) for row in self.rows)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in all layers."""
        return self.layer_bytes * self.layers


def caches(file: GgufFile) -> list[Cache]:
    """Return the ways to cache the model in a file, whatever its layout, in every cache type that fits; [] without MLA.

    Layers of multi-token prediction are not counted: a model that generates token by token does not run them.
    """
    if not has_heads(file):
        return []
    heads = heads_of(file)
    blocks, predicting = count(file, "block_count"), count(file, "nextn_predict_layers", 0)
    if predicting >= blocks:
        raise InputError(
            "predicts further tokens in all its layers",
            file=file.path,
            expected=f"fewer than {blocks}",
            found=predicting,
        )
    rows: dict[str, tuple[int, ...]] = {
        EXPANDED: (heads.count * (heads.nope + heads.rope), heads.count * heads.value),
        WITH_V: (heads.rank + heads.rope, heads.rank),
        K_ONLY: (heads.rank + heads.rope,),
    }
    if indexer := count(file, "attention.indexer.key_length", 0):
        rows[K_AND_INDEXER] = (*rows[K_ONLY], indexer)
    return [
        Cache(name, numbers, kind, blocks - predicting)
        for name, numbers in rows.items()
        for kind in CACHE_TYPES
        if all(ggtypes.by_name(kind).fits(row) for row in numbers)
    ]
