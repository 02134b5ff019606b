"""A residual of several streams (manifold-constrained hyper-connections): what a sublayer reads of them and gives back.

With S streams of width d, x̂ = x / √(mean x² + eps) over all S·d values, and m = fn·x̂ of S + S + S² numbers:

    pre  = σ(m₁·scale₁ + base₁) + ε            the sublayer's input is Σᵢ preᵢ·streamᵢ
    post = 2·σ(m₂·scale₂ + base₂)              its output goes to stream i times postᵢ
    comb = Sinkhorn(m₃·scale₃ + base₃)         and stream i goes on as Σⱼ combⱼᵢ·streamⱼ

Source: the DeepSeek-V4 report and its published modelling code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.forward.layers import evened

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats
    from gguf_mla.forward.layers import Pass


@dataclass(frozen=True)
class Mixing:
    """What a sublayer does to streams [..., S, d].

    entered  its input, [..., d]
    post     how much of its output each stream gets, [..., S]
    comb     how much of stream j stays in stream i, [..., j, i]
    """

    entered: Floats
    post: Floats
    comb: Floats

    def left(self, added: Floats, streams: Floats) -> Floats:
        """Return the streams after the sublayer, whose output is `added` [..., d]."""
        return self.post[..., None] * added[..., None, :] + self.comb.transpose(-1, -2) @ streams


def mixing(pass_: Pass, name: str, streams: Floats, eps: float, floor: float, rounds: int) -> Mixing:
    """Return what the sublayer does whose tensors are `name`_fn, _base and _scale.

    `eps` is that of the norm, `floor` is ε, `rounds` how often Sinkhorn's algorithm goes over columns.
    """
    count = streams.shape[-2]
    m, base, scale = _mixed(pass_, name, streams, eps)
    parts = [slice(0, count), slice(count, 2 * count), slice(2 * count, None)]
    pre, post, comb = (m[..., part] * scale[number] + base[part] for number, part in enumerate(parts))
    entered = _weighed(pre.sigmoid() + floor, streams)
    return Mixing(entered, 2 * post.sigmoid(), sinkhorn(comb.unflatten(-1, (count, count)), floor, rounds))


def joined(pass_: Pass, name: str, streams: Floats, eps: float, floor: float) -> Floats:
    """Return what the model's end reads of streams [..., S, d], [..., d]."""
    m, base, scale = _mixed(pass_, name, streams, eps)
    return _weighed((m * scale + base).sigmoid() + floor, streams)


def sinkhorn(logits: Floats, floor: float, rounds: int) -> Floats:
    """Return matrices [..., S, S] whose rows and columns all add up to about 1; the last division is by columns."""
    comb = logits.softmax(dim=-1) + floor
    comb = comb / (comb.sum(dim=-2, keepdim=True) + floor)
    for _ in range(rounds - 1):
        comb = comb / (comb.sum(dim=-1, keepdim=True) + floor)
        comb = comb / (comb.sum(dim=-2, keepdim=True) + floor)
    return comb


def _mixed(pass_: Pass, name: str, streams: Floats, eps: float) -> tuple[Floats, Floats, Floats]:
    normed = evened(streams.flatten(-2), eps)
    base, scale = (pass_.vector(f"{name}_{part}.weight") for part in ("base", "scale"))
    return pass_.linear(normed, f"{name}_fn.weight"), base, scale


def _weighed(shares: Floats, streams: Floats) -> Floats:
    return (shares[..., None] * streams).sum(dim=-2)
