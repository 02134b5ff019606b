"""The values a planned tensor is made of, as a digest: what a file would hold, without writing one."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gguf_mla.ggtypes.shared import floats


def digest(job: Any, sources: Any) -> bytes:
    """SHA-256 of shape and values of all parts, as float32."""
    found = hashlib.sha256(repr(job.shape).encode())
    for part in job.parts:
        source = sources[part.source]
        found.update(b"T" if part.transposed else b"-")
        found.update(np.ascontiguousarray(floats.to_float32(source.read(part.start, part.stop), source.values)).data)
    return found.digest()
