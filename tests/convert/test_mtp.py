"""Multi-token prediction kept, dropped or alone, for the families whose files usually go without; llama.cpp drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.synthetic import numbers
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.judges import DraftingEngine
from tests.support.kinds import KINDS
from tests.support.replant import Plant
from tests.support.safetensors_file import Stored
from tests.verify.sides import first, structure

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 8, "num_experts_per_tok": 2}
KEYS = ("block_count", "nextn_predict_layers")


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return successor(tmp_path_factory.mktemp("v3") / "model", "v3")


def successor(directory: Path, kind: str) -> Path:
    """A model in which every token has one that follows it, whatever came before, and whose prediction knows that.

    The layers add nothing to a token's embedding, whose likest row of the output matrix is its successor's. Of what
    prediction is given it takes the next token's embedding, so it answers with that token's successor.
    """
    config = hub.config_of(kind, "bundled", **SMALL)
    rng = np.random.default_rng(5)
    embeddings = rng.standard_normal((config["vocab_size"], config["hidden_size"])).astype(np.float32)
    head = embeddings[rng.permutation(config["vocab_size"])]
    identity = np.eye(config["hidden_size"], dtype=np.float32)
    fixed = {"embed_tokens.weight": embeddings, "lm_head.weight": head, "shared_head.head.weight": head}
    fixed |= {"eh_proj.weight": np.concatenate([identity, 0 * identity], axis=1)}

    def stored(weight: hub.Weight) -> list[Stored]:
        if weight.name.endswith(("o_proj.weight", "down_proj.weight")):
            return [Stored(weight.name, "BF16", weight.shape, lambda: np.zeros(weight.shape, np.uint16))]
        values = next((values for name, values in fixed.items() if weight.name.endswith(name)), None)
        if values is None:
            return list(hub.stored(weight, KINDS[kind].storage, 1))
        return [Stored(weight.name, "BF16", weight.shape, lambda: numbers.to_bf16(values))]

    return hub.assemble(directory, config, [s for weight in hub.weights(config) for s in stored(weight)], "bundled")


def test_a_v3_keeps_it_where_that_is_wanted(v3: Path, tmp_path: Path) -> None:
    for name, options in {"usual": (), "keep": ("--mtp", "keep"), "drop": ("--mtp", "drop")}.items():
        convert(v3, tmp_path / f"{name}.gguf", "BF16", *options)
    assert (tmp_path / "usual.gguf").read_bytes() == (tmp_path / "drop.gguf").read_bytes()
    kept, left = open_gguf(tmp_path / "keep.gguf"), open_gguf(tmp_path / "drop.gguf")
    assert [kept.metadata.get(f"deepseek2.{key}") for key in KEYS] == [3, 1]
    assert [left.metadata.get(f"deepseek2.{key}") for key in KEYS] == [2, None]
    assert {name for name in kept.tensors if name not in left.tensors} == {n for n in kept.tensors if "blk.2." in n}
    torn = Plant(tmp_path / "keep.gguf").write(tmp_path / "torn.gguf", tensors={"blk.0.attn_norm.weight": None})
    [finding] = structure(v3, torn).findings
    assert (finding.subject, finding.what) == ("blk.0.attn_norm.weight", "is missing")
    parts = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head_norm", "shared_head_head")
    assert {name.rpartition("nextn.")[2] for name in kept.tensors if "nextn" in name} == {f"{p}.weight" for p in parts}


def test_a_file_of_it_alone_is_proven_with_the_models_own_layers(v3: Path, tmp_path: Path) -> None:
    convert(v3, tmp_path / "keep.gguf", "BF16", "--mtp", "keep")
    answer = gguf_mla("convert", v3, f"{tmp_path}/", "--mtp", "only", "--type", "BF16")
    alone, kept = open_gguf(tmp_path / "mtp-model-BF16.gguf"), open_gguf(tmp_path / "keep.gguf")
    shared = ["token_embd.weight", "output_norm.weight", "output.weight"]
    assert set(alone.tensors) == {name for name in kept.tensors if "blk.2." in name or name in shared}
    assert all(t.read().tobytes() == kept.tensors[name].read().tobytes() for name, t in alone.tensors.items())
    assert [alone.metadata.get(f"deepseek2.{key}") for key in KEYS] == [3, 1]
    assert answer.status == 0
    answer = gguf_mla("quantize", tmp_path / "mtp-model-BF16.gguf", tmp_path / "q.gguf", "Q8_0")
    assert "have no tensors" not in answer.output
    answer = gguf_mla("verify", v3, tmp_path / "q.gguf", "--context", 32, "--chunks", 1)
    assert answer.status == 0, answer.output
    assert "the model's own layers are taken from the reference" in answer.output
    plant = Plant(tmp_path / "q.gguf")
    wrong = plant.write(tmp_path / "wrong.gguf", tensors={"blk.2.nextn.hnorm.weight": None})
    assert first(structure(v3, wrong)).subject == "blk.2.nextn.hnorm.weight"
    answer = gguf_mla("imatrix", tmp_path / "q.gguf", tmp_path / "x.gguf", "--text", hub.REPOSITORY / "README.md")
    assert (answer.status, "holds multi-token prediction alone" in answer.output) == (2, True)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("kimi", ("--mtp", "keep"), "--mtp keep: the checkpoint has no multi-token prediction"),
        ("mistral4", ("--mtp", "only"), "is not for mistral4 files, which have no place for multi-token prediction"),
        ("kimi", ("--mtp", "only", "--no-mtp"), "--no-mtp is --mtp drop"),
    ],
)
def test_what_is_not_there_cannot_be_kept(kind: str, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", kind, num_hidden_layers=1, n_routed_experts=4)
    answer = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", *options)
    assert answer.status == 2
    assert words in answer.output


@pytest.mark.engine
def test_llama_cpp_drafts_with_it_in_the_file_and_beside(v3: Path, tmp_path: Path) -> None:
    for wish in ("keep", "drop", "only"):
        convert(v3, tmp_path / f"{wish}.gguf", "F32", "--mtp", wish)
    plant = Plant(tmp_path / "keep.gguf")
    name = "blk.2.nextn.eh_proj.weight"
    values, kind = plant.tensors[name]
    plant.write(tmp_path / "swapped.gguf", tensors={name: (np.roll(values, values.shape[1] // 2, axis=1), kind)})
    pairs = {"keep": None, "drop": tmp_path / "only.gguf", "swapped": None}
    accepted = {
        model: DraftingEngine(tmp_path / f"{model}.gguf", draft).accepted([0, 300], 40)
        for model, draft in pairs.items()
    }
    assert accepted["keep"] == accepted["drop"] == 1
    assert accepted["swapped"] < 0.2
