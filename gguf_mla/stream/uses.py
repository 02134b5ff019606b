"""What a run will have a device do."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gguf_mla.codec import trial
from gguf_mla.stream.worker import is_copied, is_handed_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gguf_mla.codec.device import Device
    from gguf_mla.plan.jobs import Plan
    from gguf_mla.sources.tensor import SourceTensor


def uses_in(
    plans: Iterable[Plan], sources: Mapping[str, SourceTensor], device: Device, *, weighted: bool
) -> set[trial.Use]:
    """Return everything that a run of these plans has a device do; `weighted`: there may be importance."""
    found: set[trial.Use] = set()
    jobs = itertools.chain.from_iterable(plan.tensors for plan in plans)
    for job, part in ((tensor, part) for tensor in jobs for part in tensor.parts):
        source = sources[part.source]
        if not is_copied(part, source, job):
            found.update(trial.writing(job.type, weighted=weighted))
        if is_handed_over(device, source, job, part):
            found.update(trial.reading(str(source.raw_type)))
    return found
