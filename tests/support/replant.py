"""GGUF files changed by gguf-py, never by the product: what is planted must not pass through what is tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KINDS = gguf.GGUFValueType
OWN = ("GGUF.", "general.architecture")  # what the writer writes itself


class Typed:
    """A value with its GGUF type, where Python's does not tell it."""

    def __init__(self, value: Any, kind: gguf.GGUFValueType, item: gguf.GGUFValueType | None = None) -> None:
        self.value, self.kind, self.item = value, kind, item


def u32(value: int) -> Typed:
    return Typed(value, KINDS.UINT32)


def f32(value: float) -> Typed:
    return Typed(value, KINDS.FLOAT32)


def string(value: str) -> Typed:
    return Typed(value, KINDS.STRING)


def boolean(value: bool) -> Typed:
    return Typed(value, KINDS.BOOL)


def array(values: list[Any], item: gguf.GGUFValueType) -> Typed:
    return Typed(values, KINDS.ARRAY, item)


class Plant:
    """A file read once, to be written again with other keys or tensors."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.keys = {name: _typed(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.tensors = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}

    def write(
        self,
        path: Path,
        keys: Mapping[str, Typed | None] | None = None,
        tensors: Mapping[str, tuple[np.ndarray, Any] | None] | None = None,
    ) -> Path:
        """Write the file with these changed; None leaves one out."""
        changed = {name: value for name, value in {**self.keys, **(keys or {})}.items() if value is not None}
        writer = gguf.GGUFWriter(path, changed.pop("general.architecture").value)
        for name, typed in changed.items():
            writer.add_key_value(name, typed.value, typed.kind, sub_type=typed.item)
        for name, tensor in {**self.tensors, **(tensors or {})}.items():
            if tensor is not None:
                writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _typed(field: Any) -> Typed:
    return Typed(field.contents(), field.types[0], field.types[-1] if field.types[0] == KINDS.ARRAY else None)
