"""Made-up checkpoints, laid out as their models are published: names, types, shards, index and tokenizer.

A hollow one is headers and holes, so all of DeepSeek-V3 takes a few megabytes of disk; it can be planned. One with
random weights is as fast to make as the disk allows, and can be converted; one with tame weights can also be run.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gguf_mla.sources.checkpoint import INDEX
from gguf_mla.synthetic import numbers, published_v4, storage, tokenizers
from gguf_mla.synthetic.shapes import apart, shapes
from gguf_mla.synthetic.storage import FP8_BLOCK, INT4_GROUP, StoredForm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SHARD_BYTES = 4_265_000_000  # as DeepSeek-V3's, which has 163 of them
TILE = 1 << 20  # random values that are repeated
TAMED = 0.15  # how much of their size the matrices keep whose outputs are added up: a model that is not chaotic

FP8_NAMES = ("_proj.weight", "_proj_with_mqa.weight", ".wq_b.weight", ".wk.weight")
BF16_NAMES = ("eh_proj.weight", "weights_proj.weight")


def tensors(config: Mapping[str, Any]) -> Iterator[StoredForm]:
    """Yield every tensor that is stored, in the format that the configuration states."""
    if config["model_type"] == published_v4.MODEL_TYPE:
        return published_v4.tensors(config, shapes(config) | apart(config))
    return _tensors(config)


def _tensors(config: Mapping[str, Any]) -> Iterator[StoredForm]:
    weights = shapes(config)
    layers = config["num_hidden_layers"]
    if config.get("num_nextn_predict_layers") and f"model.layers.{layers}.eh_proj.weight" not in weights:
        weights |= _prediction(config, weights)
    method = (config.get("quantization_config") or {}).get("quant_method")
    for name, shape in weights.items():
        if method == "fp8" and ".layers." in name and name.endswith(FP8_NAMES) and not name.endswith(BF16_NAMES):
            yield from _fp8(name, shape)
        elif method == "compressed-tensors" and ".experts." in name:
            yield from _int4(name, shape)
        else:
            correction = name.endswith("e_score_correction_bias")
            yield StoredForm(name, "F32" if correction else "BF16", shape, name, shape)


def _fp8(name: str, shape: tuple[int, ...]) -> Iterator[StoredForm]:
    codes, scales = storage.fp8(name, shape)
    yield StoredForm(*codes, name, shape, "fp8")
    yield StoredForm(*scales, name, shape, "fp8 scales")


def _int4(name: str, shape: tuple[int, ...]) -> Iterator[StoredForm]:
    words, scales, size = storage.int4(name, shape)
    yield StoredForm(*words, name, shape, "int4")
    yield StoredForm(*scales, name, shape, "int4 scales")
    yield StoredForm(*size, name, shape, content=np.array(shape, np.int32).tobytes())


def _prediction(config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the layer for multi-token prediction: those of the last layer, and its own."""
    layers, hidden, vocabulary = config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]
    last, prefix = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    own = {
        "embed_tokens.weight": (vocabulary, hidden), "enorm.weight": (hidden,), "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden), "shared_head.norm.weight": (hidden,),
        "shared_head.head.weight": (vocabulary, hidden),
    }  # fmt: skip
    copied = {prefix + name.removeprefix(last): shape for name, shape in weights.items() if name.startswith(last)}
    return copied | {prefix + name: shape for name, shape in own.items()}


def write(
    directory: Path,
    config: Mapping[str, Any],
    fill: Callable[[BinaryIO, StoredForm], object],
    *,
    shard_bytes: int = SHARD_BYTES,
    files: Mapping[str, bytes] | None = None,
) -> int:
    """Write a checkpoint whose tensors get their content from `fill`; return the number of shards.

    `files` has more files by name; by default the bundled tokenizer, stretched to the vocabulary's size.
    """
    directory.mkdir(parents=True)
    where: dict[str, str] = {}
    groups = list(_groups(tensors(config), shard_bytes))
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):06}.safetensors"
        _write_shard(directory / name, group, fill)
        where |= dict.fromkeys((tensor.name for tensor in group), name)
    total = sum(tensor.nbytes for group in groups for tensor in group)
    written = {
        INDEX: tokenizers.as_json({"metadata": {"total_size": total}, "weight_map": where}),
        "config.json": tokenizers.as_json(config),
        **(tokenizers.stretched(config["vocab_size"]) if files is None else files),
    }
    for name, content in written.items():
        (directory / name).write_bytes(content)
    return len(groups)


def hollow(file: BinaryIO, tensor: StoredForm) -> None:
    """Leave a hole."""
    file.truncate(file.seek(tensor.nbytes, 1))


def random_weights() -> Callable[[BinaryIO, StoredForm], None]:
    """Return a filling with normally distributed weights, the same on every run."""
    x = np.random.default_rng(0).standard_normal(TILE).astype(np.float32)
    tiles: dict[str, NDArray[Any]] = {
        "F8_E4M3": _e4m3(x),
        "BF16": _bf16(x * np.float32(0.02)),
        "F32": np.abs(x) * np.float32(1e-3),
        "I32": x.view(np.int32) * np.int32(747796405),
        "I8": x.view(np.int32).astype(np.int8),
        "I64": np.zeros(TILE, np.int64),  # tables of experts, who are all the first
        "F8_E8M0": np.full(TILE, 120, np.uint8),  # 2^-7
    }

    def fill(file: BinaryIO, tensor: StoredForm) -> None:
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


def tame_weights(seed: int, *, power_of_two: bool = False) -> Callable[[BinaryIO, StoredForm], None]:
    """Return a filling with which a model behaves: what leaves a layer is small beside what passes it by.

    The bytes depend on the seed and the tensors' names alone. `power_of_two`: FP8 scales are powers of two.
    """

    @functools.lru_cache(maxsize=1)
    def halves(name: str, shape: tuple[int, ...], form: str) -> tuple[NDArray[Any], NDArray[Any]]:
        values = _tame(name, shape, seed)
        if form == "fp8":
            return numbers.e4m3_blocks(values, FP8_BLOCK, power_of_two=power_of_two)
        if form == "mxfp4":
            return numbers.mxfp4_groups(values)
        integers, scales = numbers.int4_groups(values, INT4_GROUP)
        return numbers.to_int32_words(integers), scales

    def fill(file: BinaryIO, tensor: StoredForm) -> None:
        form, _, scales = tensor.form.partition(" ")
        if form == "plain":
            values = _tame(tensor.base, tensor.whole, seed)
            content: NDArray[Any] = values if tensor.dtype == "F32" else numbers.to_bf16(values)
        elif form == "table":
            content = published_v4.table(tensor)
        else:
            content = halves(tensor.base, tensor.whole, form)[bool(scales)]
            content = numbers.to_e8m0(content) if tensor.dtype == "F8_E8M0" else content
        file.write(np.ascontiguousarray(content).data)

    return fill


def _tame(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    x = numbers.bell(name, seed, shape)
    if len(shape) == 1:
        norm = name.endswith(("norm.weight", ".scale", "hc_scale"))
        return x * np.float32(0.1 if norm or name.endswith("norm.bias") else 0.2) + np.float32(norm)
    if name.endswith("embed_tokens.weight"):
        return x
    return x * np.float32(_gain(name) / math.sqrt(shape[1]))


def _gain(name: str) -> float:
    """Return the deviation of what a matrix makes of values of deviation 1."""
    if name.endswith(("lm_head.weight", "shared_head.head.weight")):
        return 2.5
    if name.endswith(("o_proj.weight", "o_b_proj.weight", "down_proj.weight")):
        return TAMED
    return 0.7 if name.endswith(("q_proj.weight", "q_b_proj.weight", "_with_mqa.weight")) else 1.0


def _groups(stored: Iterable[StoredForm], shard_bytes: int) -> Iterator[list[StoredForm]]:
    group: list[StoredForm] = []
    size = 0
    for tensor in stored:
        if group and size + tensor.nbytes > shard_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    yield group


def _write_shard(path: Path, group: list[StoredForm], fill: Callable[[BinaryIO, StoredForm], object]) -> None:
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
            if tensor.content is None:
                fill(file, tensor)
            else:
                file.write(tensor.content)
