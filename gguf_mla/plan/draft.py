"""What a GGUF file holds, as the beginning of a plan: tensors without decisions, metadata, what is left out and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf_mla.plan.jobs import Part, Untyped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import PurePath

    from gguf_mla.container.reader import GgufFile, GgufTensor
    from gguf_mla.container.values import Value


@dataclass(frozen=True)
class Content:
    """Tensors and metadata of an output before types are chosen.

    `path` is the file it comes from, `dropped` maps a source tensor that is not used to the reason, `warnings` are
    sentences.
    """

    path: PurePath
    tensors: tuple[Untyped, ...]
    metadata: Mapping[str, Value]
    dropped: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def as_stored(file: GgufFile) -> Content:
    """Return everything as the file has it."""
    return Content(file.path, tuple(untyped(tensor) for tensor in file.tensors.values()), dict(file.values))


def untyped(tensor: GgufTensor) -> Untyped:
    """Return a tensor as it is stored, each slice of a 3-D one a part of its own, for its own importance."""
    if tensor.foreign is not None:
        pieces = (Part(tensor.name, 0, tensor.foreign.pieces),)
        return Untyped(tensor.name, tensor.shape, pieces, tensor.type, tensor.type, tensor.foreign)
    slices = math.prod(tensor.shape[:-2])
    rows = tensor.rows // slices
    parts = tuple(Part(tensor.name, index * rows, (index + 1) * rows) for index in range(slices))
    return Untyped(tensor.name, tensor.shape, parts, tensor.type, tensor.type)
