"""Checkpoints: every stored format against torch's decoding of it, and shards that are not sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gguf_mla.errors import InputError, MachineError
from gguf_mla.files.input import InputFile
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.safetensors import read_shard
from tests.support import hub, safetensors_file

if TYPE_CHECKING:
    from pathlib import Path

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def decoded(tensor: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
    """A SourceTensor's rows as float32, whatever they are stored as."""
    rows = int(np.prod(tensor.shape[:-1]))
    values = tensor.read(start, rows if stop is None else stop)
    if tensor.values == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)


def checkpoint_of(directory: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None = None) -> Any:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    hub.write_json(directory / "config.json", {"quantization_config": quantization} if quantization else {})
    return open_checkpoint(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_tensors_are_torchs(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"w": torch.randn(7, 5).to(dtype), "v": torch.randn(3).to(dtype), "cube": torch.randn(2, 3, 4).to(dtype)}
    found = checkpoint_of(tmp_path, weights).tensors
    for name, weight in weights.items():
        assert found[name].shape == tuple(weight.shape)
        assert decoded(found[name]).tolist() == weight.float().reshape(-1, weight.shape[-1]).tolist()
    assert decoded(found["w"], 2, 5).tolist() == weights["w"][2:5].float().tolist()


def fp8_reference(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return codes.float() * spread[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize(("rows", "cols"), [(128, 128), (576, 256), (5, 3), (130, 300), (1, 1)])
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_fp8_blocks_with_partial_edges_are_torchs(tmp_path: Path, rows: int, cols: int, block: tuple[int, int]) -> None:
    codes = torch.arange(rows * cols).reshape(rows, cols).remainder(256).to(torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x7E  # NaN has a test of its own
    weight = codes.view(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // block[0]), -(-cols // block[1])) * 1e-3
    tensors = {"w": weight, "w_scale_inv": scales}
    found = checkpoint_of(tmp_path, tensors, {**FP8, "weight_block_size": list(block)}).tensors
    assert list(found) == ["w"]
    expected = fp8_reference(weight, scales, block).numpy()
    assert np.array_equal(decoded(found["w"]).view(np.uint32), expected.view(np.uint32))
    middle = rows // 2
    assert np.array_equal(decoded(found["w"], middle, rows), expected[middle:])


@pytest.mark.parametrize("stored", ["float8_e8m0fnu", "uint8"])
def test_e8m0_scales_are_powers_of_two(tmp_path: Path, stored: str) -> None:
    exponents = torch.tensor([[0, 1, 126, 127, 128, 200, 254]], dtype=torch.uint8)
    weight = torch.full((128, 7 * 128), 1.5).to(torch.float8_e4m3fn)
    scale = exponents.view(torch.float8_e8m0fnu) if stored == "float8_e8m0fnu" else exponents
    found = checkpoint_of(tmp_path, {"w": weight, "w_scale_inv": scale}, FP8).tensors["w"]
    got = decoded(found, 0, 1)[0, ::128]
    assert got.tolist() == [np.float32(1.5 * 2.0 ** (int(b) - 127)) for b in exponents[0]]


def test_an_e4m3_nan_stays_one(tmp_path: Path) -> None:
    codes = torch.tensor([[0x7F, 0xFF, 0x7E, 0xFE]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    found = checkpoint_of(tmp_path, {"w": codes, "w_scale_inv": torch.ones(1, 1)}, FP8).tensors["w"]
    assert np.isnan(decoded(found)[0]).tolist() == [True, True, False, False]
    assert decoded(found)[0, 2:].tolist() == [448.0, -448.0]


@pytest.mark.parametrize("kind", ["v3fp8", "v3fp8-e8m0", "v3fp8-uint8", "v3-f16", "v2"])
def test_hub_style_checkpoints_are_read_whole(tmp_path: Path, kind: str) -> None:
    small = {"num_hidden_layers": 2, "n_routed_experts": 4}
    directory = hub.write(tmp_path / kind, kind, shard_bytes=2_000_000, **small)
    found = open_checkpoint(directory).tensors
    stored: dict[str, torch.Tensor] = {}
    for shard in directory.glob("*.safetensors"):
        stored |= load_file(shard)
    assert found.keys() == {name for name in stored if not name.endswith("_scale_inv")}
    for name in found:
        weight = stored[name]
        if weight.dtype == torch.float8_e4m3fn:
            scale = stored[name + "_scale_inv"]
            scales = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
            weight = fp8_reference(weight, scales, (128, 128))
        assert np.array_equal(decoded(found[name]), weight.float().reshape(-1, weight.shape[-1]).numpy()), name


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_header_is_read_or_refused_but_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for tensor in read_shard(InputFile(path)).values():
            tensor.read()
    except InputError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "contradict its shape"),
        ({"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}, "unknown dtype"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "malformed"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "malformed"),
        ({"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}, "malformed"),
        ({"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}, "contradict its shape"),
        ({"shape": [2]}, "malformed"),
        ([1, 2], "malformed"),
    ],
)
def test_impossible_entries_are_refused(tmp_path: Path, entry: Any, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file.header_bytes({"t": entry}) + bytes(8))
    with pytest.raises(InputError, match=rf"model\.safetensors: t: .*{words}"):
        read_shard(InputFile(path))


def test_a_shard_that_shrinks_while_it_is_read_is_said(tmp_path: Path) -> None:
    tensor = checkpoint_of(tmp_path, {"w": torch.zeros(1000, 100)}).tensors["w"]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(MachineError, match="has become shorter"):
        tensor.read(0, 1000)
