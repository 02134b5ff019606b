"""DeepSeek-V4's multi-token prediction: a file of its own, exact, with which llama.cpp drafts what we compute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.forward import prediction, walk
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.opening import open_weights
from gguf_mla.synthetic import numbers
from tests.support import hub, v4
from tests.support.command import convert, gguf_mla
from tests.support.judges import LETTER, DraftingEngine, prompts
from tests.support.replant import Plant
from tests.support.safetensors_file import Stored
from tests.verify.sides import first, structure
from verify.job import Request, prove

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Shared

LAYERS = 3
FEW: dict[str, Any] = {
    "num_hidden_layers": LAYERS, "n_routed_experts": 4, "num_hash_layers": 1, "compress_ratios": [0, 4, 128, 0],
}  # fmt: skip
KEYS = ("block_count", "nextn_predict_layers")
SHARED = {"token_embd.weight", "output_norm.weight", "output.weight"}


@pytest.fixture(scope="module")
def files(shared: Shared) -> Path:
    """A small V4, and its prediction alone in the types of its own; not to be changed."""

    def fill(directory: Path) -> None:
        v4.write(directory / "model", "v4-flash", **FEW)
        convert(directory / "model", directory / "mtp.gguf", "auto", "--mtp", "only")

    return shared("v4-prediction", fill)


def test_every_value_is_in_the_file_of_its_own(files: Path) -> None:
    file, expected = open_gguf(files / "mtp.gguf"), v4.prediction_as_gguf(v4.decoded({**v4.FLASH, **FEW}), LAYERS)
    assert file.tensors.keys() == expected.keys()
    assert [name for name, values in expected.items() if not np.array_equal(file[name].values(), values)] == []
    assert file.tensors["blk.3.ffn_up_exps.weight"].type == "MXFP4"
    assert [file.metadata[f"deepseek4.{key}"] for key in KEYS] == [LAYERS + 1, 1]
    assert list(file.metadata["deepseek4.attention.compress_ratios"])[LAYERS] == 0
    assert len(file.metadata["deepseek4.swiglu_clamp_exp"]) == LAYERS + 1


def test_the_models_file_is_without_it_and_says_so(files: Path, tmp_path: Path) -> None:
    answer = gguf_mla("convert", files / "model", tmp_path / "out.gguf", "--json")
    assert "nextn" not in "".join(open_gguf(tmp_path / "out.gguf").tensors)
    dropped = json.loads(answer.output)["outputs"][0]["dropped"]
    assert dropped["model.layers.3.eh_proj.weight"].endswith("--mtp only writes it")
    answer = gguf_mla("convert", files / "model", tmp_path / "keep.gguf", "--mtp", "keep")
    assert (answer.status, "--mtp keep is not for deepseek4 files" in answer.output) == (2, True)


def test_what_has_no_place_in_it_is_an_error(tmp_path: Path) -> None:
    directory = v4.write(tmp_path / "model", "v4-flash", **FEW)
    shard = directory / "model.safetensors.index.json"
    index = json.loads(shard.read_text())
    index["weight_map"]["mtp.0.strange.weight"] = index["weight_map"].pop("mtp.0.enorm.weight")
    hub.write_json(shard, index)
    answer = gguf_mla("convert", directory, tmp_path / "out.gguf", "--mtp", "only")
    assert (answer.status, "strange" in answer.output) == (2, True)


def test_a_draft_model_is_left_out_by_name(tmp_path: Path) -> None:
    """DSpark, which the dated editions have in its place."""
    rows = np.zeros((4, 256), np.float32)
    config = {**v4.FLASH, **FEW}
    tensors = [part for weight in v4.weights(config) for part in v4.stored(weight, config, 7)]
    kept = [tensor for tensor in tensors if not tensor.name.startswith(("mtp.0.e_proj", "mtp.0.h_proj"))]
    ids = v4.table(config, 0)
    kept.append(Stored("layers.0.ffn.gate.tid2eid", "I64", ids.shape, lambda: ids))
    kept.append(Stored("mtp.0.main_proj.weight", "BF16", rows.shape, lambda: numbers.to_bf16(rows)))
    directory = hub.assemble(tmp_path / "model", config, kept, "bundled")
    answer = gguf_mla("convert", directory, tmp_path / "out.gguf", "--json")
    assert answer.status == 0, answer.output
    assert "DSpark" in json.loads(answer.output)["outputs"][0]["dropped"]["mtp.0.main_proj.weight"]
    answer = gguf_mla("convert", directory, tmp_path / "mtp.gguf", "--mtp", "only")
    assert (answer.status, "no multi-token prediction" in answer.output) == (2, True)


# ------------------------------------------------------------------------------------------------------- proven


def test_a_quantized_one_is_proven_with_the_models_own_layers(files: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q.gguf"
    convert(files / "model", tmp_path / "mtp.gguf", "BF16", "--mtp", "only")
    assert gguf_mla("quantize", tmp_path / "mtp.gguf", quantized, "Q8_0").status == 0
    answer = gguf_mla("verify", files / "model", quantized, "--context", 8, "--chunks", 1)
    assert answer.status == 0, answer.output
    assert "the model's own layers are taken from the reference" in answer.output
    plant = Plant(quantized)
    wrong = plant.write(tmp_path / "wrong.gguf", tensors={"output_hc_fn.weight": None})
    assert first(structure(files / "model", wrong)).subject == "output_hc_fn.weight"


def swapped(plant: Plant) -> dict[str, Any]:
    values, kind = plant.tensors["blk.3.nextn.eh_proj.weight"]
    return {"blk.3.nextn.eh_proj.weight": (np.roll(values, values.shape[1] // 2, axis=1), kind)}


def the_models(plant: Plant) -> dict[str, Any]:
    own = v4.decoded({**v4.FLASH, **FEW})
    kind = plant.tensors["output_hc_fn.weight"][1]
    return {f"output_hc_{part}.weight": (own[f"hc_head_{part}"], kind) for part in ("fn", "base")}


@pytest.mark.parametrize(
    ("damage", "blamed"),
    [(swapped, {"blk.3.nextn.eh_proj"}), (the_models, {"output_hc_fn", "output_hc_base"})],
)
def test_a_fault_of_it_is_found(damage: Any, blamed: set[str], files: Path, tmp_path: Path) -> None:
    plant = Plant(files / "mtp.gguf")
    wrong = plant.write(tmp_path / "wrong.gguf", tensors=damage(plant))
    proof = prove(Request(files / "model", wrong, "weights", threads=2))
    assert {finding.subject.rpartition(".")[0] for finding in proof.findings} == blamed


# --------------------------------------------------------------------------------------------- judged by others


def states(weights: Any, tokens: list[int]) -> np.ndarray:
    """What the head of prediction reads, at every position of a text but the last, [T-1, hidden]."""
    pass_, ids = Pass(weights), np.array([tokens])
    state = walk.embed(pass_, ids)
    for layer in range(LAYERS):
        state = walk.run_layer(pass_, layer, state, ids)
    entered = prediction.enter(pass_, LAYERS, prediction.begin(pass_, state), ids)
    left = prediction.leave(pass_, LAYERS, walk.run_layer(pass_, LAYERS, entered, ids[:, 1:]))
    return np.asarray(prediction.read(pass_, LAYERS, left)[0])


@pytest.mark.judge
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own
def test_the_forward_pass_is_the_published_one(files: Path) -> None:
    """Around transformers' layer: what goes in and comes out by the published code, whose prediction it leaves out."""
    import torch

    [prompt] = prompts(2048, [60])
    model, expected = published(torch.tensor([prompt]))
    with torch.inference_mode():
        found = model.lm_head(torch.tensor(states(open_weights(files / "model"), prompt)))
        apart = found.double().log_softmax(-1) - model.lm_head(expected).double().log_softmax(-1)
    assert float(apart.abs().max()) <= 1e-4


def published(tokens: Any) -> tuple[Any, Any]:
    """The model, and what the head of prediction reads, [T-1, hidden]."""
    import torch

    values = v4.decoded({**v4.FLASH, **FEW})
    block = {name: content for name, content in values.items() if not name.startswith("mtp.")}
    config = {**v4.FLASH, **FEW, "num_hidden_layers": LAYERS + 1, "num_nextn_predict_layers": 0}
    model = v4.hf_model(config, block | v4.block_as_layer(values, LAYERS))
    own = {name.removeprefix("mtp.0."): torch.tensor(x) for name, x in values.items() if name.startswith("mtp.0.")}
    given: dict[str, Any] = {}
    *_before, last = model.model.layers
    last.register_forward_pre_hook(lambda _m, args, how: given.update(how, states=args[0]), with_kwargs=True)
    with torch.inference_mode():
        model.model(tokens, use_cache=False)
        states = given.pop("states")[:, :-1]
        e = rms(model.model.embed_tokens(tokens[:, 1:]), own["enorm.weight"]) @ own["e_proj.weight"].T
        h = rms(states, own["hnorm.weight"]) @ own["h_proj.weight"].T
        shorter = {"attention_mask": given["attention_mask"][..., :-1, :-1], "input_ids": tokens[:, 1:]}
        turns = {name: tuple(part[:, :-1] for part in parts) for name, parts in given["position_embeddings"].items()}
        given |= {**shorter, "position_embeddings": turns, "position_ids": given["position_ids"][:, :-1]}
        streams = last(e[:, :, None] + h, **given)
        flat = streams.flatten(2)
        mixes = (flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)) @ own["hc_head_fn"].T
        shares = torch.sigmoid(mixes * own["hc_head_scale"] + own["hc_head_base"]) + 1e-6
        joined = (shares[..., None] * streams).sum(dim=2)
        return model, rms(joined, own["norm.weight"])[0]


def rms(x: Any, weight: Any) -> Any:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


LIKELY, COUNT = 3, 32  # tokens that are ever written, so that many a draft is right; how many are written


@pytest.mark.engine
def test_llama_cpp_accepts_the_drafts_that_we_compute(tmp_path: Path) -> None:
    directory = v4.write(tmp_path / "model", "v4-flash", **FEW)
    convert(directory, tmp_path / "model.gguf", "F32")
    convert(directory, tmp_path / "mtp.gguf", "F32", "--mtp", "only")
    for name in ("model", "mtp"):
        plant = Plant(tmp_path / f"{name}.gguf")
        head, kind = plant.tensors["output.weight"]
        few = np.where((np.arange(len(head))[:, None] - LETTER) // LIKELY == 0, head, 0)
        plant.write(tmp_path / f"{name}-few.gguf", tensors={"output.weight": (few, kind)})
    engine = DraftingEngine(tmp_path / "model-few.gguf", tmp_path / "mtp-few.gguf")
    weights, head = open_weights(directory), few.T
    found, expected = [], []
    for prompt in prompts(2048, [5, 20, 40, 60]):
        written, *counts = engine.written(prompt, COUNT)
        guesses = states(weights, prompt + written) @ head
        found.append(tuple(counts))
        expected.append(agreed(guesses.argmax(axis=1), len(prompt), prompt + written))
    assert found == expected
    assert 0 < sum(right for _, right in found) < sum(drafted for drafted, _ in found)


def agreed(guesses: np.ndarray, begin: int, text: list[int]) -> tuple[int, int]:
    """How many tokens are drafted and how many of them right, where each right one saves a step.

    Guess t is of token t+2. A step begins with token `at` known and drafts the next.
    """
    drafted = right = 0
    at = begin
    while at + 2 < len(text):  # with one token left nothing is drafted
        hit = bool(guesses[at - 1] == text[at + 1])
        drafted, right, at = drafted + 1, right + hit, at + 1 + hit
    return drafted, right
