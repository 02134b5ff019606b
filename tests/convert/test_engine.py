"""Converted files in a real llama.cpp give the logprobs that transformers gives for the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import hub
from tests.support.command import convert
from tests.support.judges import Transformers, largest_difference, prompts
from tests.support.weights import checkpoint_weights
from verify import rounding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_mla.forward.model import Model as Description
    from tests.support.judges import Engine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # transformers' and torch's own
]

TOKENS = 256  # the likeliest ones are compared: every logit is the same hidden state times a row of its own
LENGTHS = (1, 2, 3, 5, 8, 13, 17, 21, 34, 55, 64, 65, 89, 127, 128, 160)


@dataclass(frozen=True)
class Model:
    """A checkpoint to put before both judges."""

    kind: str
    tokenizer: str = "bundled"
    options: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        if self.kind == "bundled":
            return hub.BUNDLED
        return hub.write(directory, self.kind, tokenizer=self.tokenizer, **self.options)


MODELS = {
    "v2lite": Model("v2lite", options={"tame": True}),
    "v2lite-4-layers": Model("v2lite", options={"num_hidden_layers": 4}),
    "v3": Model("v3"),
    "v3-tied": Model("v3-tied"),
    "v3fp8": Model("v3fp8", "deepseek"),
    "v3fp8-uint8": Model("v3fp8-uint8"),
    "v32, sparse": Model("v32"),  # 16 of up to 160 tokens are attended to
    "v32, all tokens": Model("v32", options={"index_topk": 256}),
    "glm-lite": Model("glm-lite"),
    "glm-dsa, sparse": Model("glm-dsa"),
    "glm-5.2, shared choices": Model("glm-5.2", options={"num_hidden_layers": 2, "indexer_types": ["full", "shared"]}),
    "youtu": Model("youtu", options={"num_hidden_layers": 2}),
    "mistral4": Model("mistral4", options={"num_hidden_layers": 2}),
    "kimi-int4": Model("kimi-int4", engine={"beta_fast": 1.0}),
    "moonlight": Model("kimi", options={"num_hidden_layers": 4, "q_lora_rank": None, "rope_scaling": None}),
    "bundled": Model("bundled"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_those_of_transformers(name: str, engine: Callable[..., Engine], tmp_path: Path) -> None:
    checkpoint = MODELS[name].write(tmp_path / "model")
    convert(checkpoint, tmp_path / "model.gguf", "F32")
    model = checkpoint_weights(checkpoint).model
    agree(engine(tmp_path / "model.gguf", **MODELS[name].engine), Transformers(checkpoint), model)


def agree(engine: Engine, reference: Transformers, model: Description) -> None:
    """The likeliest tokens have the same logprobs up to rounding after every prompt, and the likeliest is the same."""
    told = 0
    for prompt in prompts(reference.vocabulary, LENGTHS):
        expected = reference.next_logprobs(prompt)
        tokens, found = engine.next_logprobs(prompt, min(TOKENS, reference.vocabulary))
        limit = rounding.largest(model, len(prompt), float(expected.std()), TOKENS * len(LENGTHS))
        assert largest_difference(tokens, found, expected) <= limit
        first, second = np.sort(expected)[:-3:-1]
        told += first - second > 2 * limit
        assert tokens[0] == expected.argmax() or first - second <= 2 * limit
    assert told > len(LENGTHS) // 2
