"""DeepSeek-family checkpoints to GGUF: what the files mean.

    quantize, dequantize            rows of float32 to rows of a ggml type and back
    open_gguf, open_checkpoint      files with their metadata or configuration and their tensors
    types                           the ggml types
    split_kv_b, join_kv_b           the layouts of MLA's key-value projection

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["dequantize", "join_kv_b", "open_checkpoint", "open_gguf", "quantize", "split_kv_b", "types"]

from gguf_mla.version import __version__ as __version__

if TYPE_CHECKING:
    from gguf_mla.codec.rows import dequantize, quantize
    from gguf_mla.container.reader import open_gguf
    from gguf_mla.ggtypes import types
    from gguf_mla.layout.kv_b import join_kv_b, split_kv_b
    from gguf_mla.sources.checkpoint import open_checkpoint
else:  # a type checker that saw `__getattr__` would take every name for one that exists
    _HOMES = {
        "dequantize": "gguf_mla.codec.rows",
        "join_kv_b": "gguf_mla.layout.kv_b",
        "open_checkpoint": "gguf_mla.sources.checkpoint",
        "open_gguf": "gguf_mla.container.reader",
        "quantize": "gguf_mla.codec.rows",
        "split_kv_b": "gguf_mla.layout.kv_b",
        "types": "gguf_mla.ggtypes",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
