"""Which architectures there are; and that one file with streams and token ids of its own is enough for another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import forward, open_checkpoint
from gguf_mla.errors import InputError
from gguf_mla.families import glm_dsa
from gguf_mla.forward import of_config, walk
from gguf_mla.forward.architecture import architecture_of, architectures, classes, gguf_names, read_config
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.tensors import CheckpointWeights, shapes
from gguf_mla.sources.config import Config
from tests.support import architectures as extra
from tests.support import hub
from verify.levels.logits import Passes
from verify.sections import sections

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_every_file_is_an_architecture_under_its_own_name() -> None:
    assert list(architectures()) == ["deepseek4", "mla"]
    assert len(set(classes())) == len(classes()) == 12
    assert gguf_names() == ("deepseek4", "deepseek2", "deepseek32", "glm-dsa", "mistral4")
    with pytest.raises(TypeError):
        architectures()["other"] = architectures()["mla"]


def test_a_class_that_nobody_reads_is_refused() -> None:
    config = Config({"architectures": ["LlamaForCausalLM"]}, Path("config.json"))
    with pytest.raises(InputError, match=r"config\.json.*DeepseekV3ForCausalLM.*LlamaForCausalLM"):
        read_config(config)


@pytest.mark.parametrize("offset", range(7))
@pytest.mark.parametrize("every", [0, 1, 2, 3, 4, 9])
def test_the_judge_and_the_converter_read_the_same_indexers(every: int, offset: int) -> None:
    """Both are written from the configuration's meaning; what GLM-5.2 publishes is in test_sparse."""
    stated = {"index_topk_freq": every, "index_skip_topk_offset": offset, "num_hidden_layers": 9}
    config = Config(hub.config_of("glm-dsa", "bundled", **stated), Path("config.json"))
    assert list(of_config._own_indexers(config, 9)) == glm_dsa._own_indexer(config)


@pytest.mark.parametrize("listed", [["full", "none"], ["shared", "full"], ["full"], [["full"], "full"], 3])
def test_a_list_of_indexers_that_cannot_be_read_is_refused(listed: object) -> None:
    stated = {"indexer_types": listed, "num_hidden_layers": 2}
    config = Config(hub.config_of("glm-dsa", "bundled", **stated), Path("config.json"))
    with pytest.raises(InputError, match=r'indexer_types.*"full" and 1 times'):
        of_config._own_indexers(config, 2)


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package with one file more."""
    monkeypatch.setattr(forward, "__path__", [*forward.__path__, *extra.__path__])
    architectures.cache_clear()
    yield
    architectures.cache_clear()


@pytest.mark.usefixtures("one_more")
def test_one_more_file_is_one_more_architecture(tmp_path: Path) -> None:
    assert sorted(architectures()) == ["deepseek4", "mla", "twin"]
    directory = hub.write(tmp_path / "v3", "v3", num_hidden_layers=2, first_k_dense_replace=0, n_routed_experts=8)
    checkpoint = open_checkpoint(directory)
    config = Config({**checkpoint.config, "architectures": ["TwinForCausalLM"]}, directory / "config.json")
    weights = CheckpointWeights(checkpoint, read_config(config, ()))
    assert architecture_of(weights.model).name == "twin"
    assert len(shapes(weights.model)) == 1 + 2 * 4 + 2
    tokens, told = np.arange(24).reshape(2, 12), set()
    state = walk.embed(Pass(weights), tokens)
    assert state.shape == (2, 12, 2, weights.model.hidden)
    observed = Pass(weights, observe=lambda name, expert, rows: told.add((name, expert, len(rows))))
    walk.run_layer(observed, 1, state, tokens)
    assert told == {(f"blk.1.ffn_{part}_exps.weight", e, 3) for part in ("gate", "up", "down") for e in range(8)}
    both = Passes(weights, weights, tokens, Pass(weights).form, lambda _layer: "F32")
    for section in sections(weights.model):
        both.run(section)
    [scores] = both.scores
    # BLAS groups sums by the number of rows, and the candidate is asked for twice as many
    assert [layer.measured.wmape < 1e-5 for layer in both.layers] == [True, True]
    assert scores.kld.max() < 1e-6
    assert scores.same_top.all()
