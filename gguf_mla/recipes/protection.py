"""Our own recipes: MLA-X has the routed experts as the file type X has them, and protects everything else.

In a mixture-of-experts model nearly all bytes are routed experts, of which a token uses a few. What every token passes
through is a few percent of the file, and in llama.cpp's mixtures an MLA file's attention is not protected at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla import ggtypes

if TYPE_CHECKING:
    from gguf_mla.recipes.file_types import FileType

ROUTED = "_exps."
# V4's compressors make one row of the cache of many tokens: an error there is in all that is remembered. Their rows are
# BF16 in the checkpoint and a hundredth of a model, so they stay so in every file of ours that quantizes.
COMPRESSOR = "_compressor_"
HEADS = ("attn_k_b.", "attn_v_b.")
FEW_BITS = 4


def protected_type(name: str, target: FileType) -> str | None:
    """Return the type that an MLA- file type protects a tensor with; None for routed experts and other file types.

    The experts' own bits set what is enough for the rest: Q8_0 beside 4 bits or more, Q6_K below. The per-head halves
    of kv_b_proj are multiplied into the attention twice and are small: Q8_0, and beside Q8_0 experts BF16, with which
    llama.cpp decodes 23 % faster on CUDA (its pull request 12772).
    """
    if not target.protects or ROUTED in name:
        return None
    if any(piece in name for piece in HEADS):
        return "BF16" if target.default == "Q8_0" else "Q8_0"
    kind = ggtypes.by_name(target.default)
    return "Q6_K" if kind.bytes * 8 < FEW_BITS * kind.block else "Q8_0"
