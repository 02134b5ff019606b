"""What layers of every architecture are made of: products, norms, routing, experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear, silu, softplus

from gguf_mla.forward.attention import FORMS, Form
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.model import BEST_TWO
from gguf_mla.forward.place import CPU, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gguf_mla.forward.arrays import Floats, Ids, Numbers
    from gguf_mla.forward.model import Model, Routing
    from gguf_mla.forward.tensors import Weights

Observer = Callable[[str, int, "Floats"], object]
"""Is told of a product: the tensor's name, which matrix of it (head or expert), the rows [N, cols], where they lie."""


@dataclass(frozen=True)
class Pass:
    """One pass of some tokens through a model: all that its layers need beside their state.

    weights  the model's tensors
    form     how latent attention is computed
    chooser  carries the choices of sparse attention from layer to layer
    observe  is told of every product with a stored matrix, whose name is the one asked for: tied output weights are
             "output.weight". Vanilla forms multiply attn_k_b from its other side and refuse to be observed
    place    where it computes, and with how many threads it reads
    kept     what was read, by tensor and matrix, where it is kept for more products (`keeping`)
    """

    weights: Weights
    form: Form = FORMS["vanilla"]
    chooser: Chooser = field(default_factory=Chooser)
    observe: Observer | None = None
    place: Place = CPU
    kept: dict[tuple[str, int], list[tuple[int, Floats]]] | None = None

    @property
    def model(self) -> Model:
        """What the weights are of."""
        return self.weights.model

    def keeping(self) -> Pass:
        """Return this pass with a memory: what it reads stays there until it is dropped, so that it is read once."""
        return replace(self, kept={})

    def vector(self, name: str) -> Floats:
        """Return a stored vector, float32 [cols]."""
        ((_, rows),) = self._read(name, 0)
        return rows[0]

    def matrices(self, name: str) -> Floats:
        """Return a whole stack, float32 [count, rows, cols]: a form of attention's, of its heads."""
        if self.kept is None:
            return self.place.all(self.weights.stack(name))
        if (name, ALL) not in self.kept:
            self.kept[name, ALL] = [(0, self.place.all(self.weights.stack(name)))]
        return self.kept[name, ALL][0][1]

    def linear(self, x: Floats, name: str, index: int = 0) -> Floats:
        """Return x·Wᵀ for x [..., cols] and one matrix of a stored stack, [..., rows]."""
        pieces = [piece for _, piece in self.pieces(x, name, index)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def pieces(self, x: Floats, name: str, index: int = 0) -> Iterator[tuple[int, Floats]]:
        """Yield x·Wᵀ in pieces, reading W in pieces: the first row of W, [..., rows].

        All products with stored matrices are here, but those of `part` and of a form of attention with its heads'.
        """
        if self.observe is not None:
            self.observe(name, index, x.reshape(-1, x.shape[-1]))
        for start, rows in self._read(name, index):
            yield start, linear(x, rows)

    def cuts(self, name: str) -> Iterator[slice]:
        """Yield the rows of a matrix that are read at a time, for `part`."""
        return self.place.cuts(self.weights.stack(name))

    def part(self, x: Floats, name: str, rows: slice) -> Floats:
        """Return x·Wᵀ for some rows of a matrix, [..., rows]; any number of threads may ask. It is not observed."""
        return linear(x, self.place.rows(self.weights.stack(name), 0, rows.start, rows.stop))

    def _read(self, name: str, index: int) -> Iterable[tuple[int, Floats]]:
        """Return one matrix of a stored stack in pieces: first row, rows."""
        if self.kept is None:
            return self.place.chunks(self.weights.stack(name), index)
        if (name, index) not in self.kept:
            self.kept[name, index] = list(self.place.chunks(self.weights.stack(name), index))
        return self.kept[name, index]


ALL = -1  # the number under which `Pass.kept` has a whole stack


def lookup(pass_: Pass, table: str, tokens: Ids) -> Floats:
    """Return the rows of a table of embeddings for tokens [...], float32 [..., hidden]."""
    stack = pass_.weights.stack(table)
    unique, where = pass_.place.ids(tokens).unique(return_inverse=True)
    return torch.cat([pass_.place.rows(stack, 0, token, token + 1) for token in unique.tolist()])[where]


def feed_forward(pass_: Pass, layer: int, hidden: Floats) -> Floats:
    """Return what the MLP or the experts of a layer add to hidden states [B, T, hidden]."""
    model, at = pass_.model, f"blk.{layer}."
    x = rms_norm(hidden, pass_.vector(at + "ffn_norm.weight"), model.eps)
    flat = x.reshape(-1, model.hidden)
    if model.is_dense(layer):
        return mlp(pass_, at, "", flat).reshape(x.shape)
    return (_experts(pass_, at, flat) + mlp(pass_, at, "_shexp", flat)).reshape(x.shape)


def _experts(pass_: Pass, at: str, x: Floats) -> Floats:
    """Return the weighted sum of every token's experts, [N, hidden]; every expert is read once."""
    return mixed(pass_, at, x, *routed(pass_, at, x))


def routed(pass_: Pass, at: str, x: Floats) -> tuple[Numbers, Floats]:
    """Return the experts that a layer's router chooses for tokens x [N, hidden], and their weights, [N, K]."""
    routing = pass_.model.routing
    logits = pass_.linear(x, at + "ffn_gate_inp.weight")
    bias = pass_.vector(at + "exp_probs_b.bias") if routing.corrected else torch.zeros((), device=x.device)
    return route(logits, bias, routing)


def mixed(pass_: Pass, at: str, x: Floats, chosen: Numbers, shares: Floats, limit: float | None = None) -> Floats:
    """Return the sum of the experts that tokens x [N, hidden] have chosen, weighted by shares [N, K], [N, hidden].

    Every expert is read once, for all tokens that have chosen it; `limit` is explained at `mlp`.
    """
    out, used, weights = torch.zeros_like(x), chosen.shape[1], shares.flatten()
    places = chosen.flatten().argsort(stable=True).split(chosen.flatten().bincount().tolist())

    def computed(expert: int) -> Floats:
        of_it = places[expert]
        return mlp(pass_, at, "_exps", x[of_it // used], expert, limit) * weights[of_it, None]

    asked = [expert for expert, of_it in enumerate(places) if len(of_it)]
    added = pass_.place.side_by_side(computed, asked) if pass_.observe is None else map(computed, asked)
    for expert, rows in zip(asked, added, strict=True):
        out[places[expert] // used] += rows
    return out


def route(logits: Floats, bias: Floats, routing: Routing) -> tuple[Numbers, Floats]:
    """Return every token's experts and their weights, [N, K], for router logits [N, E].

    The bias decides only who is chosen; the weights are of the scores without it.
    """
    scored = scores(logits, routing)
    chosen = choose(scored + bias, routing)
    return chosen, shares(scored, chosen, routing)


SCORES: dict[str, Callable[[Floats], Floats]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": lambda logits: logits.sigmoid(),
    "sqrtsoftplus": lambda logits: softplus(logits).sqrt(),
}


def scores(logits: Floats, routing: Routing) -> Floats:
    """Return the scores of experts, [N, E], for router logits [N, E]."""
    return SCORES[routing.score](logits)


def shares(scored: Floats, chosen: Numbers, routing: Routing) -> Floats:
    """Return the weights of the chosen experts, [N, K], for scores [N, E]."""
    found = scored.gather(1, chosen)
    if routing.normalised:
        found = found / (found.sum(dim=1, keepdim=True) + 1e-20)
    return found * routing.scale


def choose(select: Floats, routing: Routing) -> Numbers:
    """Return every token's experts [N, K], the best first, for scores [N, E] to choose by.

    Only the best `groups_used` of `groups` equal groups may be chosen from; a group counts by the sum of its best two
    experts, or by its best.
    """
    grouped = select.unflatten(1, (routing.groups, -1))
    best = largest(grouped, 2 if routing.group_score == BEST_TWO and grouped.shape[2] > 1 else 1)
    kept = largest(grouped.gather(2, best).sum(dim=2), routing.groups_used)
    barred = torch.ones_like(grouped[:, :, 0], dtype=torch.bool).scatter_(1, kept, value=False)
    return largest(grouped.masked_fill(barred[:, :, None], -torch.inf).flatten(1), routing.used)


def largest(x: Floats, count: int) -> Numbers:
    """Return the places of the largest values along the last axis, of equals the first first, as topk may not."""
    return x.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def mlp(pass_: Pass, at: str, suffix: str, x: Floats, index: int = 0, limit: float | None = None) -> Floats:
    """Return down(silu(gate x) · up x) of rows [N, hidden]; suffix: "", "_exps" or "_shexp".

    `limit` is the largest that gate x may be, and up x on both sides of zero; larger values are cut.
    """
    gate, up, down = (f"{at}ffn_{part}{suffix}.weight" for part in ("gate", "up", "down"))
    opened, passed = pass_.linear(x, gate, index), pass_.linear(x, up, index)
    if limit is not None:
        opened, passed = opened.clamp_(max=limit), passed.clamp_(-limit, limit)
    return pass_.linear(silu(opened, inplace=True).mul_(passed), down, index)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Return x / √(mean x² + eps) · weight over the last axis."""
    return evened(x, eps).mul_(weight)


def evened(x: Floats, eps: float) -> Floats:
    """Return x / √(mean x² + eps) over the last axis, a norm without a weight."""
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps)
