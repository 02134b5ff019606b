"""Every tensor of an MLA model, streamed from a checkpoint or a GGUF file in one form.

The form is that of an MLA file: stacks of matrices [count, rows, cols], one per head or expert, or a single matrix or
vector. kv_b_proj is [H·(n+v), r], n key rows and then v value rows per head; `attn_k_b` is its key rows transposed
per head, [H, r, n], and `attn_v_b` its value rows, [H, v, r]. Source: the DeepSeek-V2 paper, equations 9 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gguf_mla import codec
from gguf_mla.errors import InputError
from gguf_mla.ggtypes.shared import floats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufFile, GgufTensor
    from gguf_mla.forward.model import Model
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.tensor import SourceTensor

    Floats = NDArray[np.float32]

CHUNK_VALUES = 1 << 22  # 16 MiB as float32: enough for a matrix product to be worth it


@dataclass(frozen=True)
class Role:
    """A tensor of a model or layer: its name in a checkpoint, and its shape in an MLA file by sizes of the model."""

    checkpoint: str
    shape: tuple[str, ...]
    where: str = "always"


_ATTENTION, _EXPERT, _SHARED = "self_attn.", "mlp.experts.{expert}.", "mlp.shared_experts."
_INDEXER = _ATTENTION + "indexer."

# By GGUF name, without `blk.N.` and in the order of computation.
LAYER_ROLES = {
    "nextn.embed_tokens.weight": Role("embed_tokens.weight", ("vocab", "hidden"), "predicting"),
    "nextn.enorm.weight": Role("enorm.weight", ("hidden",), "predicting"),
    "nextn.hnorm.weight": Role("hnorm.weight", ("hidden",), "predicting"),
    "nextn.eh_proj.weight": Role("eh_proj.weight", ("hidden", "2 hidden"), "predicting"),
    "attn_norm.weight": Role("input_layernorm.weight", ("hidden",)),
    "attn_q.weight": Role(_ATTENTION + "q_proj.weight", ("q_rows", "hidden"), "full q"),
    "attn_q_a.weight": Role(_ATTENTION + "q_a_proj.weight", ("q_rank", "hidden"), "low-rank q"),
    "attn_q_a_norm.weight": Role(_ATTENTION + "q_a_layernorm.weight", ("q_rank",), "low-rank q"),
    "attn_q_b.weight": Role(_ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank"), "low-rank q"),
    "indexer.attn_q_b.weight": Role(_INDEXER + "wq_b.weight", ("index_rows", "q_rank"), "sparse"),
    "indexer.attn_k.weight": Role(_INDEXER + "wk.weight", ("index_size", "hidden"), "sparse"),
    "indexer.k_norm.weight": Role(_INDEXER + "k_norm.weight", ("index_size",), "sparse"),
    "indexer.k_norm.bias": Role(_INDEXER + "k_norm.bias", ("index_size",), "sparse"),
    "indexer.proj.weight": Role(_INDEXER + "weights_proj.weight", ("index_heads", "hidden"), "sparse"),
    "attn_kv_a_mqa.weight": Role(_ATTENTION + "kv_a_proj_with_mqa.weight", ("kv_rank+rope", "hidden")),
    "attn_kv_a_norm.weight": Role(_ATTENTION + "kv_a_layernorm.weight", ("kv_rank",)),
    "attn_k_b.weight": Role(_ATTENTION + "kv_b_proj.weight", ("heads", "kv_rank", "nope")),
    "attn_v_b.weight": Role(_ATTENTION + "kv_b_proj.weight", ("heads", "value", "kv_rank")),
    "attn_output.weight": Role(_ATTENTION + "o_proj.weight", ("hidden", "o_cols")),
    "ffn_norm.weight": Role("post_attention_layernorm.weight", ("hidden",)),
    "ffn_gate.weight": Role("mlp.gate_proj.weight", ("ffn", "hidden"), "dense"),
    "ffn_up.weight": Role("mlp.up_proj.weight", ("ffn", "hidden"), "dense"),
    "ffn_down.weight": Role("mlp.down_proj.weight", ("hidden", "ffn"), "dense"),
    "ffn_gate_inp.weight": Role("mlp.gate.weight", ("experts", "hidden"), "moe"),
    "exp_probs_b.bias": Role("mlp.gate.e_score_correction_bias", ("experts",), "corrected"),
    "ffn_gate_exps.weight": Role(_EXPERT + "gate_proj.weight", ("experts", "expert_ffn", "hidden"), "moe"),
    "ffn_up_exps.weight": Role(_EXPERT + "up_proj.weight", ("experts", "expert_ffn", "hidden"), "moe"),
    "ffn_down_exps.weight": Role(_EXPERT + "down_proj.weight", ("experts", "hidden", "expert_ffn"), "moe"),
    "ffn_gate_shexp.weight": Role(_SHARED + "gate_proj.weight", ("shared_ffn", "hidden"), "moe"),
    "ffn_up_shexp.weight": Role(_SHARED + "up_proj.weight", ("shared_ffn", "hidden"), "moe"),
    "ffn_down_shexp.weight": Role(_SHARED + "down_proj.weight", ("hidden", "shared_ffn"), "moe"),
    "nextn.shared_head_norm.weight": Role("shared_head.norm.weight", ("hidden",), "predicting"),
    "nextn.shared_head_head.weight": Role("shared_head.head.weight", ("vocab", "hidden"), "predicting"),
}
FIRST_ROLES = {"token_embd.weight": Role("model.embed_tokens.weight", ("vocab", "hidden"))}
LAST_ROLES = {
    "output_norm.weight": Role("model.norm.weight", ("hidden",)),
    "output.weight": Role("lm_head.weight", ("vocab", "hidden"), "untied"),
}
LEGACY = "attn_kv_b.weight"  # [H·(n+v), r], in files older than the MLA layout
LEGACY_HALVES = ("attn_k_b.weight", "attn_v_b.weight")


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a model in the MLA form, in the order of computation: GGUF name → shape."""
    found = dict(_instances(model, FIRST_ROLES, "", {"always"}))
    for layer in range(model.blocks):
        found.update(_instances(model, LAYER_ROLES, f"blk.{layer}.", _conditions(model, layer)))
    return found | dict(_instances(model, LAST_ROLES, "", {"always"} if model.tied else {"always", "untied"}))


def _instances(
    model: Model, roles: dict[str, Role], prefix: str, conditions: set[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, role in roles.items():
        if role.where in conditions:
            yield prefix + name, tuple(model.size(size) for size in role.shape)


def _conditions(model: Model, layer: int) -> set[str]:
    held = {"always", "low-rank q" if model.q_rank else "full q"}
    held |= {"sparse"} if model.is_sparse(layer) else set()
    held |= {"predicting"} if layer >= model.layers else set()
    if model.is_dense(layer):
        return held | {"dense"}
    return held | ({"moe", "corrected"} if model.routing.corrected else {"moe"})


def split_name(name: str) -> tuple[int | None, str]:
    """Return the layer, None for a tensor of the model, and the name without it."""
    if not name.startswith("blk."):
        return None, name
    _, layer, rest = name.split(".", 2)
    return int(layer), rest


@dataclass(frozen=True)
class Stack:
    """A tensor as `count` matrices of [rows, cols]; a vector is one row.

    stored  the type it has in its file
    read    matrix number, first row, row behind the last → float32 [rows, cols]
    """

    name: str
    count: int
    rows: int
    cols: int
    stored: str
    read: Callable[[int, int, int], Floats]

    def matrix(self, index: int = 0) -> Floats:
        """Return a whole matrix, float32 [rows, cols]."""
        return self.read(index, 0, self.rows)

    def all(self) -> Floats:
        """Return the whole stack, float32 [count, rows, cols]."""
        matrices: Floats = np.stack([self.matrix(index) for index in range(self.count)])
        return matrices

    def vector(self) -> Floats:
        """Return a vector, float32 [cols]."""
        values: Floats = self.read(0, 0, 1)[0]
        return values

    def chunks(self, index: int = 0) -> Iterator[tuple[int, Floats]]:
        """Yield a matrix in pieces of about CHUNK_VALUES values: first row, rows."""
        step = max(1, CHUNK_VALUES // self.cols)
        for start in range(0, self.rows, step):
            yield start, self.read(index, start, min(start + step, self.rows))


class Weights(Protocol):
    """A model's tensors, whatever file they lie in."""

    @property
    def model(self) -> Model:
        """What the file says the model is."""

    def stack(self, name: str) -> Stack:
        """Return a tensor by its GGUF name; InputError when there is none."""


@dataclass(frozen=True)
class CheckpointWeights:
    """The tensors of a Hugging Face checkpoint."""

    checkpoint: Checkpoint
    model: Model

    def stack(self, name: str) -> Stack:
        """Return a tensor by its GGUF name; tied output weights are the embeddings."""
        layer, rest = split_name(name)
        roles = FIRST_ROLES | LAST_ROLES if layer is None else LAYER_ROLES
        role = roles["token_embd.weight" if rest == "output.weight" and self.model.tied else rest]
        prefix = "" if layer is None else f"model.layers.{layer}."
        count, rows, cols = _three([self.model.size(size) for size in role.shape])
        template = prefix + role.checkpoint
        first = self._tensor(template.format(expert=0))
        if rest in LEGACY_HALVES:
            return _half(name, rest, self.model, first.stored, lambda start, stop: _values(first, start, stop))
        sources = [self._tensor(template.format(expert=index)) for index in range(count)] if count > 1 else [first]
        _check_shapes(sources, rows, cols)
        return Stack(
            name, count, rows, cols, first.stored, lambda index, start, stop: _values(sources[index], start, stop)
        )

    def _tensor(self, name: str) -> SourceTensor:
        if name not in self.checkpoint.tensors:
            raise InputError("is missing", file=self.checkpoint.folder.path, tensor=name, remedy="Download it again")
        return self.checkpoint.tensors[name]


@dataclass(frozen=True)
class GgufWeights:
    """The tensors of a GGUF file, in the MLA layout or the legacy one."""

    file: GgufFile
    model: Model

    def stack(self, name: str) -> Stack:
        """Return a tensor by its name; halves of a legacy file's attn_kv_b by theirs."""
        layer, rest = split_name(name)
        if name == "output.weight" and self.model.tied:
            name = "token_embd.weight"
        legacy = self.file.tensors.get(f"blk.{layer}.{LEGACY}")
        if name not in self.file.tensors and rest in LEGACY_HALVES and legacy is not None:
            return _half(name, rest, self.model, legacy.type, lambda start, stop: _decoded(legacy, start, stop))
        if name not in self.file.tensors:
            raise InputError("is missing", file=self.file.path, tensor=name)
        tensor = self.file.tensors[name]
        count, rows, cols = _three(tensor.shape)
        return Stack(
            name,
            count,
            rows,
            cols,
            tensor.type,
            lambda index, start, stop: _decoded(tensor, index * rows + start, index * rows + stop),
        )


def _three(shape: Any) -> tuple[int, int, int]:
    count, rows, cols = (1, 1, *shape)[-3:]
    return count, rows, cols


def _check_shapes(sources: list[SourceTensor], rows: int, cols: int) -> None:
    for source in sources:
        if _three(source.shape) != (1, rows, cols):
            raise InputError("has the wrong shape", tensor=source.name, expected=[rows, cols], found=source.shape)


def _half(name: str, rest: str, model: Model, stored: str, read: Callable[[int, int], Floats]) -> Stack:
    """Return the key or value half of a kv_b_proj whose rows `read` gives."""
    step = model.nope + model.value

    def key(head: int, start: int, stop: int) -> Floats:
        rows = read(head * step, head * step + model.nope)
        return np.ascontiguousarray(rows.T[start:stop])

    def value(head: int, start: int, stop: int) -> Floats:
        first = head * step + model.nope
        return read(first + start, first + stop)

    if rest == LEGACY_HALVES[0]:
        return Stack(name, model.heads, model.kv_rank, model.nope, stored, key)
    return Stack(name, model.heads, model.value, model.kv_rank, stored, value)


def _values(source: SourceTensor, start: int, stop: int) -> Floats:
    values: Floats = floats.to_float32(source.read(start, stop), source.values)
    return values.reshape(stop - start, -1)


def _decoded(tensor: GgufTensor, start: int, stop: int) -> Floats:
    values: Floats = codec.dequantize(tensor.read(start, stop), tensor.type)
    return values
