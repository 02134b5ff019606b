"""Which entry of a matrix serves a tensor: what other programs call it, and whose input is the same.

A weight's importance is that of its input, so weights that are multiplied with the same vectors share it. Programs that
compute two of them in one operation record only one of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

# ggml appends these to the name of what an operation makes of a tensor, and schedulers put a device around it.
_OPERATION = re.compile(r" \((reshaped|view|permuted|cont|transposed|copy)\)")
_DEVICE = re.compile(r"[^#]*#(.+)#\d+")

HEADS = ("attn_k_b", "attn_v_b")  # a matrix per head, which some programs record as one
# Multiplied group by group: the rows of each group of heads have their own input, and collectors record one after the
# other. llama-quantize takes such an entry for one of another model.
GROUPED = ("attn_output_a",)
# The normalised latent is the input of a legacy attn_kv_b, and in every head attn_v_b is multiplied with averages of
# it. The input of attn_k_b is a head's query: nothing in a legacy file says anything about it.
STAND_INS: Mapping[str, str] = {"attn_v_b": "attn_kv_b", "attn_kv_b": "attn_v_b"}
_SAME_INPUT = (
    ("ffn_gate", "ffn_up", "ffn_gate_up"),
    ("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"),
    ("ffn_gate_shexp", "ffn_up_shexp", "ffn_gate_up_shexp"),
)
TWINS: Mapping[str, tuple[str, ...]] = {
    name: tuple(other for other in group if other != name) for group in _SAME_INPUT for name in group
}


def plain_name(name: str) -> str:
    """Return the name of the tensor that an entry is of."""
    device = _DEVICE.fullmatch(name)
    return _OPERATION.sub("", device[1] if device else name)


def kind_of(name: str) -> str:
    """Return the part of a name that says what the tensor is: "attn_k_b" of blk.0.attn_k_b.weight; "" for others."""
    parts = name.split(".")
    return parts[2] if len(parts) == 4 and parts[0] == "blk" else ""


def others_for(name: str, entries: Container[str], stand_ins: Mapping[str, str]) -> Iterator[str]:
    """Yield the entries that serve a tensor in place of its own, the best first; none without stand-ins."""
    kind = kind_of(name)
    if not kind or not stand_ins:
        return
    wanted = (*TWINS.get(kind, ()), *((stand_ins[kind],) if kind in stand_ins else ()))
    for other in wanted:
        candidate = name.replace(f".{kind}.", f".{other}.")
        if candidate in entries:
            yield candidate
