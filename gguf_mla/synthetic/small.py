"""A published model in small: random weights that behave, stored as the original's are, with a working tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_mla.files.directories import new_directory
from gguf_mla.synthetic import checkpoints, shapes, tokenizers

if TYPE_CHECKING:
    from pathlib import Path

SEED = 0
SHARDS = 3  # about


def write_small(family: str, size: int, directory: Path) -> int:
    """Write a checkpoint of a family (a key of `shapes.FAMILIES`) with about `size` parameters; return how many it has.

    The same arguments give the same bytes. The directory appears when it is complete. Raises InputError for a size that
    cannot be had and a directory that exists, MachineError when it cannot be written.
    """
    config, tokenizer = _config(family, size)
    files = tokenizer | {"generation_config.json": tokenizers.as_json(_ids(config))}
    total = sum(tensor.nbytes for tensor in checkpoints.tensors(config))
    powers = (config.get("quantization_config") or {}).get("scale_fmt") == "ue8m0"
    fill = checkpoints.tame_weights(SEED, power_of_two=powers)
    with new_directory(directory) as place:
        checkpoints.write(place, config, fill, shard_bytes=total // SHARDS + 1, files=files)
    return shapes.parameters(config)


def _config(family: str, size: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    published = shapes.SHAPES[shapes.FAMILIES[family]]
    if published["model_type"] == "kimi_k2":
        tokenizer, vocabulary = tokenizers.kimis()
        bos = vocabulary - tokenizers.SPECIAL_TOKENS
    else:
        tokenizer, vocabulary, bos = tokenizers.bundled(), tokenizers.SIZE, 0
    return shapes.sized(published, size, vocabulary) | {"bos_token_id": bos, "eos_token_id": bos + 1}, tokenizer


def _ids(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id")}
