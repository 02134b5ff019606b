"""Weights of 8 and 4 bits, judged by torch and by formulas written from each format's public definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.formats.nvfp4 import Nvfp4Tensor
from tests.gguf_mla.test_formats import opened
from verify.levels.second_opinion import of_checkpoint
from verify.raw_rows import open_raw

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.0.mlp.up_proj.weight"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes_of(rows: int, cols: int, kind: torch.dtype) -> torch.Tensor:
    if kind == torch.int8:
        return torch.randint(-128, 128, (rows, cols), generator=generator(), dtype=torch.int8)
    return (torch.randn(rows, cols, generator=generator()) * 40).to(kind)


def once(values: torch.Tensor) -> np.ndarray:
    """Exact values, rounded to float32 once."""
    assert values.dtype == torch.float64
    return values.float().numpy()


SHAPES = {  # shape of the scales of [6, 96] → how each value finds its own
    "a number": ((), lambda s: s.reshape(1, 1)),
    "one of one": ((1,), lambda s: s.reshape(1, 1)),
    "one by one": ((1, 1), lambda s: s),
    "a row's": ((6,), lambda s: s[:, None]),
    "a row's, as a column": ((6, 1), lambda s: s),
    "groups": ((6, 3), lambda s: s.repeat_interleave(32, 1)),
}


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("name", SHAPES)
def test_values_are_codes_times_their_scale(tmp_path: Path, name: str, kind: torch.dtype, scales: torch.dtype) -> None:
    shape, spread = SHAPES[name]
    weight, scale = codes_of(6, 96, kind), (torch.rand(shape, generator=generator(1)) * 0.01 + 1e-4).to(scales)
    tensor = opened(tmp_path, {NAME: weight, NAME + "_scale": scale}, None).tensors[NAME]
    expected = once(weight.double() * spread(scale.double()))
    for start, stop in ((0, 6), (2, 5), (5, 6), (3, 3)):
        assert tensor.read(start, stop).tobytes() == expected[start:stop].tobytes()
    assert tensor.raw_type is None


@pytest.mark.parametrize("form", ["block_structure", "weight_block_size"])
def test_blocks_of_compressed_tensors(tmp_path: Path, form: str) -> None:
    weight, scale = codes_of(9, 70, torch.float8_e4m3fn), torch.rand(3, 3, generator=generator(1))
    weights = {"block_structure": [4, 32], "strategy": "block"}
    named: dict[str, Any] = {"config_groups": {"group_0": {"weights": weights}}}
    claim = named if form == "block_structure" else {"weight_block_size": [4, 32]}
    stored = {NAME: weight, NAME + "_scale": scale}
    tensor = opened(tmp_path, stored, {"quant_method": "compressed-tensors", **claim}).tensors[NAME]
    spread = scale.double().repeat_interleave(4, 0)[:9].repeat_interleave(32, 1)[:, :70]
    expected = once(weight.double() * spread)
    assert tensor.read(5, 9).tobytes() == expected[5:9].tobytes()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_blocks_of_integers_and_one_scale_for_all_under_the_name_of_blocks(tmp_path: Path, kind: torch.dtype) -> None:
    weight, scale = codes_of(5, 70, kind), torch.rand(2, 3, generator=generator(1))
    stored = {NAME: weight, NAME + "_scale_inv": scale, "b.weight": weight, "b.weight_scale_inv": torch.tensor(0.25)}
    tensors = opened(tmp_path, stored, {"quant_method": "fp8", "weight_block_size": [4, 32]}).tensors
    spread = scale.double().repeat_interleave(4, 0)[:5].repeat_interleave(32, 1)[:, :70]
    assert tensors[NAME].read().tobytes() == once(weight.double() * spread).tobytes()
    assert tensors["b.weight"].read(1, 3).tobytes() == once(weight.double()[1:3] * 0.25).tobytes()


SCALED = {NAME: codes_of(6, 96, torch.float8_e4m3fn), NAME + "_scale": torch.ones(6, 1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME + "_scale": None}, "its scales are missing"),
        (
            {NAME + "_scale": torch.ones(5, 1)},
            r"wrong shape \(expected one, \[6, 1\], or \[6, groups\], found \[5, 1\]",
        ),
        ({NAME + "_scale": torch.ones(6, 5)}, "wrong shape"),
        ({NAME + "_scale": torch.ones(6, 0)}, "wrong shape"),
        ({NAME + "_scale": torch.ones(6, 1, dtype=torch.int32)}, "unknown type"),
        ({NAME: torch.ones(2, 3, 4).to(torch.float8_e4m3fn)}, "not a matrix"),
        ({NAME + "_zero_point": torch.ones(6, 1)}, "zero points"),
    ],
)
def test_damaged_scales_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    stored = {name: tensor for name, tensor in (SCALED | change).items() if tensor is not None}
    with pytest.raises(InputError, match=words) as error:
        opened(tmp_path, stored, None)
    assert NAME in str(error.value)
    assert "ownload" not in str(error.value)


def test_no_more_scales_are_read_than_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale = torch.ones(100, 64, dtype=torch.int8), torch.ones(100, 1)
    tensor = opened(tmp_path, {NAME: weight, NAME + "_scale": scale}, None).tensors[NAME]
    read: list[int] = []
    original = InputFile.read
    monkeypatch.setattr(InputFile, "read", lambda file, at, count: read.append(count) or original(file, at, count))
    tensor.read(50, 53)
    assert sorted(read) == [3 * 4, 3 * 64]


def fp4(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes [rows, cols / 2], and what they mean, float64 [rows, cols]."""
    codes = torch.randint(0, 16, (rows, cols), generator=generator(2))
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), E2M1[codes]


def modelopt(rows: int, cols: int, base: str = NAME) -> tuple[Tensors, torch.Tensor]:
    packed, meant = fp4(rows, cols)
    scale = (torch.rand(rows, cols // 16, generator=generator(3)) * 400).to(torch.float8_e4m3fn)
    whole = torch.tensor(0.000123)
    stored = {base: packed, base + "_scale": scale, base + "_scale_2": whole}
    return stored, meant * scale.double().repeat_interleave(16, 1) * whole.double()


def compressed(rows: int, cols: int, base: str = NAME) -> tuple[Tensors, torch.Tensor]:
    packed, meant = fp4(rows, cols)
    scale = (torch.rand(rows, cols // 16, generator=generator(3)) * 400).to(torch.float8_e4m3fn)
    whole = torch.tensor([8191.3])
    stored = {base + "_packed": packed, base + "_scale": scale, base + "_global_scale": whole}
    return stored, meant * scale.double().repeat_interleave(16, 1) / whole.double()


def unpacked(tensor: Any, start: int, stop: int) -> np.ndarray:
    """What gguf decodes of the rows that a source gives bit for bit."""
    kind = gguf.GGMLQuantizationType[tensor.raw_type]
    rows = tensor.raw(start, stop).data.reshape(stop - start, -1)
    return gguf.quants.dequantize(rows, kind)


@pytest.mark.parametrize("make", [modelopt, compressed])
def test_nvfp4_is_moved_bit_for_bit_and_decoded_exactly(tmp_path: Path, make: Any) -> None:
    stored, expected = make(5, 192)
    more = {name.replace("up", "down"): tensor for name, tensor in stored.items()}
    tensor = opened(tmp_path, stored | more | {"w.input_global_scale": torch.ones(1)}, None).tensors[NAME]
    assert tensor.shape == (5, 192)
    assert tensor.raw_type == "NVFP4"
    for start, stop in ((0, 5), (1, 3)):
        assert tensor.read(start, stop).tobytes() == once(expected)[start:stop].tobytes()
        decoded = unpacked(tensor, start, stop).astype(np.float64) * tensor.factor  # exact but for the last bits
        np.testing.assert_array_equal(decoded.astype(np.float32), once(expected)[start:stop])


def test_a_negative_scale_of_nvfp4_gives_its_sign_to_the_values(tmp_path: Path) -> None:
    stored, expected = modelopt(2, 64)
    scale = stored[NAME + "_scale"].float()
    scale[1, 2] *= -1
    stored[NAME + "_scale"] = scale.to(torch.float8_e4m3fn)
    expected[1, 32:48] *= -1
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    np.testing.assert_array_equal(
        (unpacked(tensor, 0, 2) * np.float64(tensor.factor)).astype(np.float32), once(expected)
    )
    np.testing.assert_array_equal(tensor.read(), once(expected))


def test_what_engines_would_not_scale_is_only_decoded(tmp_path: Path) -> None:
    stored, expected = modelopt(4, 64, "model.layers.0.self_attn.o_proj.weight")
    tensor = opened(tmp_path, stored, None).tensors["model.layers.0.self_attn.o_proj.weight"]
    assert tensor.raw_type is None
    assert tensor.read().tobytes() == once(expected).tobytes()


def test_rows_that_are_not_whole_blocks_are_only_decoded(tmp_path: Path) -> None:
    stored, expected = modelopt(4, 48)
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    assert tensor.raw_type is None
    assert tensor.read(1, 2).tobytes() == once(expected)[1:2].tobytes()


MXFP4 = {
    "compressed-tensors": (NAME + "_packed", NAME + "_scale", torch.uint8),
    "Quark": (NAME, NAME + "_scale", torch.uint8),
    "DeepSeek-V4": (NAME, NAME.removesuffix(".weight") + ".scale", torch.float8_e8m0fnu),
}


@pytest.mark.parametrize("form", MXFP4)
def test_mxfp4_is_moved_bit_for_bit(tmp_path: Path, form: str) -> None:
    codes, scales, dtype = MXFP4[form]
    packed, meant = fp4(3, 160)
    powers = torch.randint(0, 255, (3, 5), generator=generator(4))
    powers[0, 0] = 0
    stored = {
        codes: packed.view(torch.int8) if form == "DeepSeek-V4" else packed,
        scales: powers.to(torch.uint8).view(dtype),
    }
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    exact = meant * torch.ldexp(torch.ones(3, 5, dtype=torch.float64), powers - 127).repeat_interleave(32, 1)
    assert tensor.raw_type == "MXFP4"
    np.testing.assert_array_equal(unpacked(tensor, 1, 3), once(exact)[1:])
    assert tensor.read(0, 2).tobytes() == once(exact)[:2].tobytes()


@pytest.mark.parametrize("make", [modelopt, compressed])
def test_a_scale_that_is_no_number_stops_the_move(tmp_path: Path, make: Any) -> None:
    stored, _ = make(4, 64)
    stored[NAME + "_scale"].view(torch.uint8)[2, 1] = 0xFF
    tensor = opened(tmp_path, stored, None).tensors[NAME]
    tensor.raw(0, 2)
    with pytest.raises(InputError, match="NaN at row 2, group 1"):
        tensor.raw(1, 4)
    assert np.isnan(tensor.read()[2, 16:32]).sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME + "_scale_2": None}, r"expected a tensor|lacks its scale .* found none"),
        ({NAME + "_scale_2": torch.ones(2)}, r"found \[2\] of F32"),
        ({NAME + "_scale_2": torch.ones(1, dtype=torch.bfloat16)}, "found .* of BF16"),
        ({NAME + "_scale": torch.ones(4, 3).to(torch.float8_e4m3fn)}, r"expected \[4, 4\], found \[4, 3\]"),
    ],
)
def test_damaged_nvfp4_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    stored, _ = modelopt(4, 64)
    with pytest.raises(InputError, match=words) as error:
        opened(tmp_path, {n: t for n, t in (stored | change).items() if t is not None}, None)
    assert NAME in str(error.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_of_the_tensor_that_is_no_positive_number_is_refused(tmp_path: Path, value: float) -> None:
    stored, _ = modelopt(4, 64)
    tensor = opened(tmp_path, stored | {NAME + "_scale_2": torch.tensor(value)}, None).tensors[NAME]
    with pytest.raises(InputError, match="expected a positive number"):
        tensor.raw(0, 1)


def second_opinions() -> dict[str, Tensors]:
    """A checkpoint of every form, each value decoded by verify's own reader of the stored bytes, too."""
    coded, halves = codes_of(6, 96, torch.float8_e4m3fn), fp4(3, 160)[0]
    powers = torch.randint(100, 150, (3, 5), generator=generator(4)).to(torch.uint8)
    return {
        **{name: {NAME: coded, NAME + "_scale": torch.rand(shape)} for name, (shape, _) in SHAPES.items()},
        "integers": {NAME: codes_of(6, 96, torch.int8), NAME + "_scale": torch.rand(6, 1).bfloat16()},
        "ModelOpt's NVFP4": modelopt(5, 192)[0],
        "compressed-tensors' NVFP4": compressed(5, 192)[0],
        **{
            f"{name}'s MXFP4": {codes: halves, scales: powers.view(dtype)}
            for name, (codes, scales, dtype) in MXFP4.items()
        },
    }


@pytest.mark.parametrize("name", second_opinions())
def test_verify_has_a_second_opinion(tmp_path: Path, name: str) -> None:
    checkpoint = opened(tmp_path, second_opinions()[name], None)
    assert checkpoint.tensors[NAME].name == NAME
    raw = open_raw(tmp_path, [tmp_path / "model.safetensors"], {})
    assert len(raw.judged(NAME)) == 2
    assert of_checkpoint(checkpoint, 1) == []


def test_a_second_opinion_can_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tmp_path, modelopt(5, 192)[0], None)
    monkeypatch.setattr(Nvfp4Tensor, "multipliers", lambda _self, scales: scales.astype(np.float64))
    [finding] = of_checkpoint(checkpoint, 1)
    assert "reader is at fault" in finding.what
