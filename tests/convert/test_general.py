"""The general section, judged by the gguf package itself and fed with model cards as people write them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.general import Parameters, count_parameters, general_metadata
from gguf_mla.container.values import Kind, Value
from gguf_mla.errors import InputError
from gguf_mla.sources.folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = Parameters(total=1_210_000_000, shared=50_000_000, expert=22_000_000, expert_count=16)
CARD = """---
license: mit
library_name: transformers
base_model:
- deepseek-ai/DeepSeek-V3-Base
language:
- en
- no
tags:
- conversational
pipeline_tag: text-generation
datasets: openai/gsm8k
---
# A model
"""


def checkpoint(tmp_path: Path, name: str = "v3", card: str | bytes | None = None, **files: Any) -> Path:
    directory = tmp_path / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in {"config": {}, **files}.items():
        (directory / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    if card is not None:
        (directory / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    return directory


def general(directory: Path) -> dict[str, Any]:
    metadata, _ = general_metadata(LocalFolder(directory), "deepseek2", COUNTS)
    return {key.removeprefix("general."): value.data for key, value in metadata.items()}


def warnings(directory: Path) -> str:
    return " ".join(general_metadata(LocalFolder(directory), "deepseek2", COUNTS)[1])


def test_parameters_are_what_the_gguf_package_counts() -> None:
    import gguf
    import numpy as np

    shapes = {
        "token_embd.weight": (1000, 64),
        "blk.0.attn_k_b.weight": (4, 128, 64),
        "blk.1.ffn_gate_exps.weight": (16, 32, 64),
        "blk.1.ffn_up_exps.weight": (16, 32, 64),
        "blk.1.ffn_down_exps.weight": (16, 64, 32),
        "blk.2.ffn_down_exps.weight": (8, 64, 32),
        "blk.2.ffn_gate_exps.bias": (8, 32),
        "blk.1.exp_probs_b.bias": (16,),
        "output_norm.weight": (64,),
    }
    writer = gguf.GGUFWriter(None, "deepseek2")
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4)
    counted = count_parameters(shapes.items())
    assert (counted.total, counted.shared, counted.expert, counted.expert_count) == writer.get_total_parameter_count()


def test_no_experts_and_no_tensors() -> None:
    assert count_parameters([("output_norm.weight", (64,))]) == Parameters(64, 64, 0, 0)
    assert count_parameters([]) == Parameters(0, 0, 0, 0)
    assert count_parameters([("blk.0.ffn_up_exps.weight", (0, 4, 4))]) == Parameters(0, 0, 0, 0)


def test_a_directory_alone(tmp_path: Path) -> None:
    metadata, said = general_metadata(LocalFolder(checkpoint(tmp_path)), "deepseek2", COUNTS)
    assert metadata == {
        "general.architecture": Value(Kind.STRING, "deepseek2"),
        "general.type": Value(Kind.STRING, "model"),
        "general.name": Value(Kind.STRING, "v3"),
        "general.version": Value(Kind.STRING, "v3"),
        "general.size_label": Value(Kind.STRING, "16x72M"),
    }
    assert list(metadata) == [f"general.{key}" for key in ("architecture", "type", "name", "version", "size_label")]
    assert said == []


def test_a_model_card(tmp_path: Path) -> None:
    said = general(checkpoint(tmp_path, "DeepSeek-Toy-1.2B-Chat", CARD))
    assert said["name"] == "DeepSeek Toy 1.2B Chat"
    assert (said["basename"], said["finetune"], said["size_label"]) == ("DeepSeek-Toy", "Chat", "1.2B")
    assert said["license"] == "mit"
    assert said["tags"] == ["conversational", "text-generation"]
    assert said["languages"] == ["en", "no"]
    assert (said["base_model.count"], said["base_model.0.name"]) == (1, "DeepSeek V3 Base")
    assert said["base_model.0.organization"] == "Deepseek Ai"
    assert said["dataset.0.name"] == "Gsm8K"


@pytest.mark.parametrize("name", ["v3", "DeepSeek-V2-Lite-Chat", "deepseek-v3-671B-FP8", "my model", "x"])
@pytest.mark.parametrize("card", [None, CARD])
def test_a_sound_checkpoint_is_what_the_gguf_package_makes_of_it(tmp_path: Path, name: str, card: str | None) -> None:
    import gguf

    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 50, "do_sample": True, "eos_token_id": 1}
    directory = checkpoint(tmp_path, name, card, generation_config=sampling)
    judge = gguf.Metadata.load(None, directory, None, COUNTS.total)
    judge.size_label = judge.size_label or gguf.size_label(
        COUNTS.total, COUNTS.shared, COUNTS.expert, COUNTS.expert_count
    )
    writer = gguf.GGUFWriter(None, "deepseek2")
    writer.add_type(gguf.GGUFType.MODEL)
    judge.set_gguf_meta_model(writer)
    expected = {key: (int(pair.type), pair.value) for key, pair in writer.kv_data[0].items()}
    metadata, _ = general_metadata(LocalFolder(directory), "deepseek2", COUNTS)
    assert {key: (int(value.kind), value.data) for key, value in metadata.items()} == expected
    assert list(metadata) == list(expected)


def test_sampling_defaults(tmp_path: Path) -> None:
    sampling = {"temperature": 0.6, "top_p": 1, "top_k": 50, "repetition_penalty": 1.05, "min_p": None}
    metadata, said = general_metadata(
        LocalFolder(checkpoint(tmp_path, generation_config=sampling)), "deepseek2", COUNTS
    )
    assert metadata["general.sampling.temp"] == Value(Kind.F32, 0.6)
    assert metadata["general.sampling.top_p"] == Value(Kind.F32, 1.0)
    assert metadata["general.sampling.top_k"] == Value(Kind.I32, 50)
    assert metadata["general.sampling.penalty_repeat"] == Value(Kind.F32, 1.05)
    assert "general.sampling.min_p" not in metadata
    assert said == []


def test_a_hub_cache_is_named_after_its_model(tmp_path: Path) -> None:
    snapshot = "models--deepseek-ai--DeepSeek-V3-0324/snapshots/e9b33add76883f293d6bf61f6bd89b497e80e335"
    said = general(checkpoint(tmp_path, snapshot))
    assert (said["name"], said["organization"], said["version"]) == ("DeepSeek V3 0324", "Deepseek Ai", "V3-0324")


def test_the_name_does_not_depend_on_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.chdir(checkpoint(tmp_path))
    assert general(Path())["name"] == "v3"


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: [\n---\n", "cannot be read"),
        ("---\n- a\n- b\n---\n", "instead of dict"),
        ("---\n!!python/object:os.system {}\n---\n", "cannot be read"),
        ("---\nlicense: \x00\n---\n", "cannot be read"),
        ("---\n" + "[" * 5000 + "\n---\n", "cannot be read"),
        (b"---\nlicense: \xff\n---\n", "cannot be read"),
        ("---\ntags: {a: b}\n---\n", "tags holds something"),
        ("---\nlicense_name: [a, b]\n---\n", "general.license.name cannot be"),
        ("---\nbase_model: [[a]]\n---\n", "base_model holds something"),
        ("---\nlanguage: [true, en]\n---\n", "language holds something"),
    ],
)
def test_a_bad_card_is_left_out_with_a_warning(
    tmp_path: Path, card: str | bytes, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = checkpoint(tmp_path, card=card)
    assert general(directory)["name"] == "v3"
    assert said in warnings(directory)
    assert capfd.readouterr().err == ""


def test_scalars_of_a_card_become_text(tmp_path: Path) -> None:
    said = general(checkpoint(tmp_path, card="---\nversion: 1.5\nauthor: 2024-01-31\nlicense: [mit, 3]\n---\n"))
    assert (said["version"], said["author"], said["license"]) == ("1.5", "2024-01-31", "mit,3")


def test_a_card_of_aliases_does_not_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert general(checkpoint(tmp_path, card="---\n" + "\n".join([*lines, "tags: *a29"]) + "\n---\n"))["name"] == "v3"


@pytest.mark.parametrize(
    ("generation", "key"),
    [
        ({"top_k": "many"}, "general.sampling.top_k"),
        ({"top_k": 2**40}, "general.sampling.top_k"),
        ({"top_k": 1.5}, "general.sampling.top_k"),
        ({"temperature": True}, "general.sampling.temp"),
        ({"temperature": [1]}, "general.sampling.temp"),
        ({"temperature": float("inf")}, "general.sampling.temp"),
        ([1], "generation_config.json"),
    ],
)
def test_bad_sampling_defaults_are_left_out_with_a_warning(tmp_path: Path, generation: Any, key: str) -> None:
    directory = checkpoint(tmp_path, generation_config=generation)
    assert "sampling.temp" not in general(directory)
    assert "sampling.top_k" not in general(directory)
    assert key in warnings(directory)


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        general(checkpoint(tmp_path, config=[]))


@pytest.mark.parametrize("name", [7, [], {}, "a/b/c", "/home/someone/model"])
def test_a_path_or_no_text_as_model_name_is_ignored(tmp_path: Path, name: Any) -> None:
    assert general(checkpoint(tmp_path, config={"_name_or_path": name}))["name"] == "v3"


CARD_KEYS = ["name", "version", "license", "tags", "language", "base_model", "datasets", "model_name", "pipeline_tag"]
ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "repo_url"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(card=st.dictionaries(st.sampled_from(CARD_KEYS), ENTRIES, max_size=4))
def test_whatever_a_card_holds_makes_values_that_gguf_can_hold(tmp_path: Path, card: dict[str, Any]) -> None:
    directory = checkpoint(tmp_path, card="---\n" + json.dumps(card) + "\n---\n")
    for value in general_metadata(LocalFolder(directory), "deepseek2", COUNTS)[0].values():
        items = value.data if value.kind == Kind.ARRAY else [value.data]
        assert value.kind in (Kind.ARRAY, Kind.STRING, Kind.U32)
        assert all(isinstance(item, int if value.kind == Kind.U32 else str) for item in items)
