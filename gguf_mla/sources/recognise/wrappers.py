"""Parts of names that wrappers leave behind: torch.compile, FSDP, activation checkpointing, PEFT's layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

PARTS = (
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning
    "base_layer",  # PEFT, where the adapter itself is gone
    "original_module",
)
_PART = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(PARTS)})\.")


def recognise(reading: Reading) -> Reading:
    """Return the reading with names as they are without wrappers."""
    wrapped = reading.named(_PART)
    if not wrapped:
        return reading
    parts = sorted({part[:-1] for name in wrapped for part in _PART.findall(name)})
    note = f"wrappers: {len(wrapped)} names hold {examples(parts)}, which is left out of them."
    return reading.renamed(lambda name: _PART.sub("", name)).noted(note)
