"""An adapter in the place of a model, and a model that was saved with its adapter unmerged (PEFT, Unsloth, Axolotl)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from gguf_mla.sources.folder import Folder
    from gguf_mla.sources.recognise.reading import Reading

CONFIG = "adapter_config.json"
MERGE = "Merge it into its base model first (PEFT: merge_and_unload, then save_pretrained), and convert the result"
_MARK = re.compile(r"(^|\.)(lora_[ABEM]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save)(\.|$)|\.ia3_l\b")


def check(folder: Folder, names: list[str]) -> None:
    """Raise InputError for a directory that holds an adapter and not a model."""
    adapter = CONFIG in names or any(name.startswith("adapter_model.") for name in names)
    weights = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter")]
    if adapter and not weights:
        raise InputError("is a LoRA adapter, not a model", file=folder.path, found=CONFIG, remedy=MERGE)


def recognise(reading: Reading) -> Reading:
    """Return the reading as it is; InputError where tensors of an adapter lie among those of the model."""
    found = reading.named(_MARK)
    if found:
        what = f"the weights hold an adapter that was not merged: {len(found)} tensors, {examples(found)}"
        raise InputError(what, file=reading.folder.path, remedy=MERGE)
    return reading
