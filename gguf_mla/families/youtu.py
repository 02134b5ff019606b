"""Youtu-LLM: latent attention without experts, in a deepseek2 file whose layers are all dense.

Sources: transformers' configuration and modelling code; the metadata keys that llama.cpp's deepseek2 reads.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_mla.families import deepseek2

FAMILY = replace(
    deepseek2.FAMILY,
    classes=frozenset({"YoutuForCausalLM"}),
    unsaid={"tie_word_embeddings": True},
)
