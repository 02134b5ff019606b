"""What a device has to show before a proof computes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.codec import trial
from gguf_mla.codec.device import open_device
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath


def check_device(name: str, *paths: AnyPath) -> str | None:
    """Try every type that GGUF files among `paths` hold, and say so; None for the CPU, by which others are judged.

    MachineError if there is no such device, or at the first byte that differs.
    """
    device = open_device(name)
    if device.name == "cpu":
        return None
    types = dict.fromkeys(type_name for path in paths for type_name in _types(path))
    return trial.report(device, trial.check(device, [use for held in types for use in trial.uses(held)]))


def _types(path: AnyPath) -> list[str]:
    """Return the types of a file's tensors; none of a checkpoint, and of what cannot be read: the proof will say so."""
    try:
        return [] if path.is_dir() else [tensor.type for tensor in open_gguf_parts(path).tensors.values()]
    except InputError:
        return []
