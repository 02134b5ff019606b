"""The keys that no reference states and engines know all the same: the one list of what they do, and when it matters.

Read in llama.cpp's source, b11434: load_hparams of the model and of its architectures, the vocabulary, the context.
A key that is in no list here, and that the reference does not explain either, is reported, so that one which a newer
engine reads cannot pass unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Honoured:
    """A key that llama.cpp honours in every model: what it does with it, and the values at which that is nothing."""

    reads: str
    neutral: tuple[Any, ...] = ()


# Patterns, without the architecture's prefix except where a key has none. What is in INERT comes first.
HONOURED: Mapping[str, Honoured] = {
    "rope.scaling.attn_factor": Honoured("llama.cpp multiplies what is rotated by it", (1.0,)),
    "rope.scale_linear": Honoured("llama.cpp stretches positions by it where rope.scaling.factor is missing", (0, 1)),
    "attention.causal": Honoured("llama.cpp lets tokens attend to later ones without it", (True,)),
    "attention.temperature_scale": Honoured("llama.cpp scales queries by their position with it", (0,)),
    "attention.temperature_length": Honoured("llama.cpp scales queries by their position with it", (0,)),
    "embedding_length_out": Honoured("llama.cpp takes it for the length of what the model returns", (0,)),
    "pooling_type": Honoured("llama.cpp pools embeddings by it", (0,)),
    "general.tensor_extra.name": Honoured("llama.cpp multiplies these tensors in another precision", ([],)),
    "general.tensor_extra.prec_a4": Honoured("llama.cpp multiplies some tensors in another precision", ([],)),
    "tokenizer.ggml.suppress_tokens": Honoured("llama.cpp never generates these tokens", ([],)),
    "tokenizer.ggml.add_sep_token": Honoured("llama.cpp adds a separator to a text", (False,)),
    "tokenizer.ggml.add_space_prefix": Honoured("llama.cpp takes a space away from a text's beginning", (False,)),
    "tokenizer.ggml.add_*_token": Honoured("llama.cpp adds a token to a text", (False,)),
    "tokenizer.ggml.*_token_id": Honoured("llama.cpp treats this token otherwise than an ordinary one"),
    "tokenizer.chat_template*": Honoured("llama.cpp writes chats by it"),
    "general.sampling.*": Honoured("llama.cpp samples by it unless its user says otherwise"),
}

OTHER_MODELS = "llama.cpp reads it for other architectures only"
OTHER_VOCABULARIES = "llama.cpp reads it for other kinds of vocabularies only"
WINDOWS = "llama.cpp reads it, and uses it in layers with a sliding window only, of which this model has none"
CLASSIFIERS = "llama.cpp uses it in classifiers only"

UNUSED_TOKENS = ("unknown", "seperator", "padding", "mask", "cls")

# Patterns: what such a key does, which is nothing. They are said all the same.
INERT: Mapping[str, str] = {
    "logit_scale": OTHER_MODELS,
    "*_logit_softcapping": OTHER_MODELS,
    "attention.sliding_window*": OTHER_MODELS,
    "attention.scale": OTHER_MODELS,
    "attention.output_scale": OTHER_MODELS,
    "attention.value_scale": OTHER_MODELS,
    "attention.clamp_kqv": OTHER_MODELS,
    "attention.max_alibi_bias": OTHER_MODELS,
    "attention.layer_norm_epsilon": OTHER_MODELS,
    "attention.*_swa": WINDOWS,
    "rope.*_swa": WINDOWS,
    "rope.dimension_sections": "llama.cpp uses it for positions of several dimensions only",
    "rope.scaling.alpha": OTHER_MODELS,
    "rope.scaling.yarn_ext_factor": OTHER_MODELS,
    "rope.scaling.yarn_attn_factor": OTHER_MODELS,
    "rope.scaling.finetuned": "llama.cpp prints it",
    "classifier.*": CLASSIFIERS,
    "residual_scale": OTHER_MODELS,
    "embedding_scale": OTHER_MODELS,
    "use_parallel_residual": OTHER_MODELS,
    "tensor_data_layout": OTHER_MODELS,
    "expert_group_scale": OTHER_MODELS,
    "experts_per_group": OTHER_MODELS,
    "moe_every_n_layers": OTHER_MODELS,
    "interleave_moe_layer_step": OTHER_MODELS,
    "expert_shared_feed_forward_length": OTHER_MODELS,
    "mla_optimized": "the first branch with MLA tagged its files with it; no engine of today reads it",
    **{f"tokenizer.ggml.{kind}_token_id": OTHER_VOCABULARIES for kind in UNUSED_TOKENS},
    "tokenizer.ggml.scores": OTHER_VOCABULARIES,
    "tokenizer.ggml.token_type_count": OTHER_VOCABULARIES,
    "tokenizer.ggml.remove_extra_whitespaces": OTHER_VOCABULARIES,
    "tokenizer.ggml.precompiled_charsmap": OTHER_VOCABULARIES,
    "tokenizer.ggml.normalizer.*": OTHER_VOCABULARIES,
    "tokenizer.ggml.added_tokens": "llama.cpp does not read it",
    "tokenizer.huggingface.json": "llama.cpp does not read it; other engines take the tokenizer from it",
    "tokenizer.rwkv.world": OTHER_VOCABULARIES,
}

# Prefixes of what says where a file comes from, how it was made and where its parts are; not for engines' arithmetic,
# and rightly another in every file. What is compared of them all the same is in `verify.keys.model`.
PROVENANCE = ("general.", "quantize.", "split.")


def inert(name: str) -> str | None:
    """Return why a key, without its architecture's prefix, does nothing; None for one that is not known to."""
    return next((reason for pattern, reason in INERT.items() if fnmatchcase(name, pattern)), None)


def honoured(name: str) -> Honoured | None:
    """Return what llama.cpp does with a key, named without its architecture's prefix; None where it is not known."""
    if inert(name) is not None:
        return None
    return next((known for pattern, known in HONOURED.items() if fnmatchcase(name, pattern)), None)
