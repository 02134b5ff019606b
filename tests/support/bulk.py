"""Large checkpoints, as fast as the disk takes them, for measurements of time and memory."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.synthetic import numbers
from tests.support import hub, kinds
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from pathlib import Path

WIDTH: kinds.Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 768,
}
TILE = 1 << 20  # values that a bulk checkpoint repeats


def write(
    directory: Path,
    kind: str,
    *,
    layers: int,
    experts: int,
    tokenizer: str = "deepseek",
    shard_bytes: int = 1_000_000_000,
    **changes: Any,
) -> Path:
    """A V3-like checkpoint of any size, as fast as the disk takes it: the tensors repeat a few megabytes of weights."""
    width = {**WIDTH, "num_hidden_layers": layers, "n_routed_experts": experts, **changes}
    config = hub.config_of(kind, tokenizer, **width)
    tile = numbers.bell("tile", 0, (TILE // 1024, 1024)) * np.float32(0.03)
    tiles = {
        "BF16": numbers.to_bf16(tile).reshape(-1),
        "F32": np.abs(tile).reshape(-1),
        "F8_E4M3": numbers.to_e4m3(tile * np.float32(1000)).reshape(-1),
    }
    storage = kinds.KINDS[kind].storage
    tensors = [_repeated(s, tiles) for w in hub.weights(config) for s in hub.stored(w, storage, 0)]
    return hub.assemble(directory, config, tensors, tokenizer, shard_bytes)


def _repeated(tensor: Stored, tiles: dict[str, np.ndarray]) -> Stored:
    start = zlib.crc32(tensor.name.encode()) % TILE

    def make() -> np.ndarray:
        turned = np.roll(tiles[tensor.dtype], start)
        return np.resize(turned, tensor.shape)

    return Stored(tensor.name, tensor.dtype, tensor.shape, make)
