"""The real DeepSeek-V3 and Kimi-K2: shards of their very shapes, without content, are planned in little memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.synthetic import checkpoints, shapes
from tests.support.command import command, measure

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

PARAMETERS = 671_026_419_200  # without multi-token prediction
KIMI_PARAMETERS = 1_026_408_232_448
# Headers and Python's own modules are read, 160 MB at most, and what is planned is held: 100 000 names and numbers.
READ, MEMORY = 256 << 20, 512 << 20


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 689 GB whose shards are headers and a hole."""
    directory = tmp_path_factory.mktemp("full") / "DeepSeek-V3"
    assert checkpoints.write(directory, shapes.SHAPES["deepseek-v3"], checkpoints.hollow) == 163
    return directory


def planned(checkpoint: Path, kind: str, directory: Path) -> dict[str, Any]:
    line = command("convert", checkpoint, directory / "out.gguf", "--type", kind, "--dry-run", "--json")
    measured = measure(line, directory / "report.json")
    assert measured.status == 0, measured.output
    assert measured.read < READ
    assert measured.peak < MEMORY
    [plan] = json.loads(measured.output)["outputs"]
    assert isinstance(plan, dict)
    return plan


@pytest.mark.parametrize(("kind", "bits"), [("BF16", 16.0), ("Q8_0", 8.5)])
def test_planning_all_of_deepseek_v3(kind: str, bits: float, deepseek_v3: Path, tmp_path: Path) -> None:
    plan = planned(deepseek_v3, kind, tmp_path)
    assert plan["parameters"] == PARAMETERS
    assert len(plan["plan"]["tensors"]) == plan["tensors"] == 1086  # as published conversions have
    assert plan["tensor_bytes"] * 8 / PARAMETERS == pytest.approx(bits, rel=0.001)
    assert all(name.startswith("model.layers.61.") for name in plan["dropped"])


def test_planning_all_of_kimi_k2_thinking(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "model", shapes.SHAPES["kimi-k2-thinking"], checkpoints.hollow)
    plan = planned(tmp_path / "model", "MLA-Q4_0", tmp_path)
    assert plan["parameters"] == KIMI_PARAMETERS
    assert plan["tensor_bytes"] / 2**30 == pytest.approx(
        543.6, abs=0.1
    )  # what a published file with Q8_0 beside Q4_0 has
    experts = [tensor for tensor in plan["plan"]["tensors"] if tensor["reason"] == "as stored"]
    assert len(experts) == 60 * 3
