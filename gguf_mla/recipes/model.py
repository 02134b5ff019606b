"""What the rules must know about a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_mla.container.values import Kind
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.container.values import Value

_INTEGERS = frozenset({Kind.U8, Kind.I8, Kind.U16, Kind.I16, Kind.U32, Kind.I32, Kind.U64, Kind.I64})

# llama-quantize has rules of its own for these, which no DeepSeek file meets.
_OTHER_RULES = ("falcon", "glm5-next", "bailingmoe3")


@dataclass(frozen=True)
class RecipeModel:
    """A model as the rules see it.

    `layers` counts multi-token prediction layers too; `heads` and `kv_heads` are the first layer's; `experts` is 0 for
    a dense model.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @classmethod
    def from_metadata(cls, values: Mapping[str, Value]) -> RecipeModel:
        """Read the model off a GGUF file's metadata; InputError for a key that is missing or no count."""
        architecture = values.get("general.architecture")
        if architecture is None or architecture.kind is not Kind.STRING:
            raise InputError("the metadata names no architecture", expected="a string in general.architecture")
        name = architecture.data
        heads = _count(values, f"{name}.attention.head_count")
        return cls(
            name,
            _count(values, f"{name}.block_count"),
            heads,
            _count(values, f"{name}.attention.head_count_kv", heads),
            _count(values, f"{name}.expert_count", 0),
        )

    @property
    def heads_per_key(self) -> int:
        """How many query heads share a key: all of them in an MLA file, one in a legacy file."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What llama-quantize would decide by rules that are not told here."""
        # llama.cpp calls a Llama or Qwen2 of 80 layers "70B" and protects its attn_v.
        if self.architecture in _OTHER_RULES or (self.layers == 80 and self.architecture in {"llama", "qwen2"}):
            return (f"llama-quantize has rules of its own for this {self.architecture}; types may differ from its.",)
        return ()


def _count(values: Mapping[str, Value], key: str, default: int | None = None) -> int:
    """Return a count; of an array, one entry per layer, the first."""
    if key not in values:
        if default is None:
            raise InputError(f"the metadata lacks {key}", remedy="The file is damaged or no language model")
        return default
    value = values[key]
    content: Any = value.data[0] if value.item is not None and len(value.data) else value.data
    if (value.item or value.kind) not in _INTEGERS or isinstance(content, (list, tuple)) or content < 0:
        raise InputError(f"{key} is not a count", expected="an integer of 0 or more", found=value.data)
    return int(content)
