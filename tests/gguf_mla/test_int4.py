"""Packed INT4 checkpoints: values by their definition, rows as Q4_0 that decode to the same, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_mla.sources.formats.pack_quantized import remarks
from tests.support import hub
from tests.support.kinds import INT4

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.sources.formats.shared.int4 import Rounding

Tensors = dict[str, torch.Tensor]
BASE = "w.weight"


def packed(integers: torch.Tensor, scales: torch.Tensor, shape_dtype: torch.dtype = torch.int32) -> Tensors:
    """One weight as compressed-tensors stores it; integers -8 … 7 [M, N]."""
    rows, cols = integers.shape
    padded = torch.zeros(rows, -(-cols // 8) * 8, dtype=torch.int64)
    padded[:, :cols] = integers + 8
    words = (padded.reshape(rows, -1, 8) << torch.arange(0, 32, 4)).sum(2)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    shape = torch.tensor([rows, cols], dtype=shape_dtype)
    return {f"{BASE}_packed": words, f"{BASE}_scale": scales, f"{BASE}_shape": shape}


def random(rows: int, cols: int, group: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-8, 8, (rows, cols), generator=generator)
    return packed(integers, (torch.rand(rows, -(-cols // group), generator=generator) * 0.01 + 1e-4).to(dtype))


def checkpoint_of(directory: Path, tensors: Tensors, group: int = 32, **weights: Any) -> Checkpoint:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    quantization: dict[str, Any] = deepcopy(INT4)
    quantization["config_groups"]["group_0"]["weights"] |= {"group_size": group, **weights}
    hub.write_json(directory / "config.json", {"quantization_config": quantization})
    return open_checkpoint(directory)


def definition(tensors: Tensors, group: int) -> np.ndarray:
    """The values one by one, from the format's definition."""
    rows, cols = tensors[f"{BASE}_shape"].tolist()
    words, scales = tensors[f"{BASE}_packed"].numpy(), tensors[f"{BASE}_scale"].float().numpy()
    out = np.full((rows, cols), np.nan, np.float32)
    for row in range(rows):
        for col in range(cols):
            nibble = (int(words[row, col // 8]) >> 4 * (col % 8)) & 15
            out[row, col] = np.float32(nibble - 8) * scales[row, col // group]
    return out


def as_q4_0(tensor: Any, start: int, stop: int) -> tuple[np.ndarray, tuple[Rounding, ...]]:
    """What gguf decodes from the Q4_0 that the source gives, and what it remarks."""
    raw = tensor.raw(start, stop)
    rows = raw.data.reshape(stop - start, tensor.shape[1] // 32 * 18)
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q4_0), raw.remarks


DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


@given(st.integers(1, 5), st.integers(1, 150), st.integers(1, 70), DTYPES, st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_values_are_their_definition(
    tmp_path: Path, rows: int, cols: int, group: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    tensors = random(rows, cols, group, dtype, seed=cols)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    found = checkpoint_of(tmp_path, tensors, group).tensors
    assert list(found) == [BASE]
    assert found[BASE].shape == (rows, cols)
    assert found[BASE].read(start, stop).tobytes() == definition(tensors, group)[start:stop].tobytes()


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([32, 64, 96, 128]),
    st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_rows_as_q4_0_decode_to_the_very_values(
    tmp_path: Path, rows: int, blocks: int, group: int, dtype: torch.dtype
) -> None:
    tensors = random(rows, 32 * blocks, group, seed=blocks)
    tensors[f"{BASE}_shape"] = tensors[f"{BASE}_shape"].to(dtype)
    checkpoint = checkpoint_of(tmp_path, tensors, group)
    tensor = checkpoint.tensors[BASE]
    assert tensor.raw_type == "Q4_0"
    for start, stop in ((0, rows), (rows // 2, rows)):
        decoded, remarked = as_q4_0(tensor, start, stop)
        assert decoded.tobytes() == definition(tensors, group)[start:stop].tobytes()
        assert remarked == ()


def test_a_group_larger_than_a_row_is_the_row(tmp_path: Path) -> None:
    tensors = random(3, 64, 64)
    tensor = checkpoint_of(tmp_path, tensors, 1 << 70).tensors[BASE]
    assert tensor.read().tobytes() == definition(tensors, 64).tobytes()
    assert as_q4_0(tensor, 0, 3)[0].tobytes() == definition(tensors, 64).tobytes()


@pytest.mark.parametrize(("cols", "group"), [(48, 32), (64, 16), (96, 48), (33, 32)])
def test_what_is_no_whole_number_of_blocks_is_only_decoded(tmp_path: Path, cols: int, group: int) -> None:
    assert checkpoint_of(tmp_path, random(2, cols, group), group).tensors[BASE].raw_type is None


def test_only_the_rows_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = checkpoint_of(tmp_path, random(1000, 64, 32)).tensors[BASE]
    read: list[int] = []
    original = InputFile.read
    monkeypatch.setattr(InputFile, "read", lambda file, at, count: read.append(count) or original(file, at, count))
    tensor.read(500, 503)
    as_q4_0(tensor, 500, 503)
    assert read == [3 * 32, 3 * 4] * 2


# float16: steps of 2^-24 below 2^-14, nothing below half a step, 65504 at most
@pytest.mark.parametrize(
    ("scale", "nearest"),
    [
        (2.0**-14, 2.0**-14),
        (2.0**-17 * 255 / 128, 2.0**-17 * 255 / 128),
        (2.0**-24, 2.0**-24),
        (2.0**-20 * 129 / 128, 2.0**-20),
        (2.0**-26, 0.0),
        (65280.0, 65280.0),
        (131072.0, 65504.0),
        (-131072.0, -65504.0),
    ],
)
def test_a_scale_that_float16_does_not_hold_becomes_the_nearest_and_is_told(
    tmp_path: Path, scale: float, nearest: float
) -> None:
    integers = torch.full((3, 64), 5)
    integers[1] = 0  # whose scale does not matter
    scales = torch.full((3, 2), 0.5, dtype=torch.bfloat16)
    scales[:2, 1] = scale
    checkpoint = checkpoint_of(tmp_path, packed(integers, scales))
    found, remarked = as_q4_0(checkpoint.tensors[BASE], 0, 3)
    _, again = as_q4_0(checkpoint.tensors[BASE], 0, 3)  # for another file; counted once
    assert found[0, 32:].tolist() == [5 * nearest] * 32
    assert found[2].tolist() == [2.5] * 64
    if nearest == scale:
        assert checkpoint.remarks(remarked) == []
    else:
        [said] = checkpoint.remarks((*remarked, *again))
        assert said.startswith("1 blocks of 32 weights in 1 tensors")
        assert f"{8 * abs(scale - nearest):.1e}" in said
        assert f"{100 * abs(1 - nearest / scale):.3g} %" in said
        assert BASE in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_stops_the_copy(tmp_path: Path, value: float) -> None:
    tensors = random(4, 96, 32)
    tensors[f"{BASE}_scale"][2, 1] = value
    tensor = checkpoint_of(tmp_path, tensors).tensors[BASE]
    with pytest.raises(InputError, match="NaN or Inf at row 2, group 1"):
        as_q4_0(tensor, 1, 4)


def without(suffix: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(BASE + suffix)


def replaced(suffix: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({BASE + suffix: tensor})


DAMAGES = {
    "no scale": (without("_scale"), "its weight_scale is missing"),
    "no words": (without("_packed"), "its weight_packed is missing"),
    "no shape": (without("_shape"), "its weight_shape is missing"),
    "scale of another shape": (replaced("_scale", torch.ones(4, 3)), r"expected \[4, 2\], found \[4, 3\]"),
    "scale of integers": (
        replaced("_scale", torch.ones(4, 2, dtype=torch.int8)),
        "expected BF16 or F16 or F32, found I8",
    ),
    "words of another shape": (replaced("_packed", torch.zeros(4, 9, dtype=torch.int32)), r"expected \[4, 8\]"),
    "words of bytes": (replaced("_packed", torch.zeros(4, 8, dtype=torch.uint8)), "expected I32, found U8"),
    "another shape": (
        replaced("_shape", torch.tensor([4, 72], dtype=torch.int32)),
        r"expected \[4, 9\], found \[4, 8\]",
    ),
    "a shape of one": (replaced("_shape", torch.tensor([4], dtype=torch.int32)), "two numbers above zero"),
    "a shape below zero": (replaced("_shape", torch.tensor([-4, 64])), "two numbers above zero"),
    "a shape beyond everything": (replaced("_shape", torch.tensor([1 << 62, 1 << 62])), "has the wrong shape"),
    "a shape of floats": (replaced("_shape", torch.tensor([4.0, 64.0])), "two numbers above zero"),
    "twice": (replaced("", torch.zeros(4, 64)), "twice"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors_are_refused(tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    tensors = random(4, 64, 32)
    damage(tensors)
    with pytest.raises(InputError, match=words) as error:
        checkpoint_of(tmp_path, tensors)
    assert "model.safetensors" in str(error.value)
    assert BASE in str(error.value)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"num_bits": 8}, r"weight_packed has the wrong shape \(expected \[4, 16\], found \[4, 8\]"),
        ({"num_bits": 9}, "weights.num_bits.*expected 2 to 8, found 9"),
        ({"num_bits": True}, "weights.num_bits.*found True"),
        ({"symmetric": False}, "its zero points are missing"),
        ({"symmetric": "no"}, "weights.symmetric.*expected true or false, found no"),
        ({"strategy": "channel"}, r"weight_scale has the wrong shape \(expected \[4, 1\], found \[4, 2\]"),
        ({"strategy": "block"}, "weights.strategy.*expected group or channel or tensor, found block"),
        ({"type": "float"}, "weights.type.*expected int, found float"),
        ({"actorder": "group"}, "another order"),
        ({"actorder": "random"}, "weights.actorder.*expected null, weight or group, found random"),
        ({"group_size": None}, "weights.group_size.*found None"),
        ({"group_size": 0}, "weights.group_size.*found 0"),
        ({"group_size": True}, "weights.group_size.*found True"),
    ],
)
def test_other_ways_to_pack_are_refused(tmp_path: Path, weights: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checkpoint_of(tmp_path, random(4, 64, 32), **weights)


@pytest.mark.parametrize(
    "change",
    [{"format": "nvfp4-pack-quantized"}, {"format": None}, {"config_groups": {}}, {"config_groups": {"group_0": None}}],
)
def test_other_configurations_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_file(random(4, 64, 32), tmp_path / "model.safetensors")
    hub.write_json(tmp_path / "config.json", {"quantization_config": {**INT4, **change}})
    with pytest.raises(InputError, match=r"config\.json: quantization_config"):
        open_checkpoint(tmp_path)


def test_of_many_tensors_the_most_changed_are_named(tmp_path: Path) -> None:
    stored: Tensors = {}
    for number in range(12):
        integers, scales = torch.full((1, 32), 7), torch.full((1, 1), 2.0**-20 * (1 + (number + 1) / 128))
        one = packed(integers, scales.to(torch.bfloat16))
        stored |= {name.replace(BASE, f"x{number}.weight"): tensor for name, tensor in one.items()}
    checkpoint = checkpoint_of(tmp_path, stored)
    [said] = checkpoint.remarks([one for tensor in checkpoint.tensors.values() for one in as_q4_0(tensor, 0, 1)[1]])
    # float16's steps are 8/128 there: 8 is one of them, and 4 and 12 are the farthest from any, 4 relatively more
    assert "They are in x3.weight, " in said
    assert said.endswith(" and 3 more.")


def test_a_checkpoint_without_packed_tensors_has_nothing_to_remark() -> None:
    assert remarks([]) == []
