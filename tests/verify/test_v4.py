"""DeepSeek-V4: the forward pass is transformers', a right file is proven, and what is planted is found and blamed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError
from gguf_mla.forward import compressed, deepseek4, indexer, streams, walk
from gguf_mla.forward.architecture import read_config
from gguf_mla.forward.compressed import Turning
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.place import Place
from gguf_mla.forward.sound import check_model
from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.config import Config
from tests.support import replant, v4
from tests.support.command import convert
from tests.support.judges import prompts
from verify.job import Request, prove

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Shared

FEW: dict[str, Any] = {
    "num_hidden_layers": 4, "n_routed_experts": 4, "num_hash_layers": 1, "index_n_heads": 8, "num_attention_heads": 4,
}  # fmt: skip
LENGTH = 160  # an entry of 128 tokens, and many more of 4 than may be chosen
KINDS = {"v4-flash": FEW, "v4-pro": FEW}


@pytest.fixture(scope="module")
def files(shared: Shared) -> Path:
    """A small V4 and its file in the types of its own."""

    def fill(directory: Path) -> None:
        for kind, changes in KINDS.items():
            v4.write(directory / kind, kind, **changes)
        convert(directory / "v4-flash", directory / "v4-flash.gguf")

    return shared("v4-verify", fill)


def weights_of(directory: Path) -> CheckpointWeights:
    checkpoint = open_checkpoint(directory)
    return CheckpointWeights(checkpoint, read_config(Config(checkpoint.config, directory / "config.json")))


def logprobs(weights: CheckpointWeights, model: Any) -> torch.Tensor:
    """Log-probabilities after every token of a prompt, [T, vocabulary], by the model's own output matrix."""
    with torch.inference_mode():
        hidden = walk.hidden_states(Pass(weights), np.array(prompts(v4.FLASH["vocab_size"], [LENGTH])))[0]
        return model.lm_head(hidden).double().log_softmax(-1)


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[Any, torch.Tensor]]:
    """Kind → the model in transformers, and its log-probabilities after every token of the prompt."""
    found = {}
    for kind, changes in KINDS.items():
        model = v4.hf_model({**v4.KINDS[kind], **changes})
        with torch.inference_mode():
            logits = model(torch.tensor(prompts(v4.FLASH["vocab_size"], [LENGTH])), use_cache=False).logits[0]
        found[kind] = model, logits.double().log_softmax(-1)
    return found


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own


@pytest.mark.judge
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_that_of_transformers(kind: str, files: Path, expected: dict[str, Any]) -> None:
    model, wanted = expected[kind]
    assert float((logprobs(weights_of(files / kind), model) - wanted).abs().max()) <= 1e-4


def swap_halves(x: torch.Tensor, nothing: float) -> torch.Tensor:
    return OVERLAPPED(torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1), nothing)


OVERLAPPED, MIXED, TURNED = compressed._overlapped, streams.Mixing.left, Turning.turned
BEST, NUMBERS = indexer.best, torch.arange(float(LENGTH))
# What a wrong reader would do, one at a time: each has to show.
MISREADINGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "comb not transposed": (
        streams.Mixing, "left",
        lambda mixing, added, state: mixing.post[..., None] * added[..., None, :] + mixing.comb @ state,
    ),
    "one round of Sinkhorn": (streams, "sinkhorn", lambda logits, floor, _rounds: logits.softmax(dim=-1) + floor),
    "ape and channels of the other half": (compressed, "_overlapped", swap_halves),
    "a window of one token less": (
        compressed, "_in_window",
        lambda positions, window: (
            (positions[:, None] - positions >= 0) & (positions[:, None] - positions < window - 1)
        ),
    ),
    "the head turned and not the tail": (
        Turning, "turned", lambda turning, x, at: TURNED(turning, x.flip(-1), at).flip(-1),
    ),
    "the output not turned back": (
        Turning, "turned", lambda turning, x, at: x if (at < 0).any() else TURNED(turning, x, at),
    ),
    "no norm of a query's heads": (compressed, "evened", lambda x, _eps: x),
    "the first entries instead of the best": (
        indexer, "best",
        lambda found, top_k: BEST(found.where(found == -torch.inf, -NUMBERS[: found.shape[1]]), top_k),
    ),
    "no sinks": (
        compressed, "_attended", lambda q, keys, seen, sinks: ATTENDED(q, keys, seen, torch.full_like(sinks, -1e9)),
    ),
}  # fmt: skip
ATTENDED = compressed._attended


@pytest.mark.judge
@pytest.mark.thorough
@pytest.mark.parametrize("name", MISREADINGS)
def test_every_part_of_the_computation_shows(
    name: str, files: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MISREADINGS[name])
    model, wanted = expected["v4-flash"]
    assert float((logprobs(weights_of(files / "v4-flash"), model) - wanted).abs().max()) > 1e-3


def test_sequences_share_what_is_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read, weights = Place.rows, list[Any](), weights_of(files / "v4-flash")

    def counted(place: Place, stack: Any, *at: int) -> torch.Tensor:
        read.append((stack.name, *at))
        return rows(place, stack, *at)

    monkeypatch.setattr(Place, "rows", counted)
    hidden, tokens = torch.ones(3, 8, weights.model.hidden), torch.zeros(3, 8, dtype=torch.int64)
    deepseek4.attention(Pass(weights), 2, hidden, tokens)
    assert read
    assert len(read) == len(set(read))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compressed_theta": 1.0}, "angles in compressed layers.*more than 1, found 1"),
        ({"compressed_theta": -160000.0}, "angles in compressed layers.*more than 1"),
        ({"groups": 3}, "groups of heads.*a divisor of 4 heads, found 3"),
        ({"rope": 130}, "values of a key that are rotated.*at most its 128.*found 130"),
    ],
)
def test_what_cannot_be_computed_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = read_config(Config(v4.FLASH, tmp_path / "config.json"))
    check_model(model, tmp_path)
    with pytest.raises(InputError, match=said):
        check_model(replace(model, **change), tmp_path)


def test_configurations_are_read_as_the_converter_reads_them(tmp_path: Path) -> None:
    def read(**changes: Any) -> Any:
        config = {key: value for key, value in v4.FLASH.items() if key != "num_hash_layers"}
        return read_config(Config({**config, **changes}, tmp_path / "config.json"))

    yarn = read(rope_scaling={"type": "yarn", "factor": 16}).yarn
    assert yarn.original == v4.FLASH["max_position_embeddings"]
    assert read(mlp_layer_types=["hash_moe", "hash_moe", *["moe"] * 4]).by_id == 2
    with pytest.raises(InputError, match="mlp_layer_types"):
        read(mlp_layer_types=["moe", "hash_moe", *["moe"] * 4])


def test_a_right_file_is_proven(files: Path) -> None:
    proof = prove(Request(files / "v4-flash", files / "v4-flash.gguf", "logits", context=144, chunks=1, threads=2))
    assert proof.right
    assert [finding for finding in proof.findings if finding.subject != "the predictions"] == []
    [choice] = [result.choice for result in proof.layers if result.choice is not None]
    assert choice.same == choice.sets == 144 - (4 * v4.FLASH["index_topk"] + 3)  # with more entries than may be chosen


def test_what_the_indexer_does_wrong_is_the_indexers(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers attend to what the reference chose, so nothing else is blamed for it."""

    def misread(pass_: Pass, *where: Any) -> Any:
        found = INDEX(pass_, *where)
        return replace(found, weights=found.weights.abs()) if isinstance(pass_.weights, GgufWeights) else found

    monkeypatch.setattr(compressed, "index", misread)
    proof = prove(Request(files / "v4-flash", files / "v4-flash.gguf", "attention", context=64, chunks=1, threads=2))
    assert [finding.subject for finding in proof.findings] == ["blk.2.indexer"]
    assert max(result.measured.wmape for result in proof.attention) < 1e-5


INDEX = compressed.index
KEY = "deepseek4."
FAULTS: dict[str, tuple[str, Any]] = {
    "a ratio": ("attention.compress_ratios", replant.array([0, 4, 4, 128, 4, 0, 0], replant.KINDS.INT32)),
    "the window": ("attention.sliding_window", replant.u32(15)),
    "layers by id": ("hash_layer_count", replant.u32(2)),
    "Sinkhorn's rounds": ("hyper_connection.sinkhorn_iterations", replant.u32(19)),
    "the limit": ("swiglu_clamp_exp", replant.array([10.0] * 4, replant.KINDS.FLOAT32)),
    "the base of compressed layers": ("attention.compress_rope_freq_base", replant.f32(10000.0)),
    "the number of chosen entries": ("attention.indexer.top_k", replant.u32(9)),
    "groups": ("attention.output_group_count", replant.u32(4)),
    "the score": ("expert_gating_func", replant.u32(2)),
    "no limit of shared experts": ("swiglu_clamp_shexp", None),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_key_is_found_and_blamed(name: str, files: Path, tmp_path: Path) -> None:
    key, value = FAULTS[name]
    faulty = replant.Plant(files / "v4-flash.gguf").write(tmp_path / "faulty.gguf", {KEY + key: value})
    proof = prove(Request(files / "v4-flash", faulty, "structure", context=64, chunks=1, threads=2))
    assert not proof.right
    assert any(key in finding.subject for finding in proof.findings), proof.findings


def rolled(x: np.ndarray) -> np.ndarray:
    return np.roll(x, 1, axis=0)


TENSORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blk.1.attn_sinks.weight": np.zeros_like,
    "blk.2.attn_compressor_ape.weight": lambda x: np.concatenate(np.split(x, 2, axis=-1)[::-1], axis=-1),
    "blk.3.attn_compressor_ape.weight": rolled,
    "blk.0.hc_attn_fn.weight": rolled,
    "blk.2.hc_ffn_base.weight": rolled,
    "blk.0.ffn_gate_tid2eid.weight": lambda x: np.where(x == 3, 2, x).astype(x.dtype),
    "blk.3.exp_probs_b.bias": np.negative,
    "output_hc_scale.weight": np.zeros_like,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", TENSORS)
def test_wrong_values_are_found_and_blamed(name: str, files: Path, tmp_path: Path) -> None:
    plant = replant.Plant(files / "v4-flash.gguf")
    data, kind = plant.tensors[name]
    faulty = plant.write(tmp_path / "faulty.gguf", tensors={name: (TENSORS[name](data), kind)})
    proof = prove(Request(files / "v4-flash", faulty, "weights", context=64, chunks=1, threads=2))
    assert not proof.right
    assert any(finding.subject == name for finding in proof.findings), proof.findings
