"""Models with latent attention that are not converted here, by the class that config.json names, and why."""

from __future__ import annotations

KDA = (
    "most of its layers have a recurrent state (Kimi's delta attention) in the place of attention, which nothing here "
    "computes, so that a file of it could not be proven"
)
UNSETTLED = "the names and keys of its GGUF form are not settled between engines"
WITHOUT_SPLIT = "its GGUF form keeps kv_b_proj whole and has an architecture of its own, which nothing here computes"

REASONS = {
    "KimiLinearForCausalLM": KDA,
    "KimiK3ForConditionalGeneration": KDA,
    "BailingMoeV3ForCausalLM": KDA,
    "Glm5NextForConditionalGeneration": KDA,
    "DeepseekV41ForCausalLM": UNSETTLED,
    "LongcatFlashForCausalLM": UNSETTLED,
    "MistralLarge4ForConditionalGeneration": "llama.cpp (b11434) has no architecture for it",
    "MiniCPM3ForCausalLM": WITHOUT_SPLIT,
    "PLMForCausalLM": WITHOUT_SPLIT,
}
