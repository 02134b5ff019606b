"""What a run wrote, or would write, as JSON-ready data: the `outputs` of a document."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gguf_mla.files import checksums
from gguf_mla.stream.goal import Goal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gguf_mla.plan.jobs import Plan
    from gguf_mla.stream.run import Job

NONE: Mapping[Path, str] = MappingProxyType({})


def outputs(job: Job, *, planned: bool, checked: bool, sums: Mapping[Path, str] = NONE) -> Iterator[dict[str, Any]]:
    """Yield each output of a job.

    planned  with everything that was decided: metadata, and every tensor with the reason of its type
    checked  with the SHA-256 that were written beside the files
    sums     the SHA-256 that are known otherwise
    """
    for plan, output in job.outputs:
        goal = Goal.of([output])
        yield {
            "path": str(output[0].path),
            "parts": list(_parts(goal, sums, checked=checked)),
            "bytes": goal.nbytes,
            "tensor_bytes": plan.nbytes,
            "tensors": len(plan.tensors),
            "parameters": plan.parameters,
            "bits_per_weight": round(8 * plan.nbytes / plan.parameters, 4) if plan.parameters else None,
            "bytes_by_type": plan.bytes_by_type(),
            "dropped": dict(plan.dropped),
            "substituted": dict(plan.substituted),
            "warnings": list(plan.warnings),
            "plan": _plan(plan) if planned else None,
        }


def _parts(goal: Goal, sums: Mapping[Path, str], *, checked: bool) -> Iterator[dict[str, Any]]:
    for path, nbytes in goal.sizes:
        sha256 = sums.get(path) or (checksums.stated(path) if checked else None)
        yield {"path": str(path), "bytes": nbytes, "sha256": sha256}


def _plan(plan: Plan) -> dict[str, Any]:
    found = plan.as_json()
    return {name: found[name] for name in ("metadata", "tensors")}
