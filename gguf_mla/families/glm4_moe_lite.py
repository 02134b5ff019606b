"""GLM-4.7-Flash: V3's model with other heads (n 192, v 256), in a deepseek2 file that keeps multi-token prediction.

Sources: Z.ai's published configuration; the metadata keys that llama.cpp's deepseek2 reads.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_mla.families import deepseek2, prediction

# What GLM's vocabulary calls them; <|endoftext|> as the end of a turn would never be reached.
SPECIALS = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}

FAMILY = replace(
    deepseek2.FAMILY,
    classes=frozenset({"Glm4MoeLiteForCausalLM"}),
    layers_in=prediction.layers_in,
    specials=SPECIALS,
)
