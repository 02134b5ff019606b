"""The real DeepSeek-V3: 163 shards of its very shapes, without content, are planned quickly and in little memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gguf_mla.synthetic import checkpoints, shapes
from tests.support.command import command, measure

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = 671_026_419_200  # without multi-token prediction
SECONDS, MEMORY = 20.0, 512 << 20  # generous: about 2 s and 170 MiB were measured


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 689 GB whose shards are headers and a hole."""
    directory = tmp_path_factory.mktemp("full") / "DeepSeek-V3"
    assert checkpoints.write(directory, shapes.SHAPES["deepseek-v3"], checkpoints.hollow) == 163
    return directory


@pytest.mark.parametrize(("kind", "bits"), [("BF16", 16.0), ("Q8_0", 8.5)])
def test_planning_all_of_deepseek_v3(kind: str, bits: float, deepseek_v3: Path, tmp_path: Path) -> None:
    line = command("convert", deepseek_v3, tmp_path / "out.gguf", "--type", kind, "--dry-run", "--json")
    measured = measure(line, tmp_path / "report.json")
    assert measured.status == 0, measured.output
    plan = json.loads(measured.output)
    assert plan["parameters"] == PARAMETERS
    assert len(plan["tensors"]) == 1086  # as published conversions have
    assert plan["bytes"] * 8 / PARAMETERS == pytest.approx(bits, rel=0.001)
    assert all(name.startswith("model.layers.61.") for name in plan["dropped"])
    assert measured.seconds < SECONDS
    assert measured.peak < MEMORY
