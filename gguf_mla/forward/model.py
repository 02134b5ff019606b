"""What a model is: its sizes and constants, from config.json or from a GGUF file's metadata.

Both are read from the published definitions, without the converter's rules, so that a mistake there shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

BETA_FAST, BETA_SLOW = 32.0, 1.0
BEST, BEST_TWO = "best", "best two"  # how a group of experts is scored


@dataclass(frozen=True)
class Yarn:
    """Rope scaling of YaRN; what is rotated is multiplied by `rotated`, and the softmax's scale by `softmax`."""

    factor: float
    original: int
    softmax: float = 1.0
    rotated: float = 1.0
    fast: float = BETA_FAST
    slow: float = BETA_SLOW


def growth(factor: float, mscale: float) -> float:
    """Return 1 + 0.1·m·ln s, YaRN's measure of how much attention is to be sharpened; 1 where nothing is stretched."""
    return 1 + 0.1 * mscale * math.log(factor) if factor > 1 else 1.0


@dataclass(frozen=True)
class Linear:
    """Positions divided by `factor`; `scale` multiplies that of the softmax, by what a file's keys say of it."""

    factor: float
    scale: float = 1.0


@dataclass(frozen=True)
class Temperature:
    """Queries that grow with their position t, by 1 + scale·ln(1 + ⌊t / length⌋), as Llama 4's and Mistral's."""

    scale: float
    length: int


@dataclass(frozen=True)
class Routing:
    """How a token's experts are chosen and weighted; a model whose layers are all dense has 0 experts."""

    experts: int
    used: int
    groups: int
    groups_used: int
    score: str
    group_score: str
    normalised: bool
    scale: float
    corrected: bool


@dataclass(frozen=True)
class Indexer:
    """What chooses the tokens that sparse attention reads.

    heads, size  of its queries; all heads share one key of `size` values, whose first `rope` values are rotated
    top_k        how many cached tokens a query attends to
    interleaved  whether it rotates pairs (2i, 2i+1), as GLM's, or (i, i+p/2), as DeepSeek's
    own_layers   whether a layer has one; another uses the choice of the layer before
    fp8          whether queries and keys are rounded as DeepSeek's own code rounds them
    predicting   whether prediction layers have one; otherwise they attend to all tokens
    """

    heads: int
    size: int
    top_k: int
    interleaved: bool
    own_layers: tuple[bool, ...]
    fp8: bool = False
    predicting: bool = True


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes and constants that every architecture has, in the papers' terms; an architecture adds its own.

    architecture  the name of the `Architecture` that computes such models
    q_rank        0 where q is projected directly
    predictors    how many layers of multi-token prediction come after the `layers`
    alone         whether a file holds these without the `layers`, which another file has
    yarn, linear  how positions are stretched over a longer context; at most one of them
    limit         of what experts multiply, as `layers.mlp` takes it; None for none
    """

    architecture: ClassVar[str]

    layers: int
    vocab: int
    hidden: int
    heads: int
    rope: int
    q_rank: int
    ffn: int
    dense_layers: int
    expert_ffn: int
    shared: int
    routing: Routing
    eps: float
    theta: float
    yarn: Yarn | None
    tied: bool
    linear: Linear | None = None
    indexer: Indexer | None = None
    predictors: int = 0
    alone: bool = False
    limit: float | None = None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of a token's state between two layers."""
        return (self.hidden,)

    @property
    def attention_width(self) -> int:
        """About how many values a token takes while attention is computed, all of them at a time."""
        return 2 * self.hidden

    def size(self, name: str, _layer: int | None = None) -> int:
        """Return a tensor dimension by the name it has in the architecture's `Roles`; some are a layer's own."""
        derived = self.derived_sizes()
        return derived[name] if name in derived else int(getattr(self, name))

    def derived_sizes(self) -> dict[str, int]:
        """Return the dimensions that are not fields but made of them."""
        derived = {
            "experts": self.routing.experts,
            "shared_ffn": self.shared * self.expert_ffn,
            "2 hidden": 2 * self.hidden,
        }
        if self.indexer is not None:
            heads, size = self.indexer.heads, self.indexer.size
            derived |= {"index_heads": heads, "index_size": size, "index_rows": heads * size}
        return derived

    def attention_products(self, tokens: int) -> int:
        """Return how many products the attention of a layer adds up, one after the other, over so many tokens."""
        return self.hidden + self.q_rank + tokens

    def impossible(self) -> Iterator[tuple[str, str, object]]:
        """Yield sizes and constants that cannot be computed with: what, what would be possible, what is there."""
        routing, yarn = self.routing, self.yarn
        if self.rope % 2:
            yield "values of a key that are rotated in pairs", "an even number", self.rope
        if not self.theta > 1:
            yield "the base of the rotation's angles", "more than 1", self.theta
        if not self.eps >= 0:
            yield "the epsilon of its norms", "0 or more", self.eps
        if yarn is not None and not min(yarn.factor, yarn.fast, yarn.slow) > 0:
            yield "YaRN's factor, beta_fast and beta_slow", "numbers above zero", [yarn.factor, yarn.fast, yarn.slow]
        if self.linear is not None and not self.linear.factor > 0:
            yield "the factor that positions are divided by", "a number above zero", self.linear.factor
        if self.indexer is not None and not self.indexer.own_layers[0]:
            yield "the first layer's choice of tokens", "an indexer of its own", "that of the layer before"
        if not 0 < routing.groups_used <= routing.groups or routing.experts % routing.groups:
            yield (
                "expert groups",
                f"a divisor of {routing.experts} experts, not below the {routing.groups_used} that are used",
                routing.groups,
            )
        elif routing.experts and not 0 < routing.used <= routing.experts // routing.groups * routing.groups_used:
            yield "experts of a token", f"at most those of {routing.groups_used} groups", routing.used

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one MLP instead of experts."""
        return layer < self.dense_layers or not self.routing.experts

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has an indexer of its own."""
        if self.indexer is None:
            return False
        return self.indexer.predicting if layer >= self.layers else self.indexer.own_layers[layer]

    def attends_to_all(self, layer: int) -> bool:
        """Whether a layer attends to all tokens, not to those that an indexer chooses, its own or one before it."""
        return self.indexer is None or (layer >= self.layers and not self.indexer.predicting)

    @property
    def blocks(self) -> int:
        """The number of layers with those of multi-token prediction."""
        return self.layers + self.predictors


@dataclass(frozen=True, kw_only=True)
class MlaModel(Model):
    """A model with multi-head latent attention.

    `latent_eps` is that of the norms of the compressed q and kv; `temperature` is how queries grow, None where not.
    """

    architecture: ClassVar[str] = "mla"

    nope: int
    value: int
    kv_rank: int
    latent_eps: float
    temperature: Temperature | None = None

    def impossible(self) -> Iterator[tuple[str, str, object]]:
        """Yield what cannot be computed with."""
        if self.nope < 1:
            yield "values of a key that are not rotated", "one or more", self.nope
        yield from super().impossible()

    @property
    def attention_width(self) -> int:
        """About how many values a token takes, queries, keys and outputs of all heads."""
        return super().attention_width + 2 * self.heads * (self.nope + self.rope + self.value)

    def attention_products(self, tokens: int) -> int:
        """Return how many products the attention of a layer adds up: queries, keys, scores, values, output."""
        scores = self.kv_rank + self.nope + self.rope
        return super().attention_products(tokens) + scores + self.heads * self.value

    def derived_sizes(self) -> dict[str, int]:
        """Return the dimensions that are not fields but made of them."""
        return super().derived_sizes() | {
            "nope+rope": self.nope + self.rope,
            "q_rows": self.heads * (self.nope + self.rope),
            "kv_rank+rope": self.kv_rank + self.rope,
            "kv_b_rows": self.heads * (self.nope + self.value),
            "o_cols": self.heads * self.value,
        }

    @property
    def softmax_scale(self) -> float:
        """(n+p)^-1/2, times what the scaling of positions makes of it. Source: DeepSeek-V3's modelling code."""
        scale = 1 / math.sqrt(self.nope + self.rope)
        if self.linear is not None:
            return scale * self.linear.scale
        return scale if self.yarn is None else scale * self.yarn.softmax
