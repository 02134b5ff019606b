"""Which kernels a run will need, known from its plans before anything is read."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gguf_mla import ggtypes
from gguf_mla.codec.ahead import Need, to_decode, to_encode
from gguf_mla.codec.encoding import encodings
from gguf_mla.codec.on_cpu import WORTH_A_KERNEL
from gguf_mla.stream.worker import is_copied

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gguf_mla.plan.jobs import Importance, Plan, TensorJob, Untyped
    from gguf_mla.sources.tensor import SourceTensor


def of_plans(plans: Iterable[Plan], sources: Mapping[str, SourceTensor], importance: Importance) -> list[Need]:
    """Return what writing these plans needs."""
    found: dict[Need, None] = {}
    for job in itertools.chain.from_iterable(plan.tensors for plan in plans):
        origins = {_kind(sources[part.source]): part for part in job.parts}  # experts are alike
        encoded = [sources[p.source] for p in origins.values() if not is_copied(p, sources[p.source], job)]
        for source in encoded:
            found.update(dict.fromkeys(_of_reading(source)))
            found.update(dict.fromkeys(_of_writing(job, source.values)))
        if encoded and ggtypes.by_name(job.type).block > 1:
            found[to_encode(job.type, weighted=importance.rows(job.name, job.shape) is not None)] = None
    return list(found)


def of_measuring(
    tensors: Iterable[Untyped], types: Iterable[Sequence[str]], sources: Mapping[str, SourceTensor], *, weighted: bool
) -> list[Need]:
    """Return what measuring the errors of types needs; `weighted`: with importance."""
    found: dict[Need, None] = {}
    for tensor in tensors:
        for source in {_kind(sources[part.source]): sources[part.source] for part in tensor.parts}.values():
            found.update(dict.fromkeys(_of_reading(source)))
    for kind in dict.fromkeys(itertools.chain.from_iterable(types)):
        if ggtypes.by_name(kind).block > 1:
            found[to_encode(kind, weighted=weighted)] = found[to_decode(kind)] = None
    return list(found)


def _kind(source: SourceTensor) -> tuple[type, str | None, str]:
    """Return what tells sources apart by the kernels that they need."""
    return type(source), source.raw_type, source.values


def _of_reading(source: SourceTensor) -> Iterator[Need]:
    yield from getattr(source, "needs", ())  # most sources need none, and a Protocol would be asked of every expert


def _of_writing(job: TensorJob, values: str) -> Iterator[Need]:
    """Yield what rounding and converting floats needs, where they are enough for a kernel."""
    if job.spec.nbytes < WORTH_A_KERNEL:
        return
    if job.via and values != job.via:
        yield to_encode(job.via)
    if (
        ggtypes.by_name(job.type).block == 1
        and (job.via or values) != job.type
        and encodings(ggtypes.by_name(job.type))
    ):
        yield to_encode(job.type)
