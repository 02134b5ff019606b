"""From tensors to jobs: the type each gets, and whether there is the importance that it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla import ggtypes
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import named
from gguf_mla.importance.names import GROUPED, kind_of
from gguf_mla.plan.budgeted import buy
from gguf_mla.plan.jobs import TensorJob
from gguf_mla.recipes import Budget, FileType, RecipeModel, Tensor, choose, needing_importance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gguf_mla.container.values import Value
    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.jobs import Untyped
    from gguf_mla.recipes import Choice, Overrides


class Assigned(NamedTuple):
    """The jobs of a file, the file type it goes by, warnings, and which types were wanted where others stand in."""

    target: FileType
    jobs: tuple[TensorJob, ...]
    warnings: list[str]
    substituted: dict[str, str]


def assign(
    tensors: Sequence[Untyped],
    target: FileType | Budget,
    metadata: Mapping[str, Value],
    overrides: Overrides,
    imatrix: Imatrix | None = None,
    via: str | None = None,
    measure: Measure | None = None,
    chosen: Mapping[str, Choice] | None = None,
) -> Assigned:
    """Return a job for every tensor.

    `metadata` tells the recipes about the model. `via` is the type that decoded values are rounded to before they are
    encoded. `measure` tells what types would cost in accuracy; only a budget needs it. `chosen` has choices that stand
    in place of a file type's rules. Raises one InputError for all tensors that cannot do without importance and have
    none.
    """
    known = [Tensor(tensor.name, tensor.shape, tensor.ggml_type) for tensor in tensors]
    model = RecipeModel.from_metadata(metadata)
    bought = dict(chosen or {})
    if isinstance(target, Budget):
        if measure is None:
            raise ValueError("a budget is spent by measured errors")
        target, bought = buy(target, tensors, metadata, overrides, imatrix, measure)
    has_importance = bool(imatrix and imatrix.names)
    choices, warnings = choose(known, target, model, overrides, has_importance=has_importance, bought=bought)
    warnings += _check_importance(known, choices, target, imatrix)
    grouped = [_grouped(tensor, imatrix) for tensor in tensors]
    jobs = tuple(_job(t, choice, via) for t, choice in zip(grouped, choices, strict=True))
    substituted = {t.name: c.instead_of for t, c in zip(tensors, choices, strict=True) if c.instead_of}
    return Assigned(target, jobs, warnings, substituted)


def _grouped(tensor: Untyped, imatrix: Imatrix | None) -> Untyped:
    """Return a tensor whose groups of rows have an importance of their own as one of that many parts."""
    if imatrix is None or kind_of(tensor.name) not in GROUPED or len(tensor.parts) != 1:
        return tensor
    weights, whole = imatrix.rows(tensor.name, tensor.shape), tensor.parts[0]
    groups = 1 if weights is None else len(weights)
    if whole.rows % groups:
        found = f"{groups} groups for {whole.rows} rows"
        raise InputError("the importance does not fit the tensor", tensor=tensor.name, found=found)
    step = whole.rows // groups
    parts = tuple(replace(whole, start=at, stop=at + step) for at in range(whole.start, whole.stop, step))
    return replace(tensor, parts=parts)


def _job(tensor: Untyped, choice: Choice, via: str | None) -> TensorJob:
    if tensor.foreign is not None and choice.type != tensor.stored:
        raise InputError(
            f"is of {tensor.stored}, which only the program that made it can decode, and would become {choice.type}",
            tensor=tensor.name,
            remedy="COPY, split and merge move its bytes; to quantize take the file it was made from",
        )
    kept = None if choice.type == "F32" else via
    parts, why = tensor.parts, choice.reason
    return TensorJob(tensor.name, tensor.shape, choice.type, parts, tensor.stored, why, kept, tensor.foreign)


def _check_importance(
    known: Sequence[Tensor],
    choices: Sequence[Choice],
    target: FileType,
    imatrix: Imatrix | None,
) -> list[str]:
    needing = needing_importance(known, choices, target)
    lacking = [(name, kind) for name, kind in needing if imatrix is None or imatrix.missing([name])]
    if lacking:
        shown = ", ".join(f"{name} ({kind})" for name, kind in lacking[:8])
        more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        raise InputError(
            f"{len(lacking)} tensors cannot be encoded without importance: {shown}{more}",
            remedy="Give --imatrix with a matrix that has them, or choose a type of more bits",
        )
    return _report_importance(known, choices, imatrix) if imatrix else []


def _report_importance(known: Sequence[Tensor], choices: Sequence[Choice], imatrix: Imatrix) -> list[str]:
    """Check the importance of every tensor that will use it, and name those that have none."""
    shapes = {
        name: shape for (name, shape, stored), choice in zip(known, choices, strict=True) if _uses(choice.type, stored)
    }
    absent = imatrix.missing(shapes)
    without = set(absent)
    blank = imatrix.check({name: shape for name, shape in shapes.items() if name not in without})
    warnings = []
    if blank:
        means = "llama.cpp makes zeros of them" if imatrix.literal else "such blocks are encoded without"
        warnings.append(
            f"In {len(blank)} tensors the importance of neighbouring columns is zero, and {means}: {named(blank)}."
        )
    if absent:
        warnings.append(f"{len(absent)} tensors have no importance and are encoded without: {', '.join(absent)}.")
    if unseen := imatrix.unseen(shapes):
        how = "by the mean of the others" if imatrix.fills_in else "without"
        most, count = max(unseen.items(), key=lambda entry: entry[1])
        warnings.append(
            f"In {len(unseen)} tensors some experts saw no token when the importance was measured, and are encoded "
            f"{how}: {sum(unseen.values())} in all, {count} of them in {most}."
        )
    return warnings


def _uses(kind: str, stored: str | None) -> bool:
    return kind != stored and ggtypes.by_name(kind).block > 1
