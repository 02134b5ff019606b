"""Level 1, of the tensor table: every tensor against those that the reference says there must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.tensors import COMPUTED, LEGACY, LEGACY_HALVES, shapes
from gguf_mla.layout.detect import attention_layout
from verify.findings import Finding, Grade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.model import Model

LEVEL = "structure"


def check_tensors(file: GgufFile, model: Model) -> Iterator[Finding]:
    """Yield every tensor that is missing, is there without need, or has the wrong shape, or a vector's wrong type."""
    wanted = stored_shapes(file, model)
    for name, shape in wanted.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            yield Finding(LEVEL, name, "is missing", "x".join(map(str, shape)), "nothing")
        elif tensor.shape != shape:
            yield Finding(
                LEVEL, name, "has the wrong shape", "x".join(map(str, shape)), "x".join(map(str, tensor.shape))
            )
        elif len(shape) == 1 and tensor.type != "F32":
            yield Finding(LEVEL, name, "engines add and multiply vectors in F32 only", "F32", tensor.type)
    for name in file.tensors:
        if name in COMPUTED:
            what = "engines compute these values themselves, and an older one may refuse the file for the tensor"
            yield Finding(LEVEL, name, what, grade=Grade.DIFFERS)
        elif name not in wanted:
            yield Finding(LEVEL, name, "is not a tensor of this model: llama.cpp refuses files with more tensors")


def stored_shapes(file: GgufFile, model: Model) -> dict[str, tuple[int, ...]]:
    """Return the tensors a file of its attention layout holds."""
    wanted = shapes(model)
    if attention_layout(file.tensors) != "legacy":
        return wanted
    legacy = {
        f"blk.{layer}.{LEGACY}": (model.size("kv_b_rows"), model.size("kv_rank")) for layer in range(model.blocks)
    }
    return {name: shape for name, shape in wanted.items() if not name.endswith(LEGACY_HALVES)} | legacy
