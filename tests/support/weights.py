"""Checkpoints and GGUF files as the forward pass reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_mla import open_checkpoint, open_gguf
from gguf_mla.forward import walk
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.forward.of_gguf import model_of_gguf
from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
from gguf_mla.sources.config import Config

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.tensors import Weights


def checkpoint_weights(directory: Path) -> CheckpointWeights:
    checkpoint = open_checkpoint(directory)
    config = Config(checkpoint.config, directory / "config.json")
    return CheckpointWeights(checkpoint, model_of_config(config, checkpoint.tensors))


def gguf_weights(path: Path) -> GgufWeights:
    file = open_gguf(path)
    return GgufWeights(file, model_of_gguf(file))


def logits(weights: Weights, prompt: list[int]) -> np.ndarray:
    """Logits at every position of a prompt, float32 [T, vocabulary]."""
    pass_ = Pass(weights)
    hidden = walk.hidden_states(pass_, np.array([prompt]))
    pieces = list(pass_.pieces(hidden[0], "output.weight"))
    assert [start for start, _ in pieces] == np.cumsum([0, *(p.shape[1] for _, p in pieces[:-1])]).tolist()
    return np.concatenate([piece.numpy() for _, piece in pieces], axis=1)
