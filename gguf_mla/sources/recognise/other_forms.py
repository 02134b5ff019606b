"""A directory without weights that can be read: what it holds instead, and the way on."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from gguf_mla.sources.folder import Folder

# File names, what they are the mark of, and what to do. The first that is there is said.
FORMS = (
    (
        "zero_to_fp32.py",
        "is a training checkpoint of DeepSpeed",
        "Run its zero_to_fp32.py with --safe_serialization, and convert what that writes",
    ),
    (
        "*.distcp",
        "is a distributed checkpoint of PyTorch",
        "Save the model with save_pretrained from the program that trained it, and convert the result",
    ),
    (
        "*.metadata",
        "is a distributed checkpoint of PyTorch",
        "Save the model with save_pretrained from the program that trained it, and convert the result",
    ),
    (
        "*.bin;*.pt;*.pth;*.ckpt",
        "holds the checkpoint only in the pickle format, which can run code and is never loaded",
        "Download the safetensors version, or save the model again with safe_serialization",
    ),
    ("*.gguf", "holds GGUF files already", "Give the file itself to gguf-mla quantize, upgrade or inspect"),
    (
        "*.incomplete;*.part;*.aria2;*.crdownload",
        "holds a download that has not ended",
        "Let the download end, or start it again",
    ),
)


def check(folder: Folder, names: list[str]) -> None:
    """Raise InputError for a directory in Mistral's own form, which has its configuration under another name."""
    if "params.json" in names and "config.json" not in names:
        raise InputError(
            "is in Mistral's own form, whose configuration, tensors and tokenizer have other names",
            file=folder.path,
            expected="config.json",
            found="params.json",
            remedy="Take the edition in transformers' form; llama.cpp's converter reads this one with --mistral-format",
        )


def no_weights(folder: Folder, names: list[str]) -> InputError:
    """Return the error for a folder without a safetensors file."""
    for patterns, what, remedy in FORMS:
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split(";")):
                return InputError(what, file=folder.path, found=name, remedy=remedy)
    return InputError(
        "there are no weights in the directory",
        file=folder.path,
        expected="model.safetensors.index.json with its shards, or model.safetensors",
        found="neither",
    )
