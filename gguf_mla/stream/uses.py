"""What a run will have a device do."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gguf_mla.codec.trial import Use, uses
from gguf_mla.stream.worker import is_copied, is_handed_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gguf_mla.codec.device import Device
    from gguf_mla.plan.jobs import Plan
    from gguf_mla.sources.tensor import SourceTensor


def uses_in(plans: Iterable[Plan], sources: Mapping[str, SourceTensor], device: Device, *, weighted: bool) -> set[Use]:
    """Return everything that a run of these plans has a device do; `weighted`: there may be importance."""
    encoding = ("encode", "encode_weighted") if weighted else ("encode",)
    found: set[Use] = set()
    jobs = itertools.chain.from_iterable(plan.tensors for plan in plans)
    for job, part in ((tensor, part) for tensor in jobs for part in tensor.parts):
        source = sources[part.source]
        if not is_copied(part, source, job):
            found.update(uses(job.type, encoding))
        if is_handed_over(device, source, job, part):
            found.update(uses(str(source.raw_type), ("decode",)))
    return found
