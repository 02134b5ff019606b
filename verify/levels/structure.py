"""Level 1, of the tensor table: every tensor against those that the reference says there must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.forward.sound import shared, stored_shapes
from gguf_mla.forward.tensors import COMPUTED, FUSED, is_scale
from verify.findings import Finding, Grade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.container.reader import GgufFile
    from gguf_mla.forward.tensors import Weights

LEVEL = "structure"
FUSING = (
    "deepseek2",
    "mistral4",
)  # the architectures in which llama.cpp looks for gate and up of the experts in one tensor


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
