"""compressed-tensors' packed integers beyond Kimi's: other bits, zero points, columns in another order, mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import Checkpoint, open_checkpoint
from tests.support import hub
from verify.levels.second_opinion import of_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]
BASE = "model.layers.0.mlp.up_proj.weight"


def words(integers: np.ndarray, bits: int) -> np.ndarray:
    """Pack signed integers [rows, cols] into int32 [rows, words], one at a time; what is left of a word is 0."""
    pack = 32 // bits
    out = np.zeros((len(integers), -(-integers.shape[1] // pack)), np.uint32)
    for row, col in np.ndindex(integers.shape):
        out[row, col // pack] |= np.uint32(int(integers[row, col]) + (1 << bits - 1) << bits * (col % pack))
    return out.view(np.int32)


def weight(
    rows: int, cols: int, bits: int, group: int | None, *, zeros: str = "", mixed: bool = False, base: str = BASE
) -> tuple[Tensors, np.ndarray]:
    """One weight as compressed-tensors stores it, and its values, each computed alone."""
    random = np.random.default_rng(bits * 1000 + cols)
    count = 1 if group is None else -(-cols // group)
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    integers = random.integers(least, most, (rows, cols), endpoint=True)
    scales = torch.from_numpy(random.random((rows, count)).astype(np.float32)).to(torch.bfloat16)
    points = random.integers(least, most, (rows, count), endpoint=True) if zeros else np.zeros((rows, count), int)
    order = np.arange(cols) // (group or cols)
    order = random.permutation(order) if mixed else order
    stored = {
        f"{base}_packed": torch.from_numpy(words(integers, bits)),
        f"{base}_scale": scales,
        f"{base}_shape": torch.tensor([rows, cols]),
    }
    if zeros == "packed":
        stored[f"{base}_zero_point"] = torch.from_numpy(np.ascontiguousarray(words(points.T, bits).T))
    elif zeros:
        stored[f"{base}_zero_point"] = torch.from_numpy(points.astype(np.int8))
    if mixed:
        stored[f"{base}_g_idx"] = torch.from_numpy(order.astype(np.int32))
    exact = (integers - points[:, order]).astype(np.float64) * scales.double().numpy()[:, order]
    return stored, exact.astype(np.float32)


def scheme(bits: int, group: int | None, **more: Any) -> dict[str, Any]:
    strategy = "group" if group else "channel"
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group, **more}


def opened(directory: Path, stored: Tensors, *schemes: dict[str, Any], form: str = "pack-quantized") -> Checkpoint:
    directory.mkdir(exist_ok=True)
    save_file(stored, directory / "model.safetensors")
    groups = {f"group_{number}": {"weights": one, "format": "pack-quantized"} for number, one in enumerate(schemes)}
    quantization = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    hub.write_json(directory / "config.json", {"quantization_config": quantization})
    return open_checkpoint(directory)


CASES = {
    "8 bits": (8, 32, {}),
    "8 bits per row": (8, None, {}),
    "4 bits with zero points": (4, 32, {"zeros": "packed"}),
    "4 bits with zero points that are not packed": (4, 16, {"zeros": "plain"}),
    "4 bits per row with zero points": (4, None, {"zeros": "packed"}),
    "4 bits in another order": (4, 32, {"mixed": True}),
    "8 bits with everything": (8, 16, {"zeros": "packed", "mixed": True}),
    "3 bits, ten in a word": (3, 32, {"zeros": "packed"}),
    "6 bits": (6, 48, {}),
    "2 bits": (2, 32, {}),
}


@pytest.mark.parametrize("cols", [96, 101])
@pytest.mark.parametrize("name", CASES)
def test_values_are_their_definition(tmp_path: Path, name: str, cols: int) -> None:
    bits, group, kind = CASES[name]
    stored, values = weight(13, cols, bits, group, **kind)
    more = {"symmetric": "zeros" not in kind, "actorder": "group" if "mixed" in kind else None}
    checkpoint = opened(tmp_path, stored, scheme(bits, group, **more))
    tensor = checkpoint.tensors[BASE]
    assert (tensor.shape, tensor.raw_type) == ((13, cols), None)
    for start, stop in ((0, 13), (5, 6), (7, 13)):
        assert tensor.read(start, stop).tobytes() == values[start:stop].tobytes()
    assert of_checkpoint(checkpoint, 1) == []


@pytest.mark.parametrize("shape", [(6,), (1,), (1, 1)])
def test_one_scale_for_a_row_or_for_all(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stored, _ = weight(6, 64, 8, None)
    scales = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    stored[f"{BASE}_scale"] = scales
    checkpoint = opened(tmp_path, stored, scheme(8, None, strategy="tensor" if 1 in shape else "channel"))
    integers = stored[f"{BASE}_packed"].numpy().view(np.uint8).astype(np.float32) - 128
    expected = integers * scales.numpy().reshape(-1, 1)
    assert checkpoint.tensors[BASE].read(2, 5).tobytes() == np.broadcast_to(expected, (6, 64))[2:5].tobytes()
    assert of_checkpoint(checkpoint, 1) == []


def test_an_order_that_was_never_set_is_the_natural_one(tmp_path: Path) -> None:
    stored, values = weight(4, 64, 4, 32)
    stored[f"{BASE}_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    checkpoint = opened(tmp_path, stored, scheme(4, 32))
    assert checkpoint.tensors[BASE].read().tobytes() == values.tobytes()
    assert of_checkpoint(checkpoint, 1) == []


def test_a_mixture_is_read_weight_by_weight(tmp_path: Path) -> None:
    four, values4 = weight(8, 96, 4, 32)
    other = BASE.replace("up", "down")
    eight, values8 = weight(8, 96, 8, None, base=other)
    checkpoint = opened(tmp_path, four | eight, scheme(8, None), scheme(4, 32), form="mixed-precision")
    assert [checkpoint.tensors[name].stored for name in (BASE, other)] == ["INT4 group 32", "INT8 per row"]
    assert checkpoint.tensors[BASE].raw_type == "Q4_0"
    assert checkpoint.tensors[BASE].read().tobytes() == values4.tobytes()
    assert checkpoint.tensors[other].read().tobytes() == values8.tobytes()
    assert of_checkpoint(checkpoint, 1) == []


WRONG = {
    "a group that is not there": ("_g_idx", torch.full((64,), 2, dtype=torch.int32), "column 0 into a group"),
    "an order of another length": ("_g_idx", torch.zeros(63, dtype=torch.int32), r"wrong shape \(expected \[64\]"),
    "zero points of floats": ("_zero_point", torch.zeros(8, 2), r"unknown type \(expected I32 or I8, found F32"),
    "zero points for other rows": (
        "_zero_point",
        torch.zeros(2, 2, dtype=torch.int32),
        r"wrong shape \(expected \[1, 2\], found \[2, 2\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    suffix, tensor, words_ = WRONG[name]
    stored, _ = weight(8, 64, 4, 32)
    with pytest.raises(InputError, match=words_):
        opened(tmp_path, stored | {BASE + suffix: tensor}, scheme(4, 32)).tensors[BASE].read()


def many(count: int, bits: int) -> Tensors:
    found: Tensors = {}
    for number in range(count):
        found |= weight(2, 64, bits, 32, base=BASE.replace("0", str(number)))[0]
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_of_weights_that_are_alike_one_shape_is_read_at_first(
    tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = InputFile.read
    monkeypatch.setattr(InputFile, "read", lambda file, at, count: read.append(count) or original(file, at, count))
    checkpoint = opened(tmp_path, many(20, bits), scheme(bits, 32))
    assert read.count(16) == 1
    for tensor in checkpoint.tensors.values():
        tensor.read(1, 2)
    assert read.count(16) == 20
    for tensor in checkpoint.tensors.values():
        tensor.read(0, 1)
    assert read.count(16) == 20


@pytest.mark.parametrize("zeros", ["", "plain"])
def test_what_is_read_of_rows_is_announced(tmp_path: Path, zeros: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _ = weight(13, 96, 8, 32, zeros=zeros)
    tensor = opened(tmp_path, stored, scheme(8, 32, symmetric=not zeros)).tensors[BASE]
    tensor.read(0, 1)
    heard, read, original = [], [], InputFile.read
    monkeypatch.setattr(InputFile, "will_read", lambda _file, *at: heard.append(at))
    monkeypatch.setattr(InputFile, "read", lambda file, *at: read.append(at) or original(file, *at))
    tensor.will_read(3, 7)
    tensor.read(3, 7)
    assert heard == read
    assert len(read) == (3 if zeros else 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_shape_that_contradicts_those_alike_is_found_before_its_rows_are_used(tmp_path: Path, bits: int) -> None:
    stored = many(3, bits)
    name = BASE.replace("0", "2")
    stored[f"{name}_shape"] = torch.tensor([2, 63])
    tensors = opened(tmp_path, stored, scheme(bits, 32)).tensors
    for tensor in (tensors[BASE], tensors[BASE.replace("0", "1")]):
        tensor.read()
    with pytest.raises(InputError, match=rf"{name}_shape.*expected \[2, 64\], found \[2, 63\]"):
        tensors[name].read(1, 2)
    if bits == 4:
        with pytest.raises(InputError, match="another shape"):
            tensors[name].raw(0, 1)  # type: ignore[attr-defined]
