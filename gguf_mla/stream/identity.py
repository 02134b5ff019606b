"""What a run is made of, so that nobody goes on with what was begun otherwise, and the same plan is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gguf_mla.files.stamp import stamp
from gguf_mla.stream import chunks
from gguf_mla.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gguf_mla.container.writer import FileLayout
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.plan.jobs import Importance
    from gguf_mla.plan.outputs import PlannedFile


@dataclass(frozen=True)
class Identity:
    """What a run is made of: equal identities make equal bytes.

    version     of this package
    plan        a digest of all heads and of how each tensor is made
    inputs      the stamps of the files that are read
    importance  a digest of what decides the importance weights
    """

    version: str
    plan: str
    inputs: list[list[Any]]
    importance: str


def identity(
    planned: Sequence[PlannedFile], layouts: Sequence[FileLayout], inputs: Iterable[AnyPath], importance: Importance
) -> Identity:
    """Return the identity of a run that writes these files from these inputs; InputError for an unreadable input."""
    digest = hashlib.sha256(str(chunks.CHUNK_VALUES).encode())
    for file, layout in zip(planned, layouts, strict=True):
        digest.update(file.path.name.encode() + b"\0" + layout.head)
        for job in file.tensors:
            digest.update(repr(replace(job, reason="")).encode())  # the reason decides no byte
    weights = hashlib.sha256(json.dumps(importance.identity, sort_keys=True).encode())
    return Identity(__version__, digest.hexdigest(), [stamp(path) for path in inputs], weights.hexdigest())


def difference(found: Mapping[str, Any], stated: Identity) -> str | None:
    """Return in what a run differs from one that is made of `found`, in words that go on after "begun"."""
    inputs = found.get("inputs")
    if found.get("version") != stated.version:
        return f"by another version of gguf-mla ({found.get('version')})"
    if found.get("plan") != stated.plan:
        return "with other options or another configuration"
    if inputs != stated.inputs:
        known = inputs if isinstance(inputs, list) else []
        changed = next((entry[0] for entry in stated.inputs if entry not in known), "one")
        return f"from other inputs, {changed} has changed since"
    if found.get("importance") != stated.importance:
        return "with other importance: which files, and what is included, excluded or stands in"
    return None
