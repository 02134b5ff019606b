"""The file type that keeps a checkpoint's values, also for block types whose file type has another name or none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from convert.plan import own_type, plan_conversion
from gguf_mla.recipes import FILE_TYPES, FileType
from gguf_mla.sources.checkpoint import open_checkpoint
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = sorted({entry.default for entry in FILE_TYPES.values()} - {"", "F32", "F16", "BF16"})


def tensor(raw_type: str | None, size: int = 32, stored: str = "BF16") -> Any:
    return SimpleNamespace(raw_type=raw_type, stored=stored, shape=(size,))


def of(*tensors: Any) -> FileType:
    checkpoint: Any = SimpleNamespace(tensors=dict(enumerate(tensors)))
    return own_type(checkpoint)


def test_most_of_the_values_decide() -> None:
    assert of() == FILE_TYPES["BF16"]
    assert of(tensor(None, 32, "F16"), tensor(None, 64, "FP8 128x128")) == FILE_TYPES["BF16"]
    assert of(tensor(None, 64, "F16"), tensor("Q4_0", 32)) == FileType("Q4_0-F16", 2, "F16", "Q4_0")
    assert of(tensor("Q4_0", 64), tensor("MXFP4", 32)).kept == "Q4_0"


@pytest.mark.parametrize("block_type", BLOCKS)
def test_every_block_type_that_files_are_made_of_is_kept(block_type: str) -> None:
    found = of(tensor(block_type))
    assert (found.name, found.default, found.kept) == (f"{block_type}-BF16", "BF16", block_type)
    assert found.id in {entry.id for entry in FILE_TYPES.values() if entry.default == block_type}


def test_a_block_type_without_a_file_type_of_its_own_is_kept_in_a_plain_file() -> None:
    assert of(tensor("NVFP4")) == FileType("NVFP4-BF16", 32, "BF16", "NVFP4")


class Mxfp4:
    """A tensor of a source format whose rows are blocks of MXFP4, as far as a plan looks at it."""

    raw_type, stored, values = "MXFP4", "FP4 group 32", "F32"

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


def test_experts_in_mxfp4_are_copied(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(hub.write(tmp_path / "model", "v3", num_hidden_layers=2))
    tensors: Any = {
        name: Mxfp4(name, found.shape) if ".mlp.experts." in name else found
        for name, found in checkpoint.tensors.items()
    }
    [(plan, target)] = plan_conversion(replace(checkpoint, tensors=tensors))
    assert (target.name, plan.metadata["general.file_type"].data) == ("MXFP4-BF16", 38)
    types = {job.name: job.type for job in plan.tensors}
    assert {types[name] for name in types if "_exps." in name} == {"MXFP4"}
    assert "MXFP4" not in {types[name] for name in types if "_exps." not in name}
