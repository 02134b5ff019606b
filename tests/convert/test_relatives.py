"""V3.2's two forms, with its indexer and without, multi-token prediction, and what GLM has under its own names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.container.reader import GgufFile, open_gguf
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.judges import Transformers, largest_difference, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 4}


@pytest.fixture(scope="module")
def v32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write(tmp_path_factory.mktemp("v32") / "model", "v32", **SMALL)


def converted(checkpoint: Path, out: Path, *options: str) -> GgufFile:
    convert(checkpoint, out, "BF16", *options)
    return open_gguf(out)


def test_the_prediction_layer_is_kept_unless_it_is_to_be_left_out(v32: Path, tmp_path: Path) -> None:
    kept, left = (converted(v32, tmp_path / f"{n}.gguf", *options) for n, options in enumerate([(), ("--no-mtp",)]))
    assert {name for name in kept.tensors if name not in left.tensors} == {n for n in kept.tensors if "blk.2." in n}
    assert kept.values["deepseek32.block_count"].data == 3
    assert kept.values["deepseek32.nextn_predict_layers"].data == 1
    assert left.values["deepseek32.block_count"].data == 2
    assert "deepseek32.nextn_predict_layers" not in left.values


def test_a_stated_prediction_layer_that_is_not_there_is_not_written(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", "v32", num_nextn_predict_layers=0, **SMALL)
    config = json.loads((checkpoint / "config.json").read_text())
    hub.write_json(checkpoint / "config.json", config | {"num_nextn_predict_layers": 1})
    file = converted(checkpoint, tmp_path / "out.gguf")
    assert file.values["deepseek32.block_count"].data == 2
    assert "deepseek32.nextn_predict_layers" not in file.values


def test_the_light_form_is_what_v3_would_be(v32: Path, tmp_path: Path) -> None:
    whole, light = converted(v32, tmp_path / "whole.gguf", "--no-mtp"), converted(v32, tmp_path / "l.gguf", "--light")
    assert light.values["general.architecture"].data == "deepseek2"
    assert list(light.tensors) == [name for name in whole.tensors if ".indexer." not in name]
    assert all(
        tensor.read().tobytes() == whole.tensors[name].read().tobytes() for name, tensor in light.tensors.items()
    )
    shared = {key.replace("deepseek32.", "deepseek2.") for key in whole.values if "indexer" not in key}
    assert set(light.values) == shared


@pytest.mark.parametrize("option", [(), ("--light",)])
def test_bos_comes_first_whatever_the_tokenizers_files_say(option: tuple[str, ...], v32: Path, tmp_path: Path) -> None:
    settings = v32 / "tokenizer_config.json"
    stated = json.loads(settings.read_text())
    settings.write_text(json.dumps(stated | {"add_bos_token": False}))
    assert converted(v32, tmp_path / "out.gguf", *option).values["tokenizer.ggml.add_bos_token"].data is True


def test_glm_names_its_own_special_tokens(tmp_path: Path) -> None:
    checkpoint = hub.write(tmp_path / "model", "glm-lite", **SMALL)
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    # two entries of the vocabulary under other names
    tokenizer["model"]["vocab"] = {
        {1990: "<|user|>", 1991: "[gMASK]"}.get(number, text): number
        for text, number in tokenizer["model"]["vocab"].items()
    }
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))
    values = converted(checkpoint, tmp_path / "out.gguf").values
    ids = {key: values[f"tokenizer.ggml.{key}_token_id"].data for key in ("eot", "bos", "eos")}
    assert ids == {"eot": 1990, "bos": 1991, "eos": 1}
    assert values["deepseek2.nextn_predict_layers"].data == 1


def test_a_dense_model_has_no_light_form(pristine: Path, tmp_path: Path) -> None:
    answer = gguf_mla("convert", pristine, tmp_path / "out.gguf", "--light")
    assert answer.status == 2
    assert "--light has nothing to leave out (expected a model with sparse attention, found deepseek2)" in answer.output


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' and torch's own
def test_the_light_form_computes_what_the_whole_does_while_all_tokens_are_attended_to(
    engine: Callable[[Path], Engine], tmp_path: Path
) -> None:
    checkpoint = hub.write(tmp_path / "model", "v32", index_topk=64, num_hidden_layers=2)
    convert(checkpoint, tmp_path / "light.gguf", "F32", "--light")
    llama, reference = engine(tmp_path / "light.gguf"), Transformers(checkpoint)
    [short, long] = prompts(reference.vocabulary, (60, 160))
    tokens, found = llama.next_logprobs(short, reference.vocabulary)
    assert largest_difference(tokens, found, reference.next_logprobs(short)) <= 2e-4  # as for every F32 file
    tokens, found = llama.next_logprobs(long, reference.vocabulary)
    assert largest_difference(tokens, found, reference.next_logprobs(long)) > 1e-2  # there sparse attention is another
