"""Whether a model can be computed at all, and has every tensor that it says it has.

Whoever runs a model takes it for right, so what is wrong with it must be said of it, and before the work begins.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.forward.tensors import (
    FUSED,
    FUSED_HALVES,
    LEGACY,
    LEGACY_HALVES,
    SHARED,
    CheckpointWeights,
    shapes,
)
from gguf_mla.layout.detect import attention_layout
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from pathlib import PurePath

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.model import Model
    from gguf_mla.forward.tensors import GgufWeights

LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")


def check_model(model: Model, file: PurePath) -> None:
    """Raise InputError for sizes and constants that the forward pass cannot compute with; `file` states them."""
    for what, expected, found in model.impossible():
        raise InputError(
            f"describes a model that cannot be computed: {what}", file=file, expected=expected, found=found
        )


def check_tensors(weights: CheckpointWeights | GgufWeights) -> None:
    """Raise InputError for a tensor that the model has and its file does not, or has in another shape."""
    if isinstance(weights, CheckpointWeights):
        if absent := [name for name in weights.checkpoint.absent if not _left_out(name, weights.model)]:
            raise weights.checkpoint.incomplete(absent)
        for name in shapes(weights.model):
            weights.stack(name)
        return
    file = weights.file
    for name, shape in stored_shapes(file, weights.model).items():
        tensor = file.tensors.get(name)
        if tensor is None:
            if shared(name):
                continue
            raise InputError("is missing", file=file.path, tensor=name)
        if tensor.shape != shape:
            raise InputError(
                "has the wrong shape", file=file.path, tensor=name, expected=list(shape), found=list(tensor.shape)
            )


def _left_out(name: str, model: Model) -> bool:
    """Whether a checkpoint's tensor is of a layer after those of the model, as prediction is that a file leaves out."""
    found = LAYER.match(name)
    return found is not None and int(found[1]) >= model.blocks


def shared(name: str) -> str | None:
    """Return the tensor of the model that a prediction layer without this one takes in its place; None for others."""
    return SHARED.get(split_name(name)[1])


def stored_shapes(file: GgufFile, model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors a file of its attention layout holds."""
    wanted = _with_fused(file, shapes(model))
    if attention_layout(file.tensors) != "legacy":
        return wanted
    legacy = {
        f"blk.{layer}.{LEGACY}": (model.size("kv_b_rows"), model.size("kv_rank")) for layer in range(model.blocks)
    }
    return {name: shape for name, shape in wanted.items() if not name.endswith(LEGACY_HALVES)} | legacy


def _with_fused(file: GgufFile, wanted: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors with gate and up of a layer's experts in one, where the file holds them so."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in wanted.items():
        layer, rest = split_name(name)
        fused = f"blk.{layer}.{FUSED}"
        if rest in FUSED_HALVES and fused in file.tensors:
            found[fused] = (shape[0], 2 * shape[1], shape[2])
        else:
            found[name] = shape
    return found
