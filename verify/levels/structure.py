"""Level 1, of the tensor table: every tensor against those that the reference says there must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.tensors import COMPUTED, FUSED, FUSED_HALVES, LEGACY, LEGACY_HALVES, SHARED, is_scale, shapes
from gguf_mla.layout.detect import attention_layout
from gguf_mla.layout.names import split_name
from verify.findings import Finding, Grade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.model import Model
    from gguf_mla.forward.tensors import Weights

LEVEL = "structure"
FUSING = ("deepseek2",)  # the architectures in which llama.cpp looks for gate and up of the experts in one tensor


def check_tensors(file: GgufFile, reference: Weights) -> Iterator[Finding]:
    """Yield every tensor that is missing, is there without need, or has the wrong shape, or a vector's wrong type."""
    wanted = stored_shapes(file, reference.model)
    for name, shape in wanted.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            yield from _missing(name, shape, reference)
        elif tensor.shape != shape:
            yield Finding(LEVEL, name, "has the wrong shape", _by(shape), _by(tensor.shape))
        elif len(shape) == 1 and tensor.type != "F32":
            yield Finding(LEVEL, name, "engines add and multiply vectors in F32 only", "F32", tensor.type)
    architecture = file.metadata.get("general.architecture")
    for name in file.tensors:
        if name.endswith(FUSED) and architecture not in FUSING:
            what = f"llama.cpp reads gate and up of a {architecture} file's experts as two tensors only"
            yield Finding(LEVEL, name, what)
        elif name in COMPUTED:
            what = "engines compute these values themselves, and some refuse a file with more tensors than they read"
            yield Finding(LEVEL, name, what, grade=Grade.DIFFERS)
        elif name not in wanted and not is_scale(name, file):
            yield Finding(LEVEL, name, "is not a tensor of this model: llama.cpp refuses files with more tensors")


def _missing(name: str, shape: tuple[int, ...], reference: Weights) -> Iterator[Finding]:
    whole = shared(name)
    if whole is None:
        yield Finding(LEVEL, name, "is missing", _by(shape), "nothing")
    elif reference.holds(name):
        what = f"is missing, and engines take {whole} for it, which is compared in its place"
        yield Finding(LEVEL, name, what, grade=Grade.DIFFERS)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


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
