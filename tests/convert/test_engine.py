"""Converted files in a real llama.cpp give the logprobs that transformers gives for the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import hub
from tests.support.command import convert
from tests.support.judges import Transformers, largest_difference, prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.judges import Engine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # transformers' and torch's own
]

TOLERANCE = 2e-4  # largest |Δ logprob| over all prompts
TOKENS = 2048  # the likeliest ones are compared: the whole of the bundled vocabulary, more costs seconds per prompt
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
    # 27 layers of wild random weights come close to the tolerance (1.4e-4 measured), and on another CPU may pass it
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
    "kimi-int4": Model("kimi-int4", engine={"beta_fast": 1.0}),
    "moonlight": Model("kimi", options={"num_hidden_layers": 4, "q_lora_rank": None, "rope_scaling": None}),
    "bundled": Model("bundled"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_those_of_transformers(name: str, engine: Callable[..., Engine], tmp_path: Path) -> None:
    checkpoint = MODELS[name].write(tmp_path / "model")
    convert(checkpoint, tmp_path / "model.gguf", "F32")
    worst = agreement(engine(tmp_path / "model.gguf", **MODELS[name].engine), Transformers(checkpoint))
    assert worst <= TOLERANCE


def agreement(engine: Engine, reference: Transformers) -> float:
    """The largest |Δ logprob| over all prompts and the likeliest tokens; the likeliest of all must be the same."""
    deltas = []
    for prompt in prompts(reference.vocabulary, LENGTHS):
        expected = reference.next_logprobs(prompt)
        tokens, found = engine.next_logprobs(prompt, min(TOKENS, reference.vocabulary))
        assert tokens[0] == expected.argmax()
        deltas.append(largest_difference(tokens, found, expected))
    return max(deltas)
