"""The forward pass against transformers, which shares no line with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import hub
from tests.support.close import close_logits
from tests.support.command import convert
from tests.support.judges import Transformers, prompts
from tests.support.weights import checkpoint_weights, gguf_weights, logits
from verify.measures import agreement

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own

TOKENS = 168
COSINE = 0.9999999
SHORT: dict[str, Any] = {"num_hidden_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "v2lite": ("v2lite", {"num_hidden_layers": 5}),
    "v2": ("v2", {}),
    "v3": ("v3", {"num_hidden_layers": 3}),
    "v3-tied": ("v3-tied", {"num_hidden_layers": 2}),
    "v3fp8": ("v3fp8", {}),
    "bundled": ("bundled", {}),
    "mistral4, queries growing after 32 tokens": ("mistral4", SHORT),
    "v32, 16 of up to 168 tokens": ("v32", {}),
    "v32, all tokens": ("v32", SHORT | {"index_topk": 200}),
    "v32fp8": ("v32fp8", SHORT),
    "glm-lite": ("glm-lite", SHORT),
    "glm-dsa, 16 of up to 168 tokens": ("glm-dsa", SHORT),
    "glm-dsa, all tokens": ("glm-dsa", SHORT | {"index_topk": 200}),
    "glm-dsa, shared choices": ("glm-dsa", {"indexer_types": ["full", "shared", "full", "shared"]}),
}


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, options = MODELS[name]
    directory = hub.BUNDLED if kind == "bundled" else hub.write(tmp_path / kind, kind, **options)
    reference = Transformers(directory)
    (prompt,) = prompts(reference.vocabulary, [TOKENS])
    weights = checkpoint_weights(directory)
    found, expected = logits(weights, prompt), reference.logits(prompt)
    assert agreement(found, expected).cosine >= COSINE
    close_logits(found, expected, weights.model)


@pytest.mark.parametrize("kind", ["v2", "v3", "v32"])
def test_a_file_without_loss_computes_what_its_checkpoint_does(kind: str, tmp_path: Path) -> None:
    directory = hub.write(tmp_path / kind, kind, num_hidden_layers=2)
    convert(directory, tmp_path / "out.gguf", "F32")
    (prompt,) = prompts(2048, [40])
    reference, candidate = checkpoint_weights(directory), gguf_weights(tmp_path / "out.gguf")
    np.testing.assert_array_equal(logits(candidate, prompt), logits(reference, prompt))


@pytest.mark.parametrize("kind", ["v3", "v32", "mistral4"])
def test_a_file_says_the_scales_of_its_checkpoints_positions(kind: str, tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 40, "mscale": 0.5, "mscale_all_dim": 0.8}
    stated = {"rope_parameters" if kind == "mistral4" else "rope_scaling": scaling}
    directory = hub.write(tmp_path / kind, kind, num_hidden_layers=1, n_routed_experts=4, **stated)
    convert(directory, tmp_path / "out.gguf", "Q8_0")
    expected, found = checkpoint_weights(directory).model.yarn, gguf_weights(tmp_path / "out.gguf").model.yarn
    assert expected is not None
    assert found is not None
    assert (found.rotated, found.softmax) == pytest.approx((expected.rotated, expected.softmax), rel=1e-6)


def test_a_large_matrix_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = checkpoint_weights(hub.write(tmp_path / "v3", "v3", num_hidden_layers=2))
    (prompt,) = prompts(2048, [16])
    whole = logits(weights, prompt)
    monkeypatch.setattr("gguf_mla.forward.place.CHUNK_VALUES", 40_000)
    close_logits(logits(weights, prompt), whole, weights.model)  # the same sums, blocked otherwise inside BLAS
