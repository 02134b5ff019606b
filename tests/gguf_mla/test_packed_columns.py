"""AWQ and GPTQ: packed one value at a time as their definitions say, and decoded back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.formats.shared import columns
from tests.gguf_mla.test_formats import opened
from verify.levels.second_opinion import of_checkpoint
from verify.raw_rows import open_raw

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]
BASE = "model.layers.0.mlp.up_proj"
NAME = BASE + ".weight"
# AutoAWQ packs value ORDER[i] of eight (four) into the i-th bits of a word.
ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def words(integers: np.ndarray, bits: int, order: list[int]) -> torch.Tensor:
    """Pack integers [rows, n·p] into int32 [rows, n], one at a time."""
    pack = 32 // bits
    out = np.zeros((integers.shape[0], integers.shape[1] // pack), np.uint32)
    for row, col in np.ndindex(out.shape):
        for i in range(pack):
            out[row, col] |= np.uint32(int(integers[row, col * pack + order[i]]) << bits * i)
    return torch.from_numpy(out.view(np.int32))


def drawn(inputs: int, outputs: int, groups: int, bits: int, seed: int = 0) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    integers = random.integers(0, 1 << bits, (inputs, outputs))
    zeros = random.integers(0, 1 << bits, (groups, outputs))
    return integers, zeros, random.random((groups, outputs)).astype(np.float16)


def decoded(integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group: list[int]) -> np.ndarray:
    """The weight [outputs, inputs], value by value."""
    out = np.empty(integers.shape[::-1], np.float32)
    for k, n in np.ndindex(integers.shape):
        exact = (int(integers[k, n]) - int(zeros[group[k], n])) * float(scales[group[k], n])
        out[n, k] = np.float32(exact)
    return out


def awq(inputs: int, outputs: int, groups: int, bits: int) -> tuple[Tensors, np.ndarray]:
    integers, zeros, scales = drawn(inputs, outputs, groups, bits)
    stored = {
        f"{BASE}.qweight": words(integers, bits, ORDER[bits]),
        f"{BASE}.qzeros": words(zeros, bits, ORDER[bits]),
        f"{BASE}.scales": torch.from_numpy(scales),
    }
    return stored, decoded(integers, zeros, scales, [k * groups // inputs for k in range(inputs)])


def gptq(
    inputs: int, outputs: int, groups: int, bits: int, *, mixed: bool = False, version: int = 1
) -> tuple[Tensors, np.ndarray]:
    integers, zeros, scales = drawn(inputs, outputs, groups, bits)
    pack, group = 32 // bits, [k * groups // inputs for k in range(inputs)]
    natural = list(range(pack))
    kept = (zeros - 1) % (1 << bits) if version == 1 else zeros
    stored = {
        f"{BASE}.qweight": words(np.ascontiguousarray(integers.T), bits, natural).T.contiguous(),
        f"{BASE}.qzeros": words(kept, bits, natural),
        f"{BASE}.scales": torch.from_numpy(scales),
    }
    if mixed:
        group = np.random.default_rng(9).permutation(group).tolist()
        stored[f"{BASE}.g_idx"] = torch.tensor(group, dtype=torch.int32)
    return stored, decoded(integers, zeros, scales, group)


def same(tensor: Any, expected: np.ndarray) -> None:
    rows = len(expected)
    for start, stop in ((0, rows), (1, rows - 3), (5, 6), (rows - 1, rows), (4, 4)):
        assert tensor.read(start, stop).tobytes() == expected[start:stop].tobytes()
    assert tensor.shape == expected.shape
    assert tensor.raw_type is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_awq(tmp_path: Path, bits: int, groups: int) -> None:
    stored, expected = awq(24, 40, groups, bits)
    same(opened(tmp_path, stored, {"quant_method": "awq"}).tensors[NAME], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(tmp_path: Path, bits: int, mixed: bool, version: int) -> None:
    stored, expected = gptq(48, 32, 3, bits, mixed=mixed, version=version)
    claim = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"} if version == 2 else {"quant_method": "gptq"}
    same(opened(tmp_path, stored, claim).tensors[NAME], expected)


def test_a_last_group_may_be_partial(tmp_path: Path) -> None:
    integers, zeros, scales = drawn(40, 32, 3, 4)
    stored, _ = gptq(40, 32, 3, 4)
    group = [k // 14 for k in range(40)]
    same(opened(tmp_path, stored, None).tensors[NAME], decoded(integers, zeros, scales, group))


@pytest.mark.parametrize("make", [awq, gptq])
def test_reads_are_bounded_whatever_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    stored, expected = make(64, 32, 2, 4)
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    monkeypatch.setattr(columns, "PIECE_BYTES", 100)
    read: list[int] = []
    original = InputFile.read
    monkeypatch.setattr(InputFile, "read", lambda file, at, count: read.append(count) or original(file, at, count))
    assert tensor.read(9, 11).tobytes() == expected[9:11].tobytes()
    assert max(read) <= 128  # a stored row where that alone is more


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no zero points": (awq, {".qzeros": None}, r"expected a tensor .*qzeros"),
    "no scales": (gptq, {".scales": None}, r"expected a tensor .*scales"),
    "zero points of another shape": (awq, {".qzeros": torch.zeros(2, 3, dtype=torch.int32)}, "wrong shape"),
    "groups that do not divide": (awq, {".scales": torch.ones(5, 32)}, "wrong shape"),
    "scales of another width": (gptq, {".scales": torch.ones(2, 24)}, "wrong shape"),
    "scales of integers": (gptq, {".scales": torch.ones(2, 32, dtype=torch.int32)}, "is not what it should be"),
    "words of bytes": (awq, {".qweight": torch.zeros(64, 4, dtype=torch.uint8)}, "is not what it should be"),
    "3 bits": (gptq, {".qzeros": torch.zeros(2, 3, dtype=torch.int32)}, "packed as 2, 4 or 8 bits"),
    "an order of another length": (gptq, {".g_idx": torch.zeros(63, dtype=torch.int32)}, "g_idx has the wrong shape"),
    "nothing at all": (gptq, {".qweight": torch.zeros(0, 32, dtype=torch.int32)}, "is not what it should be"),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    make, change, matched = CASES[name]
    stored, _ = make(64, 32, 2, 4)
    stored = {n: t for n, t in (stored | {BASE + s: t for s, t in change.items()}).items() if t is not None}
    with pytest.raises(InputError, match=matched) as error:
        opened(tmp_path, stored, None)
    assert BASE in str(error.value)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_group_that_does_not_exist_is_refused(tmp_path: Path, wrong: int) -> None:
    stored, _ = gptq(64, 32, 2, 4, mixed=True)
    stored[BASE + ".g_idx"][7] = wrong
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    with pytest.raises(InputError, match=f"puts input 7 .*expected 0 to 1, found {wrong}"):
        tensor.read(0, 1)


def test_other_forms_of_gptq_are_refused(tmp_path: Path) -> None:
    stored, _ = gptq(64, 32, 2, 4)
    with pytest.raises(InputError, match="checkpoint_format is not supported"):
        opened(tmp_path, stored, {"quant_method": "gptq", "checkpoint_format": "marlin"})


@pytest.mark.parametrize("make", [awq, gptq])
@pytest.mark.parametrize("bits", [4, 8])
def test_verify_has_a_second_opinion(tmp_path: Path, make: Any, bits: int) -> None:
    stored, expected = make(64, 32, 2, bits)
    checkpoint = opened(tmp_path, stored, None)
    raw = open_raw(tmp_path, [tmp_path / "model.safetensors"], {})
    assert raw.judged(NAME) == (0, 31)
    for row in (0, 5, 31):
        assert raw.row(NAME, row).tobytes() == expected[row].tobytes()
    assert of_checkpoint(checkpoint, 1) == []
