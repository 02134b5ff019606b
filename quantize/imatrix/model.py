"""The model that is run, and what reads texts for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container import splits
from gguf_mla.families import family_of
from gguf_mla.forward.tensors import CheckpointWeights
from gguf_mla.sources import hub_cache
from gguf_mla.sources.beginning import bos_of
from gguf_mla.sources.config import Config
from gguf_mla.sources.tokenizer_files import TOKENIZER, read_tokenizer
from gguf_mla.text import encoders, ranks
from gguf_mla.text.calibration import Reader

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.tensors import GgufWeights


def reader_of(weights: CheckpointWeights | GgufWeights, *, special: bool) -> Reader:
    """Return what reads texts; `special`: whether the names of control tokens in a text are those tokens."""
    vocab = weights.model.vocab
    if isinstance(weights, CheckpointWeights):
        encode = encoders.of_folder(weights.checkpoint.folder, special=special)
        return Reader(encode, _beginning(weights), vocab)
    metadata = weights.file.metadata
    adds = metadata.get("tokenizer.ggml.add_bos_token", False)
    bos = metadata.get("tokenizer.ggml.bos_token_id") if adds else None
    return Reader(encoders.of_gguf(metadata, weights.file.path, special=special), bos, vocab)


def _beginning(weights: CheckpointWeights) -> int | None:
    """Return the token that begins every text; a checkpoint without a tokenizer is run over token ids as they stand."""
    checkpoint = weights.checkpoint
    if not {TOKENIZER, ranks.FILE} & set(checkpoint.folder.names()):
        return None
    family = family_of(Config(checkpoint.config, checkpoint.folder.path / "config.json"))
    return bos_of(read_tokenizer(checkpoint.folder), always=bool(family.bos_first))


def name_of(model: AnyPath) -> str:
    """Return what a matrix of a model is called, without its ending."""
    return hub_cache.model_name(model) if model.is_dir() else splits.model_name(model)
