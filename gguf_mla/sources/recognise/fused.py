"""Tensors that hold several of a model's: transformers 5's experts in memory, MLX's, and what engines fuse.

    mlp.experts.gate_up_proj        [experts, 2·ffn, hidden], gate rows first
    mlp.experts.down_proj           [experts, hidden, ffn]
    mlp.switch_mlp.gate_proj.weight [experts, ffn, hidden], and up_proj, down_proj  (MLX)
    mlp.experts.w13_weight          [experts, 2·ffn, hidden], and w2_weight         (engines' dumps)
    mlp.gate_up_proj.weight         [2·ffn, hidden], of dense layers and shared experts

Rows stay where they are: every part becomes a tensor of its own over a range of the file. Scales of blocks and rows
are cut alike; one of an expert ([experts], [experts, 1, 1]) serves both halves, two ([experts, 2]) serve one each.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import EXPERTS, SLICES, bounded
from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf_mla.sources.recognise.reading import Reading
    from gguf_mla.sources.safetensors import StoredTensor

GATE_UP, DOWN = ("gate_proj", "up_proj"), ("down_proj",)
HOLDS = {
    "gate_up_proj": GATE_UP,
    "w13_weight": GATE_UP,
    "down_proj": DOWN,
    "w2_weight": DOWN,
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
}
SCALES = ("_scale_inv", "_scale")
BLOCK = 128  # rows that an FP8 scale serves, where the configuration does not say
_STACKED = re.compile(rf"(.*mlp\.)(?:experts|switch_mlp)\.({'|'.join(HOLDS)})(?:\.weight)?({'|'.join(SCALES)})?")
_PAIR = re.compile(rf"(.*(?:mlp|shared_experts)\.)gate_up_proj\.weight({'|'.join(SCALES)})?")
_HINT = re.compile(
    rf"(?:mlp\.experts|switch_mlp)\.(?:{'|'.join(HOLDS)})|gate_up_proj"
)  # in the name of every fused one


class _Fused(NamedTuple):
    """A tensor of several: the names that its parts have, with {expert} where it has one for each, and their rows.

    `whole`: scales that are one for all of an expert's weights, or one for each of them.
    """

    tensor: StoredTensor
    names: tuple[str, ...]
    rows: int  # of one part
    experts: int | None
    whole: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether one scale serves all parts of an expert."""
        return self.whole and self.tensor.shape[1] == 1


def recognise(reading: Reading) -> Reading:
    """Return the reading with a tensor for every part; InputError for halves that cannot be told apart."""
    names = reading.named(_HINT)
    fused = {name: found for name in names if (found := _fused(name, reading.stored[name])) is not None}
    if not fused:
        return reading
    _check(reading, fused)
    stored = {name: tensor for name, tensor in reading.stored.items() if name not in fused}
    for found in fused.values():
        for part in _parts(found):
            if part.name in stored:
                what = "is there twice, alone and in a fused tensor"
                raise InputError(what, file=found.tensor.file.name, tensor=part.name, found=found.tensor.name)
            stored[part.name] = part
    note = f"fused: {len(fused)} tensors hold several, which are read as parts of them: {examples(fused)}."
    return replace(reading, stored=stored).noted(note)


def _fused(name: str, tensor: StoredTensor) -> _Fused | None:
    dimensions = len(tensor.shape)
    if found := _STACKED.fullmatch(name):
        before, kind, scales = found[1], found[2], found[3] or ""
        names = tuple(f"{before}experts.{{expert}}.{part}.weight{scales}" for part in HOLDS[kind])
        if scales and (dimensions < 3 or tensor.shape[1:] == (1, 1)):
            return _of_experts(replace(tensor, shape=(tensor.shape[0], math.prod(tensor.shape[1:]), 1)), names)
        return _Fused(tensor, names, tensor.shape[1] // len(names), tensor.shape[0]) if dimensions == 3 else None
    if dimensions == 2 and (found := _PAIR.fullmatch(name)):
        names = tuple(f"{found[1]}{part}.weight{found[2] or ''}" for part in GATE_UP)
        return _Fused(tensor, names, tensor.shape[0] // 2, None)
    return None


def _of_experts(scales: StoredTensor, names: tuple[str, ...]) -> _Fused:
    """Return scales [experts, n, 1] that are one for all of an expert's weights, or one for each of them."""
    return _Fused(scales, names, max(1, scales.shape[1] // len(names)), scales.shape[0], whole=True)


def _parts(fused: _Fused) -> Iterator[StoredTensor]:
    """Yield each part over its range of the file: expert by expert, one name after the other."""
    tensor, size = fused.tensor, fused.rows * fused.tensor.row_bytes
    step, each = 0 if fused.is_shared else size, size if fused.is_shared else size * len(fused.names)
    for expert in range(1 if fused.experts is None else fused.experts):
        for place, name in enumerate(fused.names):
            called = name.replace("{expert}", str(expert))
            begin = tensor.offset + expert * each + place * step
            yield replace(tensor, name=called, shape=(fused.rows, tensor.shape[-1]), offset=begin, nbytes=size)


def _check(reading: Reading, fused: dict[str, _Fused]) -> None:
    total = 0
    for name, found in fused.items():
        tensor = found.tensor
        if found.experts is not None:
            bounded(found.experts, EXPERTS, "the number of experts", at_least=1, file=tensor.file.name, tensor=name)
            total += found.experts
        if not found.is_shared and found.rows * len(found.names) != tensor.shape[-2]:
            raise _refused(found, "has an odd number of rows, so it does not hold two halves", list(tensor.shape))
    bounded(total, SLICES, "the number of experts of all layers", file=reading.folder.path)
    downs = {found.names[0]: found.tensor for found in fused.values() if not found.names[1:]}
    for name, found in fused.items():
        if found.names[1:]:
            _check_scales(reading, name, found)
            _check_orientation(downs, found)


def _check_orientation(downs: dict[str, StoredTensor], found: _Fused) -> None:
    """Compare gate and up with down, which is [experts, hidden, ffn]: a transposed pair has its sizes exchanged."""
    down = downs.get(found.names[0].replace("gate_proj", "down_proj"))
    if found.experts is None or down is None or found.names[0].endswith(SCALES):
        return
    experts, hidden, ffn = down.shape
    if found.tensor.shape == (experts, 2 * ffn, hidden):
        return
    if found.tensor.shape == (experts, ffn, 2 * hidden):
        what = "is stored with its columns as rows, which is another layout than transformers gives these models"
        raise _refused(found, what, list(found.tensor.shape), [experts, 2 * hidden, ffn])
    raise _refused(found, f"does not belong to {down.name}", list(found.tensor.shape), [experts, 2 * ffn, hidden])


def _check_scales(reading: Reading, name: str, found: _Fused) -> None:
    """Refuse scales whose blocks hold rows of both halves."""
    if not name.endswith(SCALES) or found.whole:
        return
    weight = reading.stored.get(name[: name.rindex("_scale")])
    if weight is not None and found.tensor.shape[-2] == weight.shape[-2]:
        return
    quantization = reading.config.get("quantization_config")
    sizes = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    side = sizes[0] if isinstance(sizes, list) and sizes and type(sizes[0]) is int and sizes[0] > 0 else BLOCK
    if weight is None or weight.shape[-2] % (2 * side) or found.rows * side * 2 != weight.shape[-2]:
        rows = None if weight is None else weight.shape[-2]
        raise _refused(found, f"has scales whose blocks of {side} rows do not part between gate and up", rows)


def _refused(found: _Fused, what: str, shape: object, expected: object = None) -> InputError:
    return InputError(
        what,
        file=found.tensor.file.name,
        tensor=found.tensor.name,
        expected=expected,
        found=shape,
        remedy="Save the model with one tensor for each expert, as save_pretrained of transformers writes it",
    )
