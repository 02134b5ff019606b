"""Source formats are found by what is stored, whatever the configuration claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from gguf_mla.errors import InputError
from gguf_mla.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_mla.sources.formats import format_of, formats
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path

FILE = PurePath("model/config.json")


def opened(directory: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> Checkpoint:
    copies = {name: tensor.clone() for name, tensor in tensors.items()}  # what shares memory is not saved
    save_file(copies, directory / "model.safetensors")
    hub.write_json(directory / "config.json", {"quantization_config": quantization} if quantization else {})
    return open_checkpoint(directory)


def test_every_format_says_for_what_it_stands() -> None:
    assert [each.METHODS for each in formats() if not each.METHODS] == []
    assert len(formats()) == 8


@pytest.mark.parametrize("quantization", ["fp8", [1], {"quant_method": ["fp8"]}])
def test_a_broken_configuration_is_refused(quantization: Any) -> None:
    with pytest.raises(InputError, match=r"^model/config\.json: .*expected awq.*, gptq.*, or no quantization"):
        format_of(quantization, FILE)


PLAIN = {"w.weight": torch.ones(2, 32, dtype=torch.bfloat16)}
CODED = {"w.weight": torch.ones(2, 32).to(torch.float8_e4m3fn), "w.weight_scale": torch.tensor(0.5)}


@pytest.mark.parametrize(
    "claim",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ],
)
def test_plain_tensors_are_plain_whatever_the_configuration_claims(tmp_path: Path, claim: dict[str, Any]) -> None:
    checkpoint = opened(tmp_path, PLAIN, claim)
    assert checkpoint.tensors["w.weight"].stored == "BF16"
    assert any(claim["quant_method"] in note for note in checkpoint.notes)


@pytest.mark.parametrize("claim", [None, {"quant_method": "fp8"}, {"quant_method": "a tool of tomorrow"}])
def test_quantized_tensors_are_read_whatever_the_configuration_claims(
    tmp_path: Path, claim: dict[str, Any] | None
) -> None:
    checkpoint = opened(tmp_path, CODED, claim)
    assert checkpoint.tensors["w.weight"].read().tolist() == [[0.5] * 32] * 2
    assert checkpoint.notes == ()


def test_what_no_format_explains_names_the_method(tmp_path: Path) -> None:
    stored = {"w.weight": torch.zeros(64, 1, dtype=torch.uint8), "w.weight.absmax": torch.ones(2)}
    with pytest.raises(InputError, match=r"config\.json: w\.weight: .*found bitsandbytes"):
        opened(tmp_path, stored, {"quant_method": "bitsandbytes"})


def test_scales_of_activations_are_left_out_with_a_note(tmp_path: Path) -> None:
    more = {
        "w.input_scale": torch.tensor(0.1),
        "a.k_proj.k_scale": torch.tensor(1.0),
        "a.v_proj.v_scale": torch.ones(1),
    }
    checkpoint = opened(tmp_path, CODED | more, None)
    assert list(checkpoint.tensors) == ["w.weight"]
    assert [note for note in checkpoint.notes if note.startswith("3 scales of activations are left out")]


def test_what_changes_the_inputs_is_not_left_out(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, CODED | {"w.pre_quant_scale": torch.ones(32)}, None)
    assert "w.pre_quant_scale" in checkpoint.tensors


def test_finding_a_format_imports_no_compiler() -> None:
    code = "import sys; from gguf_mla.sources import formats; formats.formats(); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
