"""Checkpoints that nobody has trained: the shapes of a real one, without content or with random weights.

A hollow one is headers and holes, so all of DeepSeek-V3 takes a few megabytes of disk; it can be planned. One with
weights has the same matrices, but fewer layers and experts; it can be converted.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gguf_mla.checkpoint import INDEX
from gguf_mla.checkpoint.safetensors import ITEM_BYTES
from gguf_mla.families import family_of
from gguf_mla.families.base import source_shapes
from gguf_mla.families.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

SHARD_BYTES = 4_265_000_000  # as DeepSeek-V3's, which has 163 of them
TILE = 1 << 20  # random values that are repeated
FP8_BLOCK = 128
TOKENIZER = "data/tiny-deepseek-v3"
SHAPES: dict[str, dict[str, Any]] = {
    "deepseek-v3": {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61,
        "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "hidden_act": "silu",
        "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
        "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0,
        },
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of a shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def reduced(config: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Return a configuration of about a fraction of the parameters: fewer layers and experts, all matrices as wide.

    One dense layer stays; without multi-token prediction.
    """
    base = dict(config) | {"first_k_dense_replace": 1, "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    groups, one = config["n_group"], 3 * config["hidden_size"] * config["moe_intermediate_size"]
    rest = parameters(base | {"n_routed_experts": groups}) - groups * one
    experts = max(groups, (fraction * parameters(config) - rest) / one)
    layers = math.ceil(experts / config["n_routed_experts"])
    in_groups = max(1, round(experts / layers / groups)) * groups
    return base | {"num_hidden_layers": 1 + layers, "n_routed_experts": min(in_groups, config["n_routed_experts"])}


def parameters(config: Mapping[str, Any]) -> int:
    """Return how many weights the model has, without multi-token prediction."""
    return sum(math.prod(shape) for shape in _shapes(config).values())


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    checked = Config(config, Path("config.json"))
    return source_shapes(family_of(checked), checked)


def tensors(config: Mapping[str, Any]) -> Iterator[Stored]:
    """Yield every tensor that is stored: matrices of layers as FP8 codes and scales, the rest BF16 or float32."""
    shapes = _shapes(config)
    if config["num_nextn_predict_layers"]:
        shapes |= _prediction(config, shapes)
    for name, shape in shapes.items():
        if ".layers." in name and name.endswith(("proj.weight", "proj_with_mqa.weight")) and "eh_proj" not in name:
            yield Stored(name, "F8_E4M3", shape)
            yield Stored(f"{name}_scale_inv", "F32", tuple(-(-size // FP8_BLOCK) for size in shape))
        else:
            yield Stored(name, "F32" if name.endswith("bias") else "BF16", shape)


def _prediction(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the layer for multi-token prediction: those of the last layer, and its own."""
    layers, hidden, vocabulary = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    last, prefix = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    own = {
        "embed_tokens.weight": (vocabulary, hidden), "enorm.weight": (hidden,), "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden), "shared_head.norm.weight": (hidden,),
        "shared_head.head.weight": (vocabulary, hidden),
    }  # fmt: skip
    copied = {prefix + name.removeprefix(last): shape for name, shape in shapes.items() if name.startswith(last)}
    return copied | {prefix + name: shape for name, shape in own.items()}


def write(directory: Path, config: Mapping[str, Any], fill: Callable[[BinaryIO, Stored], object]) -> int:
    """Write a checkpoint whose tensors get their content from `fill`; return the number of shards."""
    directory.mkdir(parents=True)
    where: dict[str, str] = {}
    groups = list(_groups(tensors(config)))
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):06}.safetensors"
        _write_shard(directory / name, group, fill)
        where |= dict.fromkeys((tensor.name for tensor in group), name)
    for name, content in (
        (INDEX, {"weight_map": where}),
        ("config.json", config),
        ("tokenizer.json", _tokenizer(config["vocab_size"])),
        ("tokenizer_config.json", json.loads((_tokenizer_files() / "tokenizer_config.json").read_text("utf-8"))),
    ):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return len(groups)


def hollow(file: BinaryIO, tensor: Stored) -> None:
    """Leave a hole."""
    file.truncate(file.seek(tensor.nbytes, 1))


def random_weights() -> Callable[[BinaryIO, Stored], None]:
    """Return a filling with normally distributed weights, the same on every run."""
    x = np.random.default_rng(0).standard_normal(TILE).astype(np.float32)
    tiles: dict[str, NDArray[Any]] = {
        "F8_E4M3": _e4m3(x),
        "BF16": _bf16(x * np.float32(0.02)),
        "F32": np.abs(x) * np.float32(1e-3),
    }

    def fill(file: BinaryIO, tensor: Stored) -> None:
        tile = tiles[tensor.dtype]
        whole, rest = divmod(math.prod(tensor.shape), TILE)
        file.writelines([tile.data] * whole)
        file.write(tile[:rest].data)

    return fill


def _bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _e4m3(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return codes of about 100 times the values: sign, 4 bits of exponent, 3 of mantissa, the rest cut off."""
    bits = (x * np.float32(100 * 2.0**-120)).view(np.uint32)
    codes: NDArray[np.uint32] = (bits >> 24 & 0x80) | np.minimum(bits >> 20 & 0x7F, 0x7E)
    return codes.astype(np.uint8)


def _groups(stored: Iterable[Stored]) -> Iterator[list[Stored]]:
    group: list[Stored] = []
    size = 0
    for tensor in stored:
        if group and size + tensor.nbytes > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    yield group


def _write_shard(path: Path, group: list[Stored], fill: Callable[[BinaryIO, Stored], object]) -> None:
    ends = list(itertools.accumulate(tensor.nbytes for tensor in group))
    header = json.dumps(
        {
            tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end - tensor.nbytes, end]}
            for tensor, end in zip(group, ends, strict=True)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in group:
            fill(file, tensor)


def _tokenizer_files() -> Path:
    return Path(str(files("gguf_mla"))) / TOKENIZER


def _tokenizer(size: int) -> dict[str, Any]:
    """Return the bundled tokenizer with so many tokens: each further one joins two that are there."""
    content: dict[str, Any] = json.loads((_tokenizer_files() / "tokenizer.json").read_text("utf-8"))
    model, known = content["model"], {token["content"] for token in content["added_tokens"]}
    vocabulary: dict[str, int] = model["vocab"]
    least = list(vocabulary)[: math.isqrt(2 * size)]
    number = max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]) + 1
    for first, second in itertools.product(least, least):
        if number == size:
            break
        if (joined := first + second) not in vocabulary and joined not in known:
            vocabulary[joined] = number
            model["merges"].append(f"{first} {second}")
            number += 1
    return content
