"""The plan of a quantization: the tensors of a GGUF file, each with the type its file type gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.container.values import QUANTIZATION_VERSION, Value, u32
from gguf_mla.errors import InputError
from gguf_mla.plan.assign import assign
from gguf_mla.plan.jobs import Plan, TensorJob
from gguf_mla.plan.override_kv import override
from gguf_mla.plan.remarks import remarks
from gguf_mla.recipes import COPY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import PurePath

    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.plan.budgeted import Measure
    from gguf_mla.plan.draft import Content
    from gguf_mla.plan.jobs import Untyped
    from gguf_mla.recipes import Budget, FileType, Overrides

IMATRIX = "quantize.imatrix."  # the keys that say which importance matrix a file was made with
PLAIN = ("F32", "F16", "BF16")


def plan_quantization(
    content: Content,
    targets: Sequence[FileType | Budget],
    overrides: Overrides,
    imatrix: Imatrix | None = None,
    measure: Measure | None = None,
    *,
    allow_requantize: bool = False,
    settings: Sequence[str] = (),
) -> list[tuple[Plan, FileType]]:
    """Return a plan for each file type; metadata keep their order, unknown ones stay as they are.

    `settings` are `KEY=TYPE:VALUE`; `measure` is what a budget needs. Raises InputError for a tensor that would be
    quantized a second time, unless `allow_requantize`, and for types that need importance where there is none.
    """
    plans = []
    for target in targets:
        got, jobs, warnings, substituted = assign(
            content.tensors, target, content.metadata, overrides, imatrix, measure=measure
        )
        if not allow_requantize:
            _check_requantizing(content, jobs)
        metadata = _metadata(content, got, imatrix, settings)
        said = (*content.warnings, *_remarks(content), *warnings)
        plans.append((Plan(metadata, jobs, content.dropped, said, substituted), got))
    return plans


def plan_copy(content: Content, new_type: str | None = None) -> Plan:
    """Return a plan that changes no type but those of transposed tensors, which have to be encoded anew.

    `new_type` is theirs; by default each keeps the type of its other half where the rows of that are kept, and
    otherwise gets the nearest type that fits its rows. InputError for a type that does not fit or needs importance.
    """
    jobs = tuple(_copied(tensor, new_type, content.path) for tensor in content.tensors)
    return Plan(content.metadata, jobs, content.dropped, (*content.warnings, *_remarks(content)))


def _remarks(content: Content) -> Iterator[str]:
    return remarks((tensor.name for tensor in content.tensors), content.metadata)


def _copied(tensor: Untyped, new_type: str | None, path: PurePath) -> TensorJob:
    name, shape, parts, stored = tensor.name, tensor.shape, tensor.parts, tensor.stored
    if any(part.transposed for part in parts):
        kind = new_type or tensor.ggml_type or _nearest(stored, shape[-1])
        _check_type(kind, tensor, path)
        return TensorJob(name, shape, kind, parts, stored, "transposed, so encoded anew")
    return TensorJob(name, shape, str(tensor.ggml_type), parts, stored, "copied", foreign=tensor.foreign)


def _nearest(stored: str, cols: int) -> str:
    """Return the type that loses least: floats lose nothing as themselves, blocks of 32 fit rows that others do not."""
    return stored if stored in PLAIN else "Q8_0" if ggtypes.by_name("Q8_0").fits(cols) else "F16"


def _check_type(kind: str, tensor: Untyped, path: PurePath) -> None:
    found = ggtypes.types().get(kind)
    if found is None or found.needs_importance or not found.fits(tensor.shape[-1]):
        raise InputError(
            f"cannot be encoded as {kind}",
            file=path,
            tensor=tensor.name,
            expected=f"a type that needs no importance and fits rows of {tensor.shape[-1]}",
            found=kind,
            remedy="Name another type, Q8_0 loses little",
        )


def _check_requantizing(content: Content, jobs: Sequence[TensorJob]) -> None:
    fine = (*PLAIN, None)  # None: a tensor that has to be encoded in any case
    changed = [job for t, job in zip(content.tensors, jobs, strict=True) if t.ggml_type not in (*fine, job.type)]
    if changed:
        first = changed[0]
        raise InputError(
            f"is already quantized as {first.stored} and would become {first.type}, which loses twice",
            file=content.path,
            tensor=first.name,
            remedy="Quantize from an F16, BF16 or F32 file, or give --allow-requantize",
        )


def _metadata(content: Content, target: FileType, imatrix: Imatrix | None, settings: Sequence[str]) -> dict[str, Value]:
    kept = {key: value for key, value in content.metadata.items() if target is COPY or not key.startswith(IMATRIX)}
    stated = {"general.quantization_version": u32(QUANTIZATION_VERSION)}
    if target is not COPY:
        stated["general.file_type"] = u32(target.id)
    if imatrix is not None and not target.plain and target is not COPY:
        stated |= imatrix.metadata()
    return override({**kept, **stated}, settings)
