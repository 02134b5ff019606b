"""A checkpoint that lies on no disk becomes the same file as one that does: nothing opens files for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from convert.plan import plan_conversion
from gguf_mla.files.input import InputFile
from gguf_mla.plan.outputs import single
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.stream.execute import execute
from tests.support import hub
from tests.support.memory import MemoryFolder

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.sources.folder import Folder

CARD = "---\nlicense: mit\nlanguage:\n- no\nbase_model: a/b\n---\n# A model\n"


def complete(directory: Path, kind: str, tokenizer: str) -> Path:
    """Write a checkpoint with every small file that is read."""
    hub.write(directory, kind, tokenizer=tokenizer, shard_bytes=2_000_000, num_hidden_layers=2, n_routed_experts=8)
    (directory / "README.md").write_text(CARD, encoding="utf-8")
    hub.write_json(directory / "generation_config.json", {"temperature": 0.5})
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ x }}\r\n", encoding="utf-8")
    return directory


def converted(source: Folder | Path, out: Path, kind: str) -> bytes:
    checkpoint = open_checkpoint(source)
    [(plan, _)] = plan_conversion(checkpoint, [kind])
    execute([single(plan, out)], checkpoint.tensors)
    return out.read_bytes()


@pytest.mark.parametrize(
    ("kind", "tokenizer", "file_type"),
    [("v3fp8", "bundled", "Q8_0"), ("v2", "bundled", "Q4_K_M"), ("kimi-int4", "tiktoken", "auto")],
)
def test_a_checkpoint_in_memory_becomes_the_same_bytes(
    kind: str, tokenizer: str, file_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = complete(tmp_path / "Some-Model-V3", kind, tokenizer)
    expected = converted(directory, tmp_path / "disk.gguf", file_type)
    folder = MemoryFolder.of(directory)
    directory.rename(tmp_path / "away")
    monkeypatch.setattr(InputFile, "__init__", lambda *_: pytest.fail("a file of the disk is opened"))
    assert converted(folder, tmp_path / "memory.gguf", file_type) == expected
