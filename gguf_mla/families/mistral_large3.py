"""Mistral-Large-3 under DeepSeek's names: Mistral-Small-4's model with more experts, in a deepseek2 file.

Mistral publishes it under names of its own (`consolidated` shards beside params.json), which are refused.
Sources: vLLM's configuration of it; the metadata keys that llama.cpp's deepseek2 reads.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_mla.families import deepseek2, kimi_vl
from gguf_mla.families.mistral4 import UNSAID

FAMILY = replace(
    deepseek2.FAMILY,
    classes=frozenset({"MistralLarge3ForCausalLM"}),
    drops=kimi_vl.drops,
    unsaid=UNSAID,
)
