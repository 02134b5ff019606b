"""What a tensor is for, told by its name, and which tensors are never quantized.

Source: llama-quantize's categories. It looks for pieces of names, so `indexer.attn_k` counts as a key projection, and
`attn_k_b`, `attn_v_b`, `attn_kv_a_mqa`, `attn_q_a` and `attn_q_b` belong to no category at all.
"""

from __future__ import annotations

import math
from enum import StrEnum


class TensorRole(StrEnum):
    """What a tensor is for; the value is what a user reads."""

    OUTPUT = "output"
    TOKEN_EMBD = "token embeddings"  # noqa: S105 - no password
    PREDICTION_EMBD = "embeddings of prediction"
    VALUE = "attn_v or attn_kv_b"
    KEY = "attn_k"
    QUERY = "attn_q"
    ATTN_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


OUTPUT = "output.weight"
EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})

# The first piece that a name contains decides.
_PIECES = (
    ("nextn.embed_tokens.weight", TensorRole.PREDICTION_EMBD),
    ("attn_qkv.weight", TensorRole.VALUE),
    ("attn_kv_b.weight", TensorRole.VALUE),
    ("attn_v.weight", TensorRole.VALUE),
    ("attn_k.weight", TensorRole.KEY),
    ("attn_q.weight", TensorRole.QUERY),
    ("attn_output.weight", TensorRole.ATTN_OUTPUT),
    ("ffn_up", TensorRole.FFN_UP),
    ("ffn_gate", TensorRole.FFN_GATE),
    ("ffn_down", TensorRole.FFN_DOWN),
)

# A name that contains one of these pieces keeps its type, and why.
_KEPT = {
    "_norm.weight": "norm",
    "ffn_gate_inp.weight": "router",
    "ffn_gate_tid2eid.weight": "token routing table",
    "ssm_conv1d": "short convolution",
    "shortconv.conv.weight": "short convolution",
    "indexer.k_proj.weight": "indexer",
    "indexer.q_proj.weight": "indexer",
    "attn_rel_b.weight": "relative positions",
    "position_embd": "positions",
    "token_types.weight": "token types",
    "altup": "too small to quantize",
    "laurel": "too small to quantize",
    "per_layer_model_proj": "too small to quantize",
    "time_mix_first.weight": "too small to quantize",
    "time_mix_w0.weight": "too small to quantize",
    "time_mix_w1.weight": "too small to quantize",
    "time_mix_w2.weight": "too small to quantize",
    "time_mix_v0.weight": "too small to quantize",
    "time_mix_v1.weight": "too small to quantize",
    "time_mix_v2.weight": "too small to quantize",
    "time_mix_a0.weight": "too small to quantize",
    "time_mix_a1.weight": "too small to quantize",
    "time_mix_a2.weight": "too small to quantize",
    "time_mix_g1.weight": "too small to quantize",
    "time_mix_g2.weight": "too small to quantize",
    "time_mix_decay_w1.weight": "too small to quantize",
    "time_mix_decay_w2.weight": "too small to quantize",
    "time_mix_lerp_fused.weight": "too small to quantize",
    "sam.pos_embd": "vision or audio",
    "sam.neck.": "vision or audio",
    "sam.net_": "vision or audio",
    ".rel_pos": "vision or audio",
    ".patch_embd": "vision or audio",
    ".patch_merger": "vision or audio",
    "a.rvq.codebook": "vision or audio",
    "mm.a.code_embd": "vision or audio",
}

# V3.2 weighs its indexer heads by a 64-row matrix. llama.cpp's converter insists on F32 for it, llama-quantize
# quantizes it all the same; it is a ten-thousandth of a model, and decides which tokens are attended to.
# V4's residual streams are mixed by matrices of 4 to 24 rows, and each position of a compressed window has a bias:
# llama-quantize takes them down to 2 bits with everything else. They are a few megabytes of hundreds of gigabytes.
_KEPT_BY_US = {
    "indexer.proj.weight": "indexer head weights",
    "hc_attn_fn.weight": "residual streams",
    "hc_ffn_fn.weight": "residual streams",
    "output_hc_fn.weight": "residual streams",
    "compressor_ape.weight": "positions to compress",
}


def role_of(name: str) -> TensorRole:
    """Return what a tensor is for."""
    if name == OUTPUT:
        return TensorRole.OUTPUT
    if name in EMBEDDINGS:
        return TensorRole.TOKEN_EMBD
    return next((role for piece, role in _PIECES if piece in name), TensorRole.OTHER)


def dimensions(shape: tuple[int, ...]) -> int:
    """Return how many dimensions ggml sees: leading ones do not count."""
    return len(shape) - next((k for k, size in enumerate(shape[:-1]) if size != 1), len(shape) - 1)


def kept(name: str, shape: tuple[int, ...], *, compat: bool) -> str | None:
    """Return why a tensor is never quantized, None if it may be. `compat`: as llama-quantize sees it."""
    if dimensions(shape) < 2:
        return "vector"
    if not name.endswith("weight"):
        return "not a weight"
    table = _KEPT if compat else _KEPT | _KEPT_BY_US
    return next((reason for piece, reason in table.items() if piece in name), None)


def stacked(shape: tuple[int, ...]) -> bool:
    """Tell whether it is several matrices, one per expert or head."""
    return math.prod(shape[:-2]) > 1
