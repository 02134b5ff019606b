"""Spend a budget: give every tensor that no option decides the type that its measured errors are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gguf_mla import ggtypes, units
from gguf_mla.container.writer import ALIGNMENT, TensorSpec, lay_out
from gguf_mla.errors import InputError
from gguf_mla.plan.jobs import Untyped
from gguf_mla.recipes import (
    FILE_TYPES,
    Budget,
    Choice,
    FileType,
    Offer,
    RecipeModel,
    Tensor,
    candidates,
    check_enough,
    choose,
    sensitivity,
    spend,
    undecided,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.container.values import Value
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.recipes import Overrides

# For each tensor, and each of the types named for it, the relative squared error it would have.
Measure = Callable[[Sequence[Untyped], Sequence[Sequence[str]]], Iterable["Mapping[str, float]"]]

OTHERWISE = FILE_TYPES["Q8_0"]  # the rules for what options and shapes decide: any quantizing type would do
_DEFAULTS = {entry.default for entry in FILE_TYPES.values()} - {""}
LATE_KEYS = 4096  # metadata that are stated later: the importance file's name and the like


def buy(
    budget: Budget,
    tensors: Sequence[Untyped],
    metadata: Mapping[str, Value],
    overrides: Overrides,
    imatrix: Imatrix | None,
    measure: Measure,
) -> tuple[FileType, dict[str, Choice]]:
    """Return the choices of all tensors that are free, and the file type that most of the bytes make it."""
    known = [Tensor(tensor.name, tensor.shape, tensor.ggml_type) for tensor in tensors]
    model = _layered(RecipeModel.from_metadata(metadata))
    free = undecided(known, OTHERWISE, model, overrides)
    fixed, _ = choose(known, OTHERWISE, model, overrides, has_importance=imatrix is not None)
    taken = sum(
        _spec(t, choice.type).nbytes for t, choice, is_free in zip(tensors, fixed, free, strict=True) if not is_free
    )
    wanted = [tensor for tensor, is_free in zip(tensors, free, strict=True) if is_free]
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    allowed = budget.allowed(parameters, _overhead(metadata, tensors)) - taken
    types = [
        candidates(t.shape[-1], has_importance=imatrix is not None and not imatrix.missing([t.name])) for t in wanted
    ]
    least = _least(wanted, types)
    whole = f", {units.bits_per_weight(least + taken, parameters)} bits per weight in all"
    check_enough(least, allowed, budget.name, whole, has_importance=imatrix is not None)  # before hours of measuring
    chosen = spend(_offers(wanted, types, model, measure), allowed)
    choices = {t.name: Choice(o.type, _reason(budget, o)) for t, o in zip(wanted, chosen, strict=True)}
    return _file_type(budget, chosen), choices


def _layered(model: RecipeModel) -> RecipeModel:
    """Return a model that has layers; InputError for one without, whose tensors could not be weighed."""
    if not model.layers:
        raise InputError(
            "a budget weighs tensors by the number of layers, and the model has none",
            expected=f"a number above 0 in {model.architecture}.block_count",
            found=0,
            remedy="The file is damaged, or name a type",
        )
    return model


def _least(wanted: Sequence[Untyped], types: Sequence[Sequence[str]]) -> int:
    """Return how many bytes tensors take in the smallest types that each may have."""
    return sum(
        min(_spec(tensor, kind).nbytes for kind in (*kinds, *_own(tensor)))
        for tensor, kinds in zip(wanted, types, strict=True)
    )


def _offers(
    wanted: Sequence[Untyped], types: Sequence[Sequence[str]], model: RecipeModel, measure: Measure
) -> list[dict[str, Offer]]:
    return [
        {
            kind: Offer(kind, _spec(tensor, kind).nbytes, error, sensitivity(tensor.name, model.layers))
            for kind, error in {**errors, **_own(tensor)}.items()
        }
        for tensor, errors in zip(wanted, measure(wanted, types), strict=True)
    ]


def _own(tensor: Untyped) -> dict[str, float]:
    """Return the block type that a tensor has already, which adds no error; not one that no file is called by."""
    kind = tensor.ggml_type
    return {kind: 0.0} if kind in _DEFAULTS and ggtypes.by_name(kind).block > 1 else {}


def _spec(tensor: Untyped, kind: str) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.shape, kind)


def _overhead(metadata: Mapping[str, Value], tensors: Sequence[Untyped]) -> int:
    """Bytes of the file that are not tensor data: the head, which is as long whatever the types, and padding."""
    return len(lay_out(metadata, [_spec(t, "F32") for t in tensors]).head) + len(tensors) * ALIGNMENT + LATE_KEYS


def _reason(budget: Budget, offer: Offer) -> str:
    return f"{budget.name}: relative error {100 * math.sqrt(offer.error):.2g} %"


def _file_type(budget: Budget, chosen: Iterable[Offer]) -> FileType:
    """Return the budget as a file type; its number, which readers show, is that of the type with the most bytes."""
    nbytes: Counter[str] = Counter()
    for offer in chosen:
        nbytes[offer.type] += offer.nbytes
    most = nbytes.most_common(1)[0][0] if nbytes else OTHERWISE.default
    like = next(entry for entry in FILE_TYPES.values() if entry.default == most)
    return FileType(budget.name, like.id, most)
