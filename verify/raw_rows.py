"""Rows of a checkpoint decoded a second time: from the stored bytes, by ml_dtypes, without gguf-mla's readers.

Of the format's own code nothing is used but the numbers in config.json and the index. Tensors are found by what their
names have in every checkpoint, whatever a tool has put before it; what is not found so, as a part of a fused tensor, is
not judged. Sources: the safetensors format description; for the others those named in gguf_mla.sources.formats, read
anew.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

INDEX = "model.safetensors.index.json"
# What a name has after the prefixes of tools and of models with more parts.
OWN_NAME = re.compile(r"(?:.*?\.)??((?:layers|embed_tokens|norm|lm_head)\..+)")
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I32": np.int32, "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": ml_dtypes.float8_e8m0fnu,  # a byte is an exponent, unless it holds two floats of 4 bits
    "I8": np.int8,
}  # fmt: skip
BYTES = ("U8", "I8")
AWQ = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}  # the columns of a word, lowest bits first

# What the names of DeepSeek-V4's own files have where those of transformers have another word; one after the other.
V4_MARK = "layers.0.hc_attn_fn"
V4_WORDS = (
    ("self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"),
    ("self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"),
    ("self_attn.compressor.indexer.", "attn.indexer.compressor."),
    ("self_attn.", "attn."), ("compressor.kv_proj", "compressor.wkv"), ("compressor.gate_proj", "compressor.wgate"),
    ("compressor.position_bias", "compressor.ape"), ("compressor.kv_norm", "compressor.norm"),
    ("attn.q_a_proj", "attn.wq_a"), ("attn.q_a_norm", "attn.q_norm"), ("attn.q_b_proj", "attn.wq_b"),
    ("attn.kv_proj", "attn.wkv"), ("attn.o_a_proj", "attn.wo_a"), ("attn.o_b_proj", "attn.wo_b"),
    ("attn.sinks", "attn.attn_sink"), ("attn_hc.", "hc_attn_"), ("ffn_hc.", "hc_ffn_"),
    ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ("mlp.", "ffn."), ("gate.e_score_correction_bias", "gate.bias"),
    ("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"),
    ("embed_tokens", "embed"), ("lm_head", "head"), ("model.hc_head.hc_", "hc_head_"), (".hc_head.hc_", ".hc_head_"),
    ("shared_head.norm", "norm"),
)  # fmt: skip
V4_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
V4_PREDICTION = "mtp."  # what follows the last layer; its eh_proj lies in two halves
EH_PROJ, HALVES = ".eh_proj.weight", (".e_proj.weight", ".h_proj.weight")


@dataclass(frozen=True)
class Stored:
    """An entry of a shard's header; `begin` counts from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def rows(self) -> int:
        """How many rows there are; a vector is one row."""
        return math.prod(self.shape[:-1])

    def row(self, number: int) -> NDArray[Any]:
        """Return a row in the stored type."""
        found: NDArray[Any] = self.rows_of(number, 1)[0]
        return found

    def rows_of(self, number: int, count: int) -> NDArray[Any]:
        """Return some rows in the stored type, [count, cols]."""
        dtype, cols = np.dtype(DTYPES[self.dtype]), (self.shape or (1,))[-1]
        size = cols * dtype.itemsize
        data = np.fromfile(self.file, np.uint8, count * size, offset=self.begin + number * size)
        found: NDArray[Any] = data.view(dtype).reshape(count, cols)
        return found

    def column(self, number: int) -> NDArray[Any]:
        """Return a column of a matrix in the stored type."""
        matrix = np.memmap(self.file, np.dtype(DTYPES[self.dtype]), "r", self.begin, self.shape)
        return np.array(matrix[:, number])

    def bytes_of(self, number: int) -> NDArray[np.uint8]:
        """Return a row as bytes."""
        found: NDArray[np.uint8] = self.row(number).view(np.uint8)
        return found


@dataclass(frozen=True)
class RawRows:
    """The entries of all shards by their names without prefixes, and quantization_config."""

    stored: Mapping[str, Stored]
    quantization: Mapping[str, Any]

    def judged(self, name: str) -> tuple[int, ...]:
        """Return the numbers of two rows of a tensor, the first and the last; none of one beyond ml_dtypes."""
        name = self._halves(self._held_as(name))[0]
        base = name.removesuffix(".weight")
        if base + ".qweight" in self.stored:
            return tuple(dict.fromkeys((0, self.stored[base + ".scales"].shape[1] - 1)))
        held = self.stored.get(name) or self.stored.get(name + "_packed")
        if held is None or held.dtype not in DTYPES or not math.prod(held.shape):
            return ()
        return tuple(dict.fromkeys((0, held.rows - 1)))

    def row(self, name: str, number: int) -> Floats:
        """Return a row of a tensor, float32 [cols]."""
        name = self._held_as(name)
        if len(halves := self._halves(name)) > 1:
            return np.concatenate([self.row(half, number) for half in halves])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if name.removesuffix(".weight") + ".qweight" in self.stored:
                return self._turned(name.removesuffix(".weight"), number)
            held = self.stored.get(name) or self.stored[name + "_packed"]
            scale = self._scale_of(name)
            if scale is None:
                return held.row(number).astype(np.float32)
            if held.dtype == "I32":
                return self._packed(name, number)
            if held.dtype in BYTES and scale.dtype in ("U8", "F8_E8M0", "F8_E4M3"):
                return self._fp4(name, held, scale, number)
            return self._fp8(held, scale, number)

    def _held_as(self, name: str) -> str:
        """Return the name that a tensor has in the files, without what may stand before it."""
        name = own_name(name)
        if V4_MARK not in self.stored:
            return name
        for word, published in V4_WORDS:
            name = name.replace(word, published)
        place = V4_LAYER.fullmatch(name)
        after = int(place[1]) - self._layers if place else -1
        return f"{V4_PREDICTION}{after}.{place[2]}" if place and after >= 0 else name

    @cached_property
    def _layers(self) -> int:
        """How many layers the model has that prediction comes after."""
        return 1 + max((int(place[1]) for name in self.stored if (place := V4_LAYER.fullmatch(name))), default=-1)

    def _halves(self, name: str) -> tuple[str, ...]:
        """Return the tensors whose columns, side by side, are those of a tensor: itself, or those of V4's eh_proj."""
        if name in self.stored or not name.startswith(V4_PREDICTION) or not name.endswith(EH_PROJ):
            return (name,)
        return tuple(name.removesuffix(EH_PROJ) + half for half in HALVES)

    def _scale_of(self, name: str) -> Stored | None:
        names = (name + "_scale_inv", name + "_scale", name.removesuffix(".weight") + ".scale")
        return next((self.stored[found] for found in names if found in self.stored), None)

    def _fp8(self, held: Stored, scale: Stored, number: int) -> Floats:
        codes, (rows, cols) = held.row(number), held.shape
        if math.prod(scale.shape) == 1:
            return _scaled(codes, scale.rows_of(0, 1)[0], cols)
        if scale.shape in ((rows,), (rows, 1)):
            flat = scale.row(0) if len(scale.shape) == 1 else scale.rows_of(0, rows).reshape(-1)
            return _scaled(codes, flat[number : number + 1], cols)
        high, wide = self._block(held, scale)
        return _scaled(codes, scale.row(number // high), wide)

    def _block(self, held: Stored, scale: Stored) -> tuple[int, int]:
        groups = self.quantization.get("config_groups") or {}
        named = [entry.get("weights", {}).get("block_structure") for entry in groups.values()]
        for block in (*named, self.quantization.get("weight_block_size")):
            if block and scale.shape == tuple(-(-size // side) for size, side in zip(held.shape, block, strict=True)):
                return block[0], block[1]
        return 1, held.shape[1] // scale.shape[1]

    def _fp4(self, name: str, held: Stored, scale: Stored, number: int) -> Floats:
        codes, scales = held.bytes_of(number), scale.row(number).astype(np.float64)
        floats = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1).astype(np.uint8)
        values = floats.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        group = values.size // scales.size
        for suffix, inverse in (("_scale_2", False), ("_global_scale", True)):
            if name + suffix in self.stored:
                whole = np.float64(self.stored[name + suffix].row(0)[0])
                scales = scales * (1 / whole if inverse else whole)
        exact: NDArray[np.float64] = values * np.repeat(scales, group)
        return exact.astype(np.float32)

    def _packed(self, name: str, number: int) -> Floats:
        """Return a row of compressed-tensors' packed integers."""
        packed, scale, zero, order = (
            self.stored.get(name + suffix) for suffix in ("_packed", "_scale", "_zero_point", "_g_idx")
        )
        assert packed is not None  # noqa: S101 - the caller has found both
        assert scale is not None  # noqa: S101
        cols = int(self.stored[name + "_shape"].row(0)[1])
        bits, group = self._scheme(packed, scale, cols)
        pack, words = 32 // bits, packed.row(number)
        half = 1 << bits - 1
        integers = np.stack([_bits(words, at, bits) for at in range(pack)], axis=1).reshape(-1)[:cols] - half
        each = np.arange(cols) // group
        if order is not None and (order.row(0) >= 0).all():
            each = order.row(0)
        if zero is not None and zero.dtype == "I32":
            integers = integers - (_bits(zero.row(number // pack), number % pack, bits) - half)[each]
        elif zero is not None:
            integers = integers - zero.row(number)[each]
        flat = scale.row(number) if len(scale.shape) == 2 and scale.shape[0] > 1 else scale.rows_of(0, 1)[0]
        if len(scale.shape) == 1 and scale.shape[0] > 1:
            flat = flat[number : number + 1]
        exact: NDArray[np.float64] = integers * flat.astype(np.float64)[each]
        return exact.astype(np.float32)

    def _scheme(self, packed: Stored, scale: Stored, cols: int) -> tuple[int, int]:
        """Return the bits and the group size that the shapes of words and scales bear out."""
        for entry in self.quantization["config_groups"].values():
            stated = entry["weights"]
            bits, group = stated["num_bits"], stated.get("group_size") or cols
            if packed.shape[1] == -(-cols // (32 // bits)) and scale.shape[-1] in (-(-cols // group), 1, packed.rows):
                return bits, group if group > 0 else cols
        raise ValueError(f"no scheme has {packed.shape} words and {scale.shape} scales for {cols} columns")

    def _turned(self, base: str, number: int) -> Floats:
        """Return a row of AWQ or GPTQ: a column of what is stored."""
        words, zeros, scales = (self.stored[base + suffix] for suffix in (".qweight", ".qzeros", ".scales"))
        bits = 32 * zeros.shape[1] // scales.shape[1]
        packed_inputs = words.shape[1] == scales.shape[1]
        zero = _bits(zeros.column(number * bits // 32), self._place(number, bits, packed_inputs), bits)
        if packed_inputs:
            column = words.column(number)
            integers = np.stack([_bits(column, at, bits) for at in range(32 // bits)], axis=1).reshape(-1)
            if self.quantization.get("checkpoint_format") != "gptq_v2":
                zero = (zero + 1) % (1 << bits)
        else:
            integers = _bits(words.column(number * bits // 32), self._place(number, bits, packed_inputs), bits)
        group = np.arange(integers.size) // -(-integers.size // scales.shape[0])
        if base + ".g_idx" in self.stored:
            group = self.stored[base + ".g_idx"].row(0)
        exact: NDArray[np.float64] = (integers - zero[group]) * scales.column(number).astype(np.float64)[group]
        return exact.astype(np.float32)

    def _place(self, number: int, bits: int, packed_inputs: bool) -> int:
        at = number % (32 // bits)
        return at if packed_inputs else AWQ[bits].index(at)


def _bits(words: NDArray[np.int32], at: int, bits: int) -> NDArray[np.int64]:
    """Return the integers at place `at` of words."""
    return words.astype(np.int64) >> at * bits & (1 << bits) - 1


def _scaled(codes: NDArray[Any], scales: NDArray[Any], group: int) -> Floats:
    """Return codes [cols] times the scale of their group; exact in float64, so it is rounded once."""
    each = np.repeat(scales.astype(np.float64), min(group, codes.size))[: codes.size]
    return (codes.astype(np.float64) * each).astype(np.float32)


def own_name(name: str) -> str:
    """Return a tensor's name without what may stand before it."""
    found = None if name.startswith(V4_PREDICTION) else OWN_NAME.fullmatch(name)
    return found[1] if found else name


def open_raw(folder: Path, shards: Iterable[Path], quantization: Mapping[str, Any]) -> RawRows:
    """Read the headers of sound shards; whether they are sound has been checked when the checkpoint was opened.

    Of copies in several shards the one counts that the index names. Where two names have the same without prefixes, as
    in a checkpoint of two models, neither is judged.
    """
    placed, found = _placed(folder), dict[str, Stored]()
    for shard in shards:
        for name, entry in _entries(shard).items():
            if name not in found or folder / placed.get(name, "") == shard:
                found[name] = entry
    names = Counter(map(own_name, found))
    return RawRows({own: entry for name, entry in found.items() if names[own := own_name(name)] == 1}, quantization)


def _placed(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if not index.is_file():
        return {}
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
    return weight_map


def _entries(shard: Path) -> dict[str, Stored]:
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Stored(shard, entry["dtype"], _matrix(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _matrix(shape: list[int]) -> tuple[int, ...]:
    """Return a shape without the dimensions of one that come after those of a matrix."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)
