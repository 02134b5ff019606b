"""Embeddings with more or fewer rows than the configuration's vocabulary has tokens.

Training pads the embeddings to a multiple of 64 or more, and merging tools keep the padding without counting it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.families.base import HEAD

if TYPE_CHECKING:
    from gguf_mla.families.base import Layers
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.config import Config

EMBEDDINGS = "model.embed_tokens.weight"
PREDICTING = ("model.layers.{layer}.embed_tokens.weight", "model.layers.{layer}.shared_head.head.weight")


def check(config: Config, checkpoint: Checkpoint) -> None:
    """Raise InputError where the embeddings have another number of rows than there are tokens."""
    rows, tokens = _rows(config, checkpoint), config.positive("vocab_size")
    if rows == tokens:
        return
    if rows > tokens:
        what = f"has {rows - tokens} rows more than vocab_size"
        remedy = (
            "If they are padding: --pad-vocab keeps them, as tokens that are never used. If they are tokens, correct "
            f"it: --set vocab_size={rows}"
        )
    else:
        what = f"has {tokens - rows} rows fewer than vocab_size"
        remedy = f"If config.json is that of a model with more tokens, correct it: --set vocab_size={rows}"
    raise InputError(what, file=checkpoint.folder.path, tensor=EMBEDDINGS, expected=tokens, found=rows, remedy=remedy)


def padded(config: Config, checkpoint: Checkpoint, layers: Layers) -> Config:
    """Return the configuration with as many tokens as there are rows; InputError where prediction layers have fewer."""
    rows = _rows(config, checkpoint)
    if rows <= config.positive("vocab_size"):
        return config
    for layer in range(layers.ordinary, layers.total):
        for name in (pattern.format(layer=layer) for pattern in PREDICTING):
            tensor = checkpoint.tensors.get(name)
            if tensor is not None and tensor.shape[0] != rows:
                raise InputError(
                    f"has another number of rows than {EMBEDDINGS}, which is padded",
                    file=checkpoint.folder.path,
                    tensor=name,
                    expected=rows,
                    found=tensor.shape[0],
                    remedy="Leave multi-token prediction out with --no-mtp, or pad these tensors, too",
                )
    return config.changed(vocab_size=rows)


def _rows(config: Config, checkpoint: Checkpoint) -> int:
    """Return how many rows embeddings and output matrix agree on; vocab_size where they do not, or are no matrices."""
    found = {
        tensor.shape[0]
        for name in (EMBEDDINGS, HEAD)
        if (tensor := checkpoint.tensors.get(name)) is not None
        and len(tensor.shape) == 2
        and tensor.shape[1] == config.positive("hidden_size")
    }
    return found.pop() if len(found) == 1 else config.positive("vocab_size")
