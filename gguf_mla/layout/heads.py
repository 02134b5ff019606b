"""The sizes of MLA's heads, read off a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import shown

if TYPE_CHECKING:
    from gguf_mla.container.reader import GgufFile

KEY, VALUE = "attention.key_length", "attention.value_length"
MLA_KEY, MLA_VALUE = "attention.key_length_mla", "attention.value_length_mla"
HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"


@dataclass(frozen=True)
class Heads:
    """H heads of n = `nope` and p = `rope` key values and v = `value` values; the latent row has r = `rank` values."""

    count: int
    nope: int
    rope: int
    value: int
    rank: int

    @property
    def kv_b(self) -> tuple[int, int]:
        """The shape of attn_kv_b, [H·(n+v), r]."""
        return self.count * (self.nope + self.value), self.rank

    @property
    def k_b(self) -> tuple[int, int, int]:
        """The shape of attn_k_b, [H, r, n]."""
        return self.count, self.rank, self.nope

    @property
    def v_b(self) -> tuple[int, int, int]:
        """The shape of attn_v_b, [H, v, r]."""
        return self.count, self.value, self.rank


def flat(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the shape of the same heads stacked in two dimensions, as ik_llama.cpp writes them."""
    return shape[0] * shape[1], shape[2]


def has_heads(file: GgufFile) -> bool:
    """Tell whether a file is of a model with multi-head latent attention."""
    return f"{file.metadata.get('general.architecture')}.attention.kv_lora_rank" in file.values


def heads_of(file: GgufFile) -> Heads:
    """Return the sizes of a model with multi-head latent attention, in either layout; InputError for one without."""
    values = file.metadata
    mla = f"{values.get('general.architecture')}.{MLA_KEY}" in values
    rope = count(file, "rope.dimension_count")
    key = count(file, MLA_KEY if mla else KEY)
    if key <= rope:
        raise InputError(
            "the heads are not longer than their rotated part", file=file.path, expected=f"more than {rope}", found=key
        )
    value = count(file, MLA_VALUE if mla else VALUE)
    return Heads(count(file, HEADS), key - rope, rope, value, count(file, "attention.kv_lora_rank"))


def count(file: GgufFile, key: str, default: int | None = None) -> int:
    """Return a positive number of the architecture's metadata; of an array with one entry per layer, the first."""
    name = f"{file.metadata.get('general.architecture')}.{key}"
    data = file.metadata.get(name, default)
    number = data[0] if isinstance(data, Sequence) and not isinstance(data, str) and data else data
    if type(number) is not int or not (1 if default is None else 0) <= number < 1 << 32:
        raise InputError(
            f"{name} is not a size that a model with multi-head latent attention can have",
            file=file.path,
            expected="a positive whole number",
            found="nothing" if data is None else shown(data),
        )
    return number
