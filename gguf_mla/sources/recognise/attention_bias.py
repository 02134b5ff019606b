"""Biases of the attention's projections (`attention_bias: true`), which no GGUF of an MLA architecture can hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from gguf_mla.sources.recognise.reading import Reading

_BIAS = re.compile(r".\.self_attn\.(?:q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)\.bias\Z")


def recognise(reading: Reading) -> Reading:
    """Return the reading as it is; InputError where a projection of the attention has a bias."""
    found = reading.named(_BIAS)
    if not found:
        return reading
    raise InputError(
        f"the attention has biases (attention_bias), which GGUF has no place for in this architecture: "
        f"{len(found)} tensors, {examples(found)}",
        file=reading.folder.path,
        remedy="Such a model cannot be converted; if the biases are all zero, save it without them",
    )
