"""DeepSeek-V4's attention: to a window of tokens, and to what each so many tokens before were compressed to.

All heads share one key of `head` values, which is also the value; its last `rope` values are turned to its position,
so those of the output are turned back. Each head has a logit of its own in the softmax that nothing belongs to (sink).

A compressed entry is a softmax over the tokens of its window, channel by channel, of gate·x + ape, times kv·x, normed
and turned to its window's first position. At ratio 4 windows overlap: half of the channels belong to the next window.
There an indexer with smaller entries of the same form chooses; at ratio 128 a token sees all that are complete.
Source: the DeepSeek-V4 report and its published modelling code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gguf_mla.forward import rope
from gguf_mla.forward.attention import unseen
from gguf_mla.forward.indexer import Index
from gguf_mla.forward.layers import evened, rms_norm

if TYPE_CHECKING:
    from gguf_mla.forward.arrays import Floats, Mask, Numbers
    from gguf_mla.forward.layers import Pass
    from gguf_mla.forward.model import Linear, Yarn

WINDOW, CSA, HCA = 0, 4, 128  # ratios: no compression, chosen entries, all entries


@dataclass(frozen=True)
class Turning:
    """How a layer turns the last `rope` values of its keys: the base of the angles, and how they are stretched."""

    rope: int
    theta: float
    yarn: Yarn | None
    linear: Linear | None = None

    def turned(self, x: Floats, positions: Numbers) -> Floats:
        """Return x [T, H, d] or [T, d] with the last values of its rows at positions [T]."""
        kept, last = x[..., : -self.rope], x[..., -self.rope :]
        return torch.cat([kept, rope.rotate(last, positions, self)], dim=-1)


@dataclass(frozen=True)
class Shape:
    """What a layer's attention is beside its tensors; `ratio` is how many tokens become an entry."""

    ratio: int
    window: int
    heads: int
    head: int
    groups: int
    index_heads: int
    index_size: int
    top_k: int
    eps: float
    turning: Turning


def low_rank(pass_: Pass, at: str, x: Floats, shape: Shape) -> Floats:
    """Return the normed low-rank queries [..., q_rank], which the indexer reads, too; `at` is "blk.N."."""
    return rms_norm(pass_.linear(x, at + "attn_q_a.weight"), pass_.vector(at + "attn_q_a_norm.weight"), shape.eps)


def attention(pass_: Pass, at: str, x: Floats, low: Floats, chosen: Numbers | None, shape: Shape) -> Floats:
    """Return what normed hidden states [T, hidden] of one sequence attend to, [T, hidden].

    `low` are their low-rank queries, `chosen` the entries that each token may see, [T, K]; None for all.
    """
    count, positions = len(x), torch.arange(len(x), device=x.device)
    q = evened(pass_.linear(low, at + "attn_q_b.weight").reshape(count, shape.heads, shape.head), shape.eps)
    q = shape.turning.turned(q, positions)
    keys = rms_norm(pass_.linear(x, at + "attn_kv.weight"), pass_.vector(at + "attn_kv_a_norm.weight"), shape.eps)
    keys, seen = shape.turning.turned(keys, positions), _in_window(positions, shape.window)
    if shape.ratio:
        entries = compressed(pass_, at + "attn_compressor", x, shape.ratio, shape)
        keys = torch.cat([keys, entries])
        seen = torch.cat([seen, _entries_seen(count, len(entries), chosen, shape.ratio, x.device)], dim=1)
    out = _attended(q, keys, seen, pass_.vector(at + "attn_sinks.weight"))
    return _grouped(pass_, at, shape.turning.turned(out, -positions), shape.groups)


def compressed(pass_: Pass, name: str, x: Floats, ratio: int, shape: Shape) -> Floats:
    """Return the entries that hidden states [T, hidden] are compressed to by `name`_kv and so on, [T/ratio, size]."""
    norm, ape = pass_.vector(f"{name}_norm.weight"), pass_.matrices(f"{name}_ape.weight")[0]
    count = len(x) // ratio
    products = [pass_.linear(x, f"{name}_{part}.weight") for part in ("kv", "gate")]  # the last tokens may be observed
    if not count:
        return x.new_zeros(0, len(norm))
    kv, gate = (product[: count * ratio].unflatten(0, (count, ratio)) for product in products)
    gate = gate + ape
    if ratio == CSA:
        kv, gate = _overlapped(kv, 0.0), _overlapped(gate, -torch.inf)
    entries = rms_norm((kv * gate.softmax(dim=1)).sum(dim=1), norm, shape.eps)
    return shape.turning.turned(entries, torch.arange(count, device=x.device) * ratio)


def _overlapped(x: Floats, nothing: float) -> Floats:
    """Return windows [W, r, 2s] as [W, 2r, s]: the first half of the window before, the second of the window itself."""
    size = x.shape[-1] // 2
    before = torch.cat([torch.full_like(x[:1, :, :size], nothing), x[:-1, :, :size]])
    return torch.cat([before, x[..., size:]], dim=1)


def _entries_seen(tokens: int, count: int, chosen: Numbers | None, ratio: int, device: torch.device) -> Mask:
    """Return which of `count` entries each token sees, bool [T, count]: complete ones, and of those the chosen."""
    complete = (torch.arange(tokens, device=device) + 1) // ratio
    seen = torch.arange(count, device=device) < complete[:, None]
    return seen if chosen is None else seen & ~unseen(chosen, tokens, count)


def index(pass_: Pass, at: str, x: Floats, low: Floats, shape: Shape) -> Index | None:
    """Return what entries at ratio 4 are chosen by, Σ wₕ·relu(qₕ·k) over the indexer's heads; None where there is none.

    The published code turns q and k by a Hadamard matrix and scales the sum by a constant; neither changes the order.
    """
    keys = compressed(pass_, at + "indexer_compressor", x, CSA, shape)
    q = pass_.linear(low, at + "indexer.attn_q_b.weight").reshape(len(x), shape.index_heads, shape.index_size)
    shares = pass_.linear(x, at + "indexer.proj.weight")
    if not len(keys):
        return None
    return Index(shape.turning.turned(q, torch.arange(len(x), device=x.device)), keys, shares, CSA)


def _in_window(positions: Numbers, window: int) -> Mask:
    """Return which tokens each token sees, bool [T, T]: itself and those before it, `window` in all."""
    back = positions[:, None] - positions
    return (back >= 0) & (back < window)


def _attended(q: Floats, keys: Floats, seen: Mask, sinks: Floats) -> Floats:
    """Return the weighted sums of keys [K, d] for queries [T, H, d], [T, H, d]; a head at a time."""
    scale, out = q.shape[-1] ** -0.5, torch.empty_like(q)
    for head in range(q.shape[1]):
        scores = (q[:, head] @ keys.T).mul_(scale).masked_fill_(~seen, -torch.inf)
        with_sink = torch.cat([scores, sinks[head].expand(len(q), 1)], dim=1).softmax(dim=1)
        out[:, head] = with_sink[:, :-1] @ keys
    return out


def _grouped(pass_: Pass, at: str, out: Floats, groups: int) -> Floats:
    """Return the output of heads [T, H, d]: each group of heads by its own rows of one matrix, then all by another."""
    name = at + "attn_output_a.weight"
    matrix, inputs = pass_.matrices(name)[0].unflatten(0, (groups, -1)), out.flatten(1).unflatten(1, (groups, -1))
    if pass_.observe is not None:
        for group in range(groups):
            pass_.observe(name, group, inputs[:, group])
    low = torch.cat([inputs[:, group] @ matrix[group].T for group in range(groups)], dim=1)
    return pass_.linear(low, at + "attn_output_b.weight")
