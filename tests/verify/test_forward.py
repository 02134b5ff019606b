"""The forward pass against transformers, which shares no line with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla import open_checkpoint, open_gguf
from gguf_mla.forward import walk
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.forward.of_gguf import model_of_gguf
from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
from gguf_mla.sources.config import Config
from tests.support import hub
from tests.support.command import convert
from tests.support.judges import Transformers, prompts
from verify.measures import agreement

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.tensors import Weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own

TOKENS = 168
# float32 sums in another order: 8e-6 measured for all 27 layers of v2lite's wild random weights
WMAPE, COSINE = 2e-5, 0.9999999

LOG_PROBABILITY = 2e-4  # largest difference; 5e-5 measured

SHORT: dict[str, Any] = {"num_hidden_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2lite": ("v2lite", {"num_hidden_layers": 5}),
    "v2": ("v2", {}),
    "v3": ("v3", {"num_hidden_layers": 3}),
    "v3-tied": ("v3-tied", {"num_hidden_layers": 2}),
    "v3fp8": ("v3fp8", {}),
    "bundled": ("bundled", {}),
    "v32, 16 of up to 168 tokens": ("v32", {}),
    "v32, all tokens": ("v32", SHORT | {"index_topk": 200}),
    "v32fp8": ("v32fp8", SHORT),
    "glm-lite": ("glm-lite", SHORT),
    "glm-dsa, 16 of up to 168 tokens": ("glm-dsa", SHORT),
    "glm-dsa, all tokens": ("glm-dsa", SHORT | {"index_topk": 200}),
    "glm-dsa, shared choices": ("glm-dsa", {"indexer_types": ["full", "shared", "full", "shared"]}),
}


def checkpoint_weights(directory: Path) -> CheckpointWeights:
    checkpoint = open_checkpoint(directory)
    config = Config(checkpoint.config, directory / "config.json")
    return CheckpointWeights(checkpoint, model_of_config(config, checkpoint.tensors))


def gguf_weights(path: Path) -> GgufWeights:
    file = open_gguf(path)
    return GgufWeights(file, model_of_gguf(file))


def logits(weights: Weights, prompt: list[int]) -> np.ndarray:
    pass_ = Pass(weights)
    hidden = walk.hidden_states(pass_, np.array([prompt]))
    pieces = list(pass_.pieces(hidden[0], "output.weight"))
    assert [start for start, _ in pieces] == np.cumsum([0, *(p.shape[1] for _, p in pieces[:-1])]).tolist()
    return np.concatenate([piece for _, piece in pieces], axis=1)


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, options = MODELS[name]
    directory = hub.BUNDLED if kind == "bundled" else hub.write(tmp_path / kind, kind, **options)
    reference = Transformers(directory)
    (prompt,) = prompts(reference.vocabulary, [TOKENS])
    found, expected = logits(checkpoint_weights(directory), prompt), reference.logits(prompt)
    measured = agreement(found, expected)
    assert measured.cosine >= COSINE
    assert measured.wmape <= WMAPE
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(log_softmax(found) - log_softmax(expected)).max() <= LOG_PROBABILITY


def log_softmax(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["v2", "v3", "v32"])
def test_a_file_without_loss_computes_what_its_checkpoint_does(kind: str, tmp_path: Path) -> None:
    directory = hub.write(tmp_path / kind, kind, num_hidden_layers=2)
    convert(directory, tmp_path / "out.gguf", "F32")
    (prompt,) = prompts(2048, [40])
    reference, candidate = checkpoint_weights(directory), gguf_weights(tmp_path / "out.gguf")
    np.testing.assert_array_equal(logits(candidate, prompt), logits(reference, prompt))


def test_a_large_matrix_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = checkpoint_weights(hub.write(tmp_path / "v3", "v3", num_hidden_layers=2))
    (prompt,) = prompts(2048, [16])
    whole = logits(weights, prompt)
    monkeypatch.setattr("gguf_mla.forward.tensors.CHUNK_VALUES", 40_000)
    # another blocking of the same float32 sums inside BLAS
    np.testing.assert_allclose(logits(weights, prompt), whole, atol=1e-4)
