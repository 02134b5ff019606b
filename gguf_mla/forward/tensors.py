"""Every tensor of a model, streamed from a checkpoint or a GGUF file in one form.

The form is that of an MLA file: stacks of matrices [count, rows, cols], one per head or expert, or a single matrix or
vector. kv_b_proj is [H·(n+v), r], n key rows and then v value rows per head; `attn_k_b` is its key rows transposed
per head, [H, r, n], and `attn_v_b` its value rows, [H, v, r]. Source: the DeepSeek-V2 paper, equations 9 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.errors import InputError
from gguf_mla.forward.architecture import architecture_of
from gguf_mla.ggtypes.shared import floats
from gguf_mla.layout.names import split_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from gguf_mla.container.reader import GgufFile, GgufTensor
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.forward.arrays import Rows
    from gguf_mla.forward.model import Model
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.tensor import SourceTensor


@dataclass(frozen=True)
class Role:
    """A tensor of a model or layer: its name in a checkpoint, and its shape in an MLA file by sizes of the model."""

    checkpoint: str
    shape: tuple[str, ...]
    where: str = "always"


@dataclass(frozen=True)
class Roles:
    """The tensors of an architecture, by GGUF name, without `blk.N.` for a layer's, and in the order of computation.

    prefix      what a checkpoint's names of a layer's tensors begin with
    conditions  model, layer (None for `first` and `last`) → which of the roles' `where` hold
    alone       what stands for `last` in a file of multi-token prediction alone, where that is something else

    In a checkpoint's names {expert} is an expert's number, and in those of `last` {layer} that of the first layer that
    predicts.
    """

    first: Mapping[str, Role]
    layer: Mapping[str, Role]
    last: Mapping[str, Role]
    prefix: str
    conditions: Callable[[Any, int | None], set[str]]
    alone: Mapping[str, Role] | None = None

    def role(self, model: Model, layer: int | None, name: str) -> Role | None:
        """Return a tensor's role by the two parts of its name, as `split_name` gives them; None for a stranger."""
        return self.layer.get(name) if layer is not None else {**self.first, **self._end(model)}.get(name)

    def shapes(self, model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor of a model and its shape in an MLA file."""
        yield from self._held(model, self.first, None)
        for layer in range(model.layers if model.alone else 0, model.blocks):
            yield from self._held(model, self.layer, layer)
        yield from self._held(model, self._end(model), None)

    def _end(self, model: Model) -> Mapping[str, Role]:
        return self.alone if model.alone and self.alone is not None else self.last

    def _held(
        self, model: Model, roles: Mapping[str, Role], layer: int | None
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, held = "" if layer is None else f"blk.{layer}.", self.conditions(model, layer)
        for name, role in roles.items():
            if role.where in held:
                yield prefix + name, tuple(model.size(size, layer) for size in role.shape)


LEGACY = "attn_kv_b.weight"  # [H·(n+v), r], in files older than the MLA layout
COMPUTED = ("rope_freqs.weight",)  # a file may hold it all the same
WEIGHT, SCALE = ".weight", ".scale"
LAST = 8  # tensors of a checkpoint that are kept: finding the matrices of all experts takes longer than reading some
LEGACY_HALVES = ("attn_k_b.weight", "attn_v_b.weight")
FUSED = "ffn_gate_up_exps.weight"  # [experts, 2·ffn, hidden], the rows of the gate first
FUSED_HALVES = ("ffn_gate_exps.weight", "ffn_up_exps.weight")
# What a prediction layer without a tensor of its own takes from the model.
SHARED = {
    "nextn.embed_tokens.weight": "token_embd.weight",
    "nextn.shared_head_norm.weight": "output_norm.weight",
    "nextn.shared_head_head.weight": "output.weight",
}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a model in the MLA form, in the order of computation: GGUF name → shape."""
    return dict(architecture_of(model).roles.shapes(model))


@dataclass(frozen=True)
class Blocks:
    """Rows as a ggml type stores them, uint8 [rows, row_bytes]; their values are to be multiplied with `scale`."""

    data: NDArray[np.uint8]
    type: str
    scale: float = 1.0


@dataclass(frozen=True)
class Stack:
    """A tensor as `count` matrices of [rows, cols]; a vector is one row. Any number of threads may read.

    stored  the type it has in its file
    read    matrix number, first row, row after the last → float32 [rows, cols]
    blocks  the same before decoding, for who decodes elsewhere; None where more is done to the values
    """

    name: str
    count: int
    rows: int
    cols: int
    stored: str
    read: Callable[[int, int, int], Rows]
    blocks: Callable[[int, int, int], Blocks] | None = None

    def matrix(self, index: int = 0) -> Rows:
        """Return a whole matrix, float32 [rows, cols]."""
        return self.read(index, 0, self.rows)

    def write(self, index: int, start: int, stop: int, out: Rows) -> None:
        """Write rows of a matrix to float32 [rows, cols], C-contiguous."""
        if self.blocks is None:
            np.copyto(out, self.read(index, start, stop))
            return
        stored = self.blocks(index, start, stop)
        if stored.type in floats.SOURCES:
            floats.to_float32(stored.data.view(floats.SOURCES[stored.type]), stored.type, out)
        else:
            codec.decode(stored.data, stored.type, out=out)
        if stored.scale != 1:
            np.multiply(out, np.float32(stored.scale), out=out)


class Weights(Protocol):
    """A model's tensors, whatever file they lie in."""

    @property
    def model(self) -> Model:
        """What the file says the model is."""

    def holds(self, name: str) -> bool:
        """Whether the file has a tensor of its own for a GGUF name."""

    def stack(self, name: str) -> Stack:
        """Return a tensor by its GGUF name; InputError when there is none."""


@dataclass(frozen=True)
class CheckpointWeights:
    """The tensors of a Hugging Face checkpoint; those asked for last are kept, as experts are asked for in turn."""

    checkpoint: Checkpoint
    model: Model
    _last: dict[str, Stack] = field(default_factory=dict, repr=False, compare=False)

    def holds(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of its own for a GGUF name; of experts, the first."""
        layer, rest = split_name(name)
        roles = architecture_of(self.model).roles
        role, prefix = roles.role(self.model, layer, rest), "" if layer is None else roles.prefix.format(layer=layer)
        return role is not None and self._named(prefix + role.checkpoint) in self.checkpoint.tensors

    def stack(self, name: str) -> Stack:
        """Return a tensor by its GGUF name; tied output weights are the embeddings."""
        found = self._last.get(name)
        if found is None:
            found = self._stack(name)
            if len(self._last) >= LAST:
                self._last.clear()  # other threads hold what they have found
            self._last[name] = found
        return found

    def _stack(self, name: str) -> Stack:
        layer, rest = split_name(name)
        roles = architecture_of(self.model).roles
        asked = "token_embd.weight" if rest == "output.weight" and self.model.tied else rest
        role = roles.role(self.model, layer, asked)
        if role is None:
            raise InputError("is not a tensor of this model", file=self.checkpoint.folder.path, tensor=name)
        prefix = "" if layer is None else roles.prefix.format(layer=layer)
        if rest in SHARED and prefix + role.checkpoint not in self.checkpoint.tensors:
            return replace(self.stack(SHARED[rest]), name=name)
        count, rows, cols = _three([self.model.size(size, layer) for size in role.shape])
        template = prefix + role.checkpoint
        first = self._tensor(self._named(template))
        if rest in LEGACY_HALVES:
            self._check_shapes([first], self.model.size("kv_b_rows"), self.model.size("kv_rank"))
            return _half(name, rest, self.model, first.stored, lambda start, stop: _values(first, start, stop))
        sources = [self._tensor(self._named(template, index)) for index in range(count)] if count > 1 else [first]
        self._check_shapes(sources, rows, cols)
        return Stack(
            name, count, rows, cols, first.stored,
            lambda index, start, stop: _values(sources[index], start, stop),
            lambda index, start, stop: _plain(sources[index], start, stop),
        )  # fmt: skip

    def _named(self, template: str, expert: int = 0) -> str:
        return template.format(expert=expert, layer=self.model.layers)

    def _check_shapes(self, sources: list[SourceTensor], rows: int, cols: int) -> None:
        for source in sources:
            if _three(source.shape) != (1, rows, cols):
                place, found = self.checkpoint.folder.path, list(source.shape)
                raise InputError(
                    "has the wrong shape", file=place, tensor=source.name, expected=[rows, cols], found=found
                )

    def _tensor(self, name: str) -> SourceTensor:
        if name not in self.checkpoint.tensors:
            raise InputError("is missing", file=self.checkpoint.folder.path, tensor=name)
        return self.checkpoint.tensors[name]


@dataclass(frozen=True)
class GgufWeights:
    """The tensors of a GGUF file, in the MLA layout or the legacy one; `lender` has those that it does without."""

    file: GgufParts
    model: Model
    lender: Weights | None = None

    @cached_property
    def held(self) -> list[GgufTensor]:
        """The file's tensors that are the model's: all but those that engines compute for themselves."""
        return [
            tensor
            for name, tensor in self.file.tensors.items()
            if name not in COMPUTED and not is_scale(name, self.file)
        ]

    def holds(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self.file.tensors

    def answers(self, name: str) -> list[str]:
        """Return the tensors of the model that a tensor of the file stands for: its own name, or what is held in it.

        The halves of a joined tensor, and what prediction layers without a tensor of their own take from the model.
        """
        layer, rest = split_name(name)
        for joined, halves in ((LEGACY, LEGACY_HALVES), (FUSED, FUSED_HALVES)):
            if rest == joined:
                return [f"blk.{layer}.{half}" for half in halves]
        taken = {name, "output.weight"} if name == "token_embd.weight" and self.model.tied else {name}
        sharing = [
            f"blk.{number}.{part}"
            for number in range(self.model.layers, self.model.blocks)
            for part, whole in SHARED.items()
            if whole in taken and f"blk.{number}.{part}" not in self.file.tensors
        ]
        return [name, *sharing]

    def stack(self, name: str) -> Stack:
        """Return a tensor by its name; halves of a joined tensor by theirs, and what is shared by both."""
        layer, rest = split_name(name)
        if name == "output.weight" and self.model.tied:
            name = "token_embd.weight"
        if rest in SHARED and name not in self.file.tensors:
            return replace(self.stack(SHARED[rest]), name=name)
        fused = self.file.tensors.get(f"blk.{layer}.{FUSED}")
        if name not in self.file.tensors and rest in FUSED_HALVES and fused is not None:
            return _fused(name, FUSED_HALVES.index(rest), fused)
        legacy = self.file.tensors.get(f"blk.{layer}.{LEGACY}")
        if name not in self.file.tensors and rest in LEGACY_HALVES and legacy is not None:
            return _half(name, rest, self.model, legacy.type, lambda start, stop: _decoded(legacy, start, stop))
        if name not in self.file.tensors and self.lender is not None:
            return self.lender.stack(name)
        if name not in self.file.tensors:
            raise InputError("is missing", file=self.file.path, tensor=name)
        tensor = self.file.tensors[name]
        count, rows, cols = _three(tensor.shape)
        scales = self._scales(name, count)

        def blocks(index: int, start: int, stop: int) -> Blocks:
            data = tensor.read(index * rows + start, index * rows + stop)
            return Blocks(data, tensor.type, scales[index])

        return _of_blocks(name, count, rows, cols, blocks, tensor.type)

    def _scales(self, name: str, count: int) -> list[float]:
        """Return what each matrix of a tensor is to be multiplied with."""
        beside = name.removesuffix(WEIGHT) + SCALE
        if not is_scale(beside, self.file):
            return [1.0] * count
        scales: list[float] = _decoded(self.file.tensors[beside], 0, 1)[0].tolist()
        return scales


def is_scale(name: str, file: GgufFile) -> bool:
    """Whether a tensor has what the matrices of another are multiplied with: `X.scale` of `X.weight`, one for each.

    Blocks of NVFP4 leave it out. Engines multiply the products with it, whatever the weight's type.
    """
    weight = file.tensors.get(name.removesuffix(SCALE) + WEIGHT) if name.endswith(SCALE) else None
    scale = file.tensors.get(name)
    if weight is None or scale is None or len(weight.shape) < 2:
        return False
    return scale.type == "F32" and scale.shape == (_three(weight.shape)[0],)


def _fused(name: str, half: int, tensor: GgufTensor) -> Stack:
    """Return one half of the rows of every expert, the gate's (0) or those of up (1)."""
    count, both, cols = _three(tensor.shape)
    rows = both // 2

    def blocks(index: int, start: int, stop: int) -> Blocks:
        first = index * both + half * rows
        return Blocks(tensor.read(first + start, first + stop), tensor.type)

    return _of_blocks(name, count, rows, cols, blocks, tensor.type)


def _of_blocks(
    name: str, count: int, rows: int, cols: int, blocks: Callable[[int, int, int], Blocks], stored: str
) -> Stack:
    """Return a stack whose values are blocks decoded."""

    def read(index: int, start: int, stop: int) -> Rows:
        found = blocks(index, start, stop)
        values: Rows = codec.decode(found.data, found.type)
        return values if found.scale == 1 else values * np.float32(found.scale)

    return Stack(name, count, rows, cols, stored, read, blocks if stored in ggtypes.types() else None)


def _three(shape: Any) -> tuple[int, int, int]:
    count, rows, cols = (1, 1, *shape)[-3:]
    return count, rows, cols


def _half(name: str, rest: str, model: Model, stored: str, read: Callable[[int, int], Rows]) -> Stack:
    """Return the key or value half of a kv_b_proj whose rows `read` gives."""
    heads, nope, value_rows, rank = (model.size(name) for name in ("heads", "nope", "value", "kv_rank"))
    step = nope + value_rows

    def key(head: int, start: int, stop: int) -> Rows:
        rows = read(head * step, head * step + nope)
        return np.ascontiguousarray(rows.T[start:stop])

    def value(head: int, start: int, stop: int) -> Rows:
        first = head * step + nope
        return read(first + start, first + stop)

    if rest == LEGACY_HALVES[0]:
        return Stack(name, heads, rank, nope, stored, key)
    return Stack(name, heads, value_rows, rank, stored, value)


def _values(source: SourceTensor, start: int, stop: int) -> Rows:
    values: Rows = floats.to_float32(source.read(start, stop), source.values)
    return values.reshape(stop - start, -1)


def _plain(source: SourceTensor, start: int, stop: int) -> Blocks:
    """Return rows as they are read, as float32, float16 or BF16: half the bytes of their values, or all of them."""
    data = np.ascontiguousarray(source.read(start, stop)).reshape(stop - start, -1)
    return Blocks(data.view(np.uint8), source.values)


def _decoded(tensor: GgufTensor, start: int, stop: int) -> Rows:
    values: Rows = codec.decode(tensor.read(start, stop), tensor.type)
    return values
