"""What the judge knows of published models, by the class that config.json names.

Read from the models' published definitions and from llama.cpp, not from the converter's families: a mistake there must
not be taken for right here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gguf_mla.forward.model import BEST, BETA_FAST, BETA_SLOW, MlaModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gguf_mla.forward.model import Model


@dataclass(frozen=True)
class Published:
    """A class of models: its architecture in GGUF's terms.

    `bos_first`: the published prompt scripts write the bos themselves, so the tokenizer's files say otherwise;
    `scripted`: prompts are written by a script alone, so that a file may hold any template;
    `specials`: what the published prompts use a token as that no file names so: a kind and the token's text.
    """

    architecture: str
    bos_first: bool = False
    scripted: bool = False
    specials: Mapping[str, str] = field(default_factory=dict)


# Z.ai's chat template begins with [gMASK], and an answer ends where the user or a tool speaks next.
GLM = {"bos": "[gMASK]", "eot": "<|user|>", "eom": "<|observation|>", "unk": "<|endoftext|>"}

CLASSES = {
    "DeepseekV2ForCausalLM": Published("deepseek2"),
    "DeepseekV3ForCausalLM": Published("deepseek2"),
    "DeepseekV32ForCausalLM": Published("deepseek32", bos_first=True),
    "Glm4MoeLiteForCausalLM": Published("deepseek2", specials=GLM),
    "GlmMoeDsaForCausalLM": Published("glm-dsa", specials=GLM),
    "KimiVLForConditionalGeneration": Published("deepseek2"),
    "KimiK25ForConditionalGeneration": Published("deepseek2"),
    "YoutuForCausalLM": Published("deepseek2"),
    "MistralLarge3ForCausalLM": Published("deepseek2"),
    "Mistral3ForConditionalGeneration": Published("mistral4"),
    "Mistral4ForCausalLM": Published("mistral4"),
    "DeepseekV4ForCausalLM": Published("deepseek4", bos_first=True, scripted=True),
}
ARCHITECTURES = tuple(dict.fromkeys(published.architecture for published in CLASSES.values()))
SPARSE, LIGHT = "deepseek32", "deepseek2"  # a model with sparse attention, and what it is written as without

_LITE = (26, 27)  # depths that llama.cpp takes for V2-Lite, which has no low-rank q


def engine_differences(model: Model) -> Iterator[str]:
    """Yield sentences on what llama.cpp computes otherwise than the original from a file that is right."""
    if model.routing.group_score == BEST and model.routing.groups_used < model.routing.groups:
        yield (
            "The model chooses expert groups by their best expert (topk_method group_limited_greedy); llama.cpp "
            "chooses them by the sum of their best two, so some tokens take other experts there than in the original."
        )
    if isinstance(model, MlaModel) and model.eps != model.latent_eps:
        yield (
            f"rms_norm_eps is {model.eps:g}; the original norms the compressed q and kv with 1e-6 all the "
            f"same, llama.cpp uses {model.eps:g} for all norms."
        )
    if model.q_rank and model.layers in _LITE:
        yield (
            f"llama.cpp takes a model of {model.layers} layers for DeepSeek-V2-Lite and does not look for its low-rank "
            "q, so it will not load this file."
        )
    if model.yarn is not None:
        yield from _other_beta("fast", model.yarn.fast, BETA_FAST)
        yield from _other_beta("slow", model.yarn.slow, BETA_SLOW)


def _other_beta(name: str, found: float, taken: float) -> Iterator[str]:
    if found != taken:
        yield (
            f"YaRN's beta_{name} is {found:g} in this model, and the file says so, but llama.cpp takes {taken:g}; "
            f"run it with --yarn-beta-{name} {found:g}."
        )
