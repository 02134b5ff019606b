"""DeepSeek-family checkpoints to GGUF: what the files mean, and whole jobs as functions (docs/library.md).

    quantize, dequantize            rows of float32 to rows of a ggml type and back
    open_gguf, open_checkpoint      files with their metadata or configuration and their tensors
    types                           the ggml types
    split_kv_b, join_kv_b           the layouts of MLA's key-value projection
    convert, quantize_file,
    upgrade, downgrade, verify      what the commands do, with progress callbacks
    InputError, MachineError        what goes wrong, in sentences; both are GgufMlaError

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "GgufMlaError",
    "InputError",
    "MachineError",
    "convert",
    "dequantize",
    "downgrade",
    "join_kv_b",
    "open_checkpoint",
    "open_gguf",
    "quantize",
    "quantize_file",
    "split_kv_b",
    "types",
    "upgrade",
    "verify",
]

from gguf_mla.version import __version__ as __version__

if TYPE_CHECKING:
    from gguf_mla.codec.rows import dequantize, quantize
    from gguf_mla.container.reader import open_gguf
    from gguf_mla.errors import GgufMlaError, InputError, MachineError
    from gguf_mla.ggtypes import types
    from gguf_mla.layout.kv_b import join_kv_b, split_kv_b
    from gguf_mla.library import convert, downgrade, quantize_file, upgrade, verify
    from gguf_mla.sources.checkpoint import open_checkpoint
else:  # a type checker that saw `__getattr__` would take every name for one that exists
    _HOMES = {
        **dict.fromkeys(("dequantize", "quantize"), "gguf_mla.codec.rows"),
        **dict.fromkeys(("GgufMlaError", "InputError", "MachineError"), "gguf_mla.errors"),
        **dict.fromkeys(("join_kv_b", "split_kv_b"), "gguf_mla.layout.kv_b"),
        **dict.fromkeys(("convert", "downgrade", "quantize_file", "upgrade", "verify"), "gguf_mla.library"),
        "open_checkpoint": "gguf_mla.sources.checkpoint",
        "open_gguf": "gguf_mla.container.reader",
        "types": "gguf_mla.ggtypes",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
