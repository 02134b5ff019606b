"""Checkpoints in other tools' formats become the files that their decoded weights become, and verify agrees."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_mla.container.reader import open_gguf
from tests.conftest import MINIATURE
from tests.gguf_mla import test_packed_columns as columns
from tests.gguf_mla import test_scaled as scaled
from tests.support import hub
from tests.support.command import convert, gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]
    Made = tuple[Tensors, torch.Tensor]  # what is stored for a weight, and what it means

pytestmark = pytest.mark.usefixtures("judges")


def per_row(name: str, rows: int, cols: int) -> Made:
    codes, scale = scaled.codes_of(rows, cols, torch.float8_e4m3fn), torch.rand(rows, 1) * 1e-3 + 1e-4
    stored = {name: codes, name + "_scale": scale, name.removesuffix("weight") + "input_scale": torch.tensor(0.5)}
    return stored, (codes.double() * scale.double()).float()


def nvfp4(name: str, rows: int, cols: int) -> Made:
    stored, exact = scaled.modelopt(rows, cols, name)
    return stored, exact.float()


def mxfp4(name: str, rows: int, cols: int) -> Made:
    codes, meant = scaled.fp4(rows, cols)
    powers = torch.randint(115, 122, (rows, cols // 32), generator=scaled.generator(7))
    exact = meant * torch.ldexp(torch.ones(powers.shape, dtype=torch.float64), powers - 127).repeat_interleave(32, 1)
    return {name + "_packed": codes, name + "_scale": powers.to(torch.uint8)}, exact.float()


def of_columns(make: Callable[..., tuple[Tensors, np.ndarray]], **options: Any) -> Callable[[str, int, int], Made]:
    def made(name: str, rows: int, cols: int) -> Made:
        stored, values = make(cols, rows, cols // 64, 4, **options)
        base = name.removesuffix(".weight")
        return {n.replace(columns.BASE, base): t for n, t in stored.items()}, torch.from_numpy(values)

    return made


CONFIGURATION: dict[str, tuple[Callable[[str, int, int], Made], dict[str, Any]]] = {
    "FP8 per row": (per_row, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "NVFP4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "MXFP4": (mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
    "AWQ": (of_columns(columns.awq), {"quant_method": "awq", "bits": 4}),
    "GPTQ": (of_columns(columns.gptq, mixed=True), {"quant_method": "gptq", "bits": 4, "desc_act": True}),
}
# Few, because the packing is written one value at a time.
WEIGHTS = [f"model.layers.1.mlp.experts.{expert}.up_proj.weight" for expert in range(4)]
ATTENTION = "model.layers.0.self_attn.q_a_proj.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {**MINIATURE, "hidden_size": 128, "moe_intermediate_size": 64, "q_lora_rank": 64}
    return hub.write(tmp_path_factory.mktemp("plain") / "v3", "v3", shard_bytes=None, **small)


def both(plain: Path, directory: Path, name: str) -> tuple[Path, Path]:
    """The checkpoint with some weights in a format, and with the values that they mean."""
    make, claim = CONFIGURATION[name]
    stored = load_file(plain / "model.safetensors")
    meant = dict(stored)
    for weight in [*WEIGHTS, ATTENTION]:
        replacement, values = make(weight, *stored.pop(weight).shape)
        stored |= replacement
        meant[weight] = values
    for place, tensors in (("formatted", stored), ("meant", meant)):
        shutil.copytree(plain, directory / place)
        copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, directory / place / "model.safetensors")
    config = hub.config_of("v3", "bundled", **MINIATURE, hidden_size=128, moe_intermediate_size=64, q_lora_rank=64)
    hub.write_json(directory / "formatted" / "config.json", config | {"quantization_config": claim})
    return directory / "formatted", directory / "meant"


@pytest.mark.parametrize("name", CONFIGURATION)
def test_the_same_file_as_from_decoded_weights(plain: Path, tmp_path: Path, name: str) -> None:
    formatted, meant = both(plain, tmp_path, name)
    convert(formatted, tmp_path / "a.gguf", "F32")
    convert(meant, tmp_path / "b.gguf", "F32")
    ours, theirs = open_gguf(tmp_path / "a.gguf"), open_gguf(tmp_path / "b.gguf")
    assert list(ours.tensors) == list(theirs.tensors)
    for tensor in ours.tensors.values():
        assert tensor.read().tobytes() == theirs.tensors[tensor.name].read().tobytes(), tensor.name
    answer = gguf_mla("verify", formatted, tmp_path / "a.gguf")
    assert answer.status == 0, answer.output


def test_mxfp4_experts_keep_their_bits(plain: Path, tmp_path: Path) -> None:
    formatted, meant = both(plain, tmp_path, "MXFP4")
    convert(formatted, tmp_path / "a.gguf")
    tensor = open_gguf(tmp_path / "a.gguf").tensors["blk.1.ffn_up_exps.weight"]
    assert tensor.type == "MXFP4"
    expected = load_file(meant / "model.safetensors")
    found = gguf.quants.dequantize(tensor.read(), gguf.GGMLQuantizationType.MXFP4).reshape(4, -1)
    for expert, name in enumerate(WEIGHTS):
        np.testing.assert_array_equal(found[expert], expected[name].numpy().reshape(-1))


def test_nvfp4_is_decoded_unless_its_bits_are_asked_for(plain: Path, tmp_path: Path) -> None:
    formatted, meant = both(plain, tmp_path, "NVFP4")
    answer = convert(formatted, tmp_path / "a.gguf")
    assert "5 weights in NVFP4 are decoded" in answer.output
    assert {t.type for t in open_gguf(tmp_path / "a.gguf").tensors.values()} == {"BF16", "F32"}
    answer = convert(formatted, tmp_path / "b.gguf", "NVFP4")
    assert "1 tensors NAME.scale hold what blocks of NVFP4 leave out" in answer.output
    file = open_gguf(tmp_path / "b.gguf")
    assert file.tensors["blk.0.attn_q_a.weight"].type == "BF16"
    weight, scale = file.tensors["blk.1.ffn_up_exps.weight"], file.tensors["blk.1.ffn_up_exps.scale"]
    assert (weight.type, scale.shape) == ("NVFP4", (4,))
    found = gguf.quants.dequantize(weight.read(), gguf.GGMLQuantizationType.NVFP4).reshape(4, -1)
    found = found * file["blk.1.ffn_up_exps.scale"].values().astype(np.float64)[:, None]
    expected = load_file(meant / "model.safetensors")
    for expert, name in enumerate(WEIGHTS):
        np.testing.assert_array_equal(found[expert].astype(np.float32), expected[name].numpy().reshape(-1))
    answer = gguf_mla("verify", formatted, tmp_path / "b.gguf")
    assert answer.status == 0, answer.output


def test_without_a_scale_of_the_tensor_bits_are_kept(plain: Path, tmp_path: Path) -> None:
    formatted, _ = both(plain, tmp_path, "NVFP4")
    stored = load_file(formatted / "model.safetensors")
    ones = {name: torch.tensor(1.0) for name in stored if name.endswith("_scale_2")}
    save_file(stored | ones, formatted / "model.safetensors")
    convert(formatted, tmp_path / "a.gguf")
    file = open_gguf(tmp_path / "a.gguf")
    assert {name for name, t in file.tensors.items() if t.type == "NVFP4"} == {
        "blk.0.attn_q_a.weight",
        "blk.1.ffn_up_exps.weight",
    }
    assert not any(name.endswith(".scale") for name in file.tensors)
    answer = gguf_mla("verify", formatted, tmp_path / "a.gguf")
    assert answer.status == 0, answer.output
