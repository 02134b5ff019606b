"""DeepSeek-V4: every form of its checkpoints is exact, is in llama.cpp what transformers computes, or is refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convert.plan import plan_conversion
from gguf_mla.container.reader import open_gguf
from gguf_mla.sources.checkpoint import open_checkpoint
from tests.support import hub, v4
from tests.support.command import convert, gguf_mla
from tests.support.judges import Transformers, largest_difference, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Shared
    from tests.support.judges import Engine

FEW: dict[str, Any] = {"num_hidden_layers": 4, "n_routed_experts": 4, "num_hash_layers": 1}
LENGTHS = {"v4-flash": (3, 130, 600), "v4-pro": (5, 257), "v4-base": (140,)}


@pytest.fixture(scope="module")
def checkpoints(shared: Shared) -> Path:
    """Small checkpoints of every form, by kind; not to be changed."""

    def fill(directory: Path) -> None:
        for kind in v4.KINDS:
            v4.write(directory / kind, kind, **FEW)

    return shared("v4", fill)


def values_of(path: Path) -> dict[str, np.ndarray]:
    file = open_gguf(path)
    return {name: file[name].values() for name, tensor in file.tensors.items() if tensor.type != "I32"}


@pytest.mark.parametrize("kind", v4.KINDS)
def test_a_file_of_its_own_type_holds_every_value(kind: str, checkpoints: Path, tmp_path: Path) -> None:
    config = {**v4.KINDS[kind], **FEW}
    convert(checkpoints / kind, tmp_path / "auto.gguf")
    found, expected = values_of(tmp_path / "auto.gguf"), dict(v4.as_gguf(v4.decoded(config)))
    assert found.keys() == expected.keys()
    assert [name for name, values in expected.items() if not np.array_equal(found[name], values)] == []
    types = {name: tensor.type for name, tensor in open_gguf(tmp_path / "auto.gguf").tensors.items()}
    assert {types[name] for name in types if "_exps." in name} == {"MXFP4" if "expert_dtype" in config else "BF16"}
    assert types["blk.0.hc_attn_fn.weight"] == types["blk.2.attn_compressor_ape.weight"] == "F32"
    table = open_gguf(tmp_path / "auto.gguf").tensors["blk.0.ffn_gate_tid2eid.weight"]
    assert table.type == "I32"
    assert np.array_equal(table.read().view(np.int32), v4.table(config, 0))


def test_experts_of_4_bits_are_the_same_bits(checkpoints: Path, tmp_path: Path) -> None:
    config = {**v4.KINDS["v4-flash"], **FEW}
    convert(checkpoints / "v4-flash", tmp_path / "auto.gguf")
    rows = open_gguf(tmp_path / "auto.gguf").tensors["blk.1.ffn_down_exps.weight"].read()
    [weight] = [weight for weight in v4.weights(config) if weight.name == "layers.1.ffn.experts.2.w2.weight"]
    codes, exponents = v4.packed(weight.values(7))
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1, 32)
    blocks = np.concatenate([exponents.reshape(-1, 1), nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)
    assert np.array_equal(rows[512:768].reshape(-1, 17), blocks)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' and torch's own
@pytest.mark.parametrize("kind", LENGTHS)
def test_llama_cpp_computes_what_transformers_does(kind: str, engine: Callable[..., Engine], tmp_path: Path) -> None:
    config = v4.KINDS[kind]
    convert(v4.write(tmp_path / "model", kind), tmp_path / "model.gguf", "F32")
    llama, reference = engine(tmp_path / "model.gguf", context=768), Transformers.__new__(Transformers)
    reference._model = v4.hf_model(config)
    for prompt in prompts(config["vocab_size"], LENGTHS[kind]):
        expected = reference.next_logprobs(prompt)
        tokens, found = llama.next_logprobs(prompt, 256)
        assert largest_difference(tokens, found, expected) <= 2e-4
        assert tokens[0] == expected.argmax()


@pytest.mark.judge
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_transformers_saves_gives_the_same_file(checkpoints: Path, tmp_path: Path) -> None:
    """Under the names that save_pretrained writes, and under those in memory, where experts are fused."""
    import torch
    from safetensors.torch import save_file

    convert(checkpoints / "v4-plain", tmp_path / "published.gguf", "F32")
    model = v4.hf_model({**v4.KINDS["v4-plain"], **FEW})
    for way in ("saved", "fused"):
        directory = tmp_path / way
        model.save_pretrained(directory)
        if way == "fused":
            for shard in directory.glob("*.safetensors*"):
                shard.unlink()
            held = {name: values.clone().contiguous() for name, values in model.state_dict().items()}
            assert any(name.endswith("experts.gate_up_proj") for name in held)
            save_file(held, directory / "model.safetensors", {"format": "pt"})
        for name in hub.TOKENIZER_FILES:
            shutil.copyfile(hub.BUNDLED / name, directory / name)
        convert(directory, tmp_path / f"{way}.gguf", "F32")
        ours, theirs = open_gguf(tmp_path / f"{way}.gguf"), open_gguf(tmp_path / "published.gguf")
        assert ours.tensors.keys() == theirs.tensors.keys()
        different = [n for n, t in theirs.tensors.items() if not np.array_equal(t.read(), ours.tensors[n].read())]
        assert different == []
        ours_keys, theirs_keys = (
            {key: list(value) if isinstance(value, list) else value for key, value in file.metadata.items()}
            for file in (ours, theirs)
        )
        unlike = {k for k in theirs_keys if k.startswith("deepseek4.") and ours_keys.get(k) != theirs_keys[k]}
        assert unlike == {"deepseek4.attention.compress_ratios"}  # without those of multi-token prediction
    assert torch.get_default_dtype() == torch.float32


def test_quantizing_protects_what_routes_and_compresses(checkpoints: Path) -> None:
    [(plan, _)] = plan_conversion(open_checkpoint(checkpoints / "v4-flash"), ["MLA-Q2_K"])
    types = {job.name: job.type for job in plan.tensors}
    kinds = {
        "hc_attn_fn": "F32", "hc_ffn_fn": "F32", "attn_compressor_ape": "F32", "attn_compressor_kv": "BF16",
        "attn_compressor_gate": "BF16", "indexer_compressor_kv": "BF16", "indexer_compressor_ape": "F32",
        "ffn_gate_inp": "F32", "attn_output_a": "Q6_K", "attn_kv": "Q6_K", "ffn_up_shexp": "Q6_K",
        "ffn_gate_exps": "Q2_K", "indexer.proj": "F32", "indexer.attn_q_b": "Q6_K",
    }  # fmt: skip
    assert {name: types[f"blk.2.{name}.weight"] for name in kinds} == kinds
    assert types["output_hc_fn.weight"] == "F32"


# ------------------------------------------------------------------------------------------------------- refusals


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        hub.write_json(directory / "config.json", config | changes)

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a ratio that engines do not know": (
        configured(compress_ratios=[0, 0, 8, 128]), ("compress_ratios", "0, 4, 128", "found 8"),
    ),
    "ratios of too few layers": (configured(compress_ratios=[0, 4]), ("compress_ratios", "each of 4 layers")),
    "no table for a layer that needs one": (
        configured(num_hash_layers=2), ("1 tensor missing", "model.layers.1.mlp.gate.tid2eid"),
    ),
    "fewer experts than are packed": (configured(n_routed_experts=3), ("experts.3.", "no rule")),
    "more experts than are packed": (configured(n_routed_experts=5), ("missing", "experts.4.")),
    "experts that the table does not know": (
        configured(num_experts_per_tok=2), ("tid2eid", "[2048, 2] (vocab x experts_used)", "[2048, 3]"),
    ),
    "other streams": (configured(hc_mult=2), ("hc_mult", "4", "found 2")),
    "another scoring": (configured(scoring_func="sigmoid"), ("scoring_func", "sqrtsoftplus", "sigmoid")),
    "groups that heads do not fill": (configured(o_groups=3), ("o_groups", "num_attention_heads (4)")),
    "a scaling of attention": (
        configured(rope_scaling={**v4.FLASH["rope_scaling"], "attention_factor": 1.2}), ("attention_factor", "1.2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_sentence(name: str, checkpoints: Path, tmp_path: Path) -> None:
    damage, words = FAULTS[name]
    directory = shutil.copytree(checkpoints / "v4-flash", tmp_path / "model")
    damage(directory)
    answer = gguf_mla("convert", directory, tmp_path / "out.gguf", "--quiet")
    assert answer.status == 2
    assert [word for word in words if word not in answer.output] == [], answer.output


def test_an_expert_that_is_not_there_is_named_by_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = v4.table({**v4.FLASH, **FEW}, 0)
    ids[77, 1] = 4
    monkeypatch.setattr(v4, "table", lambda *_: ids)
    checkpoint = v4.write(tmp_path / "model", "v4-flash", **FEW)
    answer = gguf_mla("convert", checkpoint, tmp_path / "out.gguf", "--quiet")
    assert answer.status == 2
    assert "model.layers.0.mlp.gate.tid2eid" in answer.output
    assert "sends token 77 to an expert that is not there (expected 0 to 3, found 4)" in answer.output
    assert not list(tmp_path.glob("out*"))
