"""Kimi-VL and Kimi-K2.5: a DeepSeek-V3 that also sees.

Its text model is a deepseek2 like any other, under `text_config` and `language_model.`, which opening the checkpoint
unwraps; what sees is a file of its own in llama.cpp (mmproj). Sources: Moonshot's published configurations, and
transformers' kimi_k25.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_mla.families import deepseek2
from gguf_mla.families.base import Drop

if TYPE_CHECKING:
    from collections.abc import Container

    from gguf_mla.sources.config import Config


def drops(config: Config, names: Container[str]) -> tuple[Drop, ...]:
    """Return what a file of the text alone does without."""
    vision = Drop(
        r"(model\.)?(vision_tower|mm_projector|multi_modal_projector)\..+", "vision, which needs an mmproj file"
    )
    return (*deepseek2.drops(config, names), vision)


FAMILY = replace(
    deepseek2.FAMILY,
    classes=frozenset({"KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration"}),
    drops=drops,
)
