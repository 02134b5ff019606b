"""DeepSeek-family checkpoints to GGUF: what the files mean.

    quantize, dequantize            rows of float32 to rows of a ggml type and back
    open_gguf, open_checkpoint      files with their metadata or configuration and their tensors
    types                           the ggml types
    split_kv_b, join_kv_b           the layouts of MLA's key-value projection

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "dequantize": "gguf_mla.codec.rows",
    "join_kv_b": "gguf_mla.layout.kv_b",
    "open_checkpoint": "gguf_mla.sources.checkpoint",
    "open_gguf": "gguf_mla.container.reader",
    "quantize": "gguf_mla.codec.rows",
    "split_kv_b": "gguf_mla.layout.kv_b",
    "types": "gguf_mla.ggtypes",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - one list of names
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
