"""The MLA model that a GGUF file's metadata describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import LAYERS, shown
from gguf_mla.forward.model import (
    BEST,
    BEST_TWO,
    BETA_FAST,
    BETA_SLOW,
    Indexer,
    Linear,
    MlaModel,
    Routing,
    Temperature,
    Yarn,
    growth,
)
from gguf_mla.layout.names import lacks_first_layer

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import PurePath

    from gguf_mla.container.reader import GgufFile


SOFTMAX, SIGMOID = 1, 2
GATES = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}
GLM_FLASH_LAYERS, GLM_VOCABULARY = (47, 48), 154880  # by which llama.cpp knows GLM-4.7-Flash
# The architectures with an indexer: whether it rotates neighbouring pairs, which no key says.
INTERLEAVED = {"deepseek32": False, "glm-dsa": True}
MLA_SCALED = ("deepseek2",)  # the architectures whose readers take mscale for mscale_all_dim, not for 1


def model_of_gguf(file: GgufFile) -> MlaModel:
    """Return the model that a file of the family describes, as a reader of the file takes it.

    The file says neither how groups are scored nor whether mscale differs from mscale_all_dim: a softmax router's
    groups count by their best expert (V2), a sigmoid router's by their best two (V3), and the two scales are the same.
    """
    keys = Keys(file.metadata, file.path, file.tensors)
    width, rope = keys.integer("attention.key_length_mla", "attention.key_length"), keys.integer("rope.dimension_count")
    eps = keys.number("attention.layer_norm_rms_epsilon")
    blocks, predictors = keys.blocks(), keys.count("nextn_predict_layers", 0)
    if predictors >= blocks:
        raise keys.refuse("nextn_predict_layers", f"less than the {blocks} layers of block_count", predictors)
    layers, routing = blocks - predictors, _gguf_routing(keys, blocks - predictors)
    asked = keys.integer if routing.experts else keys.whole  # where no layer has experts, nothing is done with it
    return MlaModel(
        layers=layers,
        vocab=keys.length("tokenizer.ggml.tokens") or keys.integer("vocab_size"),
        hidden=keys.integer("embedding_length"),
        heads=keys.integer("attention.head_count"),
        nope=width - rope,
        rope=rope,
        value=keys.integer("attention.value_length_mla", "attention.value_length"),
        kv_rank=keys.integer("attention.kv_lora_rank"),
        q_rank=keys.count("attention.q_lora_rank", 0),
        ffn=keys.integer("feed_forward_length"),
        dense_layers=keys.count("leading_dense_block_count", 0),
        expert_ffn=asked("expert_feed_forward_length"),
        shared=asked("expert_shared_count"),
        routing=routing,
        eps=eps,
        latent_eps=eps,
        temperature=_gguf_temperature(keys),
        theta=keys.number("rope.freq_base"),
        yarn=_gguf_yarn(keys),
        linear=_gguf_linear(keys),
        tied="output.weight" not in file.tensors,
        indexer=_gguf_indexer(keys, layers),
        predictors=predictors,
        alone=keys.alone,
    )


def _gguf_indexer(keys: Keys, layers: int) -> Indexer | None:
    architecture = keys.metadata.get("general.architecture")
    if architecture not in INTERLEAVED:
        return None
    size = keys.integer("attention.indexer.key_length")
    if size & (size - 1) or size < keys.integer("rope.dimension_count"):
        raise keys.refuse("attention.indexer.key_length", "a power of two, not below rope.dimension_count", size)
    types = keys.get("attention.indexer.types")
    default = _own_indexers(keys.names, layers) if INTERLEAVED[architecture] else [True] * layers
    own = default if types is None else types if isinstance(types, list) else [types]
    if len(own) != layers or not own[0] or not {type(entry) for entry in own} <= {bool, int}:
        raise keys.refuse("attention.indexer.types", f"true and {layers - 1} truth values", own)
    return Indexer(
        heads=keys.integer("attention.indexer.head_count"),
        size=size,
        top_k=keys.integer("attention.indexer.top_k"),
        interleaved=INTERLEAVED[architecture],
        own_layers=tuple(map(bool, own)),
        predicting=f"blk.{layers}.indexer.attn_k.weight" in keys.names,
    )


def _own_indexers(names: Container[str], layers: int) -> list[bool]:
    """Return which layers have an indexer by its tensors, as readers do of a file that does not list them."""
    return [f"blk.{layer}.indexer.attn_k.weight" in names for layer in range(layers)]


def _default_gate(keys: Keys, layers: int) -> int:
    """Return what llama.cpp takes for a missing expert_gating_func: softmax, and sigmoid for GLM's models."""
    glm_flash = layers in GLM_FLASH_LAYERS and keys.length("tokenizer.ggml.tokens") == GLM_VOCABULARY
    return SIGMOID if glm_flash or keys.metadata.get("general.architecture") == "glm-dsa" else SOFTMAX


def _gguf_routing(keys: Keys, layers: int) -> Routing:
    gate = keys.count("expert_gating_func", _default_gate(keys, layers))
    if gate not in GATES:
        raise keys.refuse("expert_gating_func", "1 (softmax) or 2 (sigmoid)", gate)
    experts = keys.count("expert_count", 0)
    return Routing(
        experts=experts,
        used=keys.integer("expert_used_count") if experts else keys.count("expert_used_count", 0),
        groups=keys.count("expert_group_count", 1),
        groups_used=keys.count("expert_group_used_count", 1),
        score=GATES[gate],
        group_score=BEST_TWO if GATES[gate] == "sigmoid" else BEST,
        normalised=keys.flag("expert_weights_norm"),
        scale=keys.number("expert_weights_scale", 1.0) or 1.0,
        corrected=any(name.endswith("exp_probs_b.bias") for name in keys.names),
    )


def _gguf_temperature(keys: Keys) -> Temperature | None:
    """Return how queries grow; llama.cpp ends where a file states the scale without the length."""
    scale, length = keys.number("attention.temperature_scale", 0.0), keys.whole("attention.temperature_length")
    if scale and not length:
        raise keys.refuse("attention.temperature_scale", "temperature_length beside it", scale)
    return Temperature(scale, length) if scale else None


def _gguf_linear(keys: Keys) -> Linear | None:
    """Return how positions are divided, which is also done where a file states a factor and no kind of scaling.

    Readers multiply the softmax's scale by ((1 + 0.1·ln s)·(1 + m·ln s))², m = yarn_log_multiplier, whatever the kind.
    """
    factor = keys.number("rope.scaling.factor", 1.0) or 1.0
    if keys.get("rope.scaling.type", "linear") != "linear" or factor == 1:
        return None
    if factor < 0:
        raise keys.refuse("rope.scaling.factor", "a number above zero", factor)
    stretch = math.log(factor)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    root = (1 + 0.1 * stretch) * (1 + multiplier * stretch)
    return Linear(factor, _square(keys, "rope.scaling.yarn_log_multiplier", root))


def _gguf_yarn(keys: Keys) -> Yarn | None:
    if keys.get("rope.scaling.type", "none") != "yarn":
        return None
    factor = keys.number("rope.scaling.factor")
    rotated, root = _yarn_scales(keys, factor)
    return Yarn(
        factor=factor,
        original=keys.integer("rope.scaling.original_context_length"),
        softmax=_square(keys, "rope.scaling.attn_factor", root),
        rotated=rotated,
        fast=keys.number("rope.scaling.yarn_beta_fast", BETA_FAST),
        slow=keys.number("rope.scaling.yarn_beta_slow", BETA_SLOW),
    )


def _yarn_scales(keys: Keys, factor: float) -> tuple[float, float]:
    """Return what readers multiply cos and sin by, and the root of what they multiply the softmax's scale by.

    mscale has no key: it is taken for 1, and in deepseek2 for mscale_all_dim.
    """
    all_dim = keys.number("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    root = growth(factor, all_dim)
    if root <= 0:
        raise keys.refuse("rope.scaling.yarn_log_multiplier", "a number that leaves attention a scale", all_dim / 10)
    follows = keys.metadata.get("general.architecture") in MLA_SCALED and all_dim
    rotated = 1.0 if follows else growth(factor, 1.0) / root
    rotated *= keys.number("rope.scaling.attn_factor", 1.0)
    return rotated, rotated * root


def _square(keys: Keys, name: str, root: float) -> float:
    """Return the square of a scale that a key makes what it is."""
    if not math.isfinite(root * root):  # ** raises where * does not
        raise keys.refuse(name, "a number that leaves attention a scale", root)
    return root * root


class KeyRefusedError(InputError):
    """A metadata key that does not describe a model; `key` is its full name."""

    def __init__(self, key: str, file: PurePath, expected: object, found: object) -> None:
        self.key = key
        super().__init__(f"{key} cannot be used", file=file, expected=expected, found=found)


@dataclass(frozen=True)
class Keys:
    """A file's metadata, asked for by type, and its tensors' `names`; keys without a section are the architecture's."""

    metadata: Mapping[str, Any]
    file: PurePath
    names: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, `default` where the key is absent."""
        return self.metadata.get(self._full(key), default)

    def integer(self, *keys: str) -> int:
        """Return the first of some keys that is there; it has to be a positive whole number."""
        value = next((found for key in keys if (found := self.get(key)) is not None), None)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise self.refuse(keys[0], "a positive whole number", value)
        return value

    @property
    def alone(self) -> bool:
        """Whether the file holds multi-token prediction without the model's own layers."""
        return self.count("nextn_predict_layers", 0) > 0 and lacks_first_layer(self.names)

    def blocks(self) -> int:
        """Return how many layers there are, refused before lists of that length are made: each has some tensors."""
        blocks = self.integer("block_count")
        if blocks > LAYERS:
            raise self.refuse("block_count", f"at most {LAYERS}, more than any model has", blocks)
        if blocks > len(self.names) and not self.alone:
            raise self.refuse("block_count", f"at most {len(self.names)}, the number of tensors", blocks)
        return blocks

    def count(self, key: str, default: int) -> int:
        """Return a whole number, `default` where the key is absent."""
        value = self.get(key, default)
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise self.refuse(key, "a whole number", value)
        return value

    def whole(self, key: str) -> int:
        """Return a whole number, 0 where the key is absent."""
        return self.count(key, 0)

    def flag(self, key: str) -> bool:
        """Return a truth value, false where the key is absent."""
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false", value)
        return value

    def length(self, key: str) -> int:
        """Return how many entries an array has, 0 where the key is absent."""
        value = self.get(key, ())
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.refuse(key, "an array", value)
        return len(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, `default` where the key is absent."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.refuse(key, "a number", value)
        return float(value)

    def refuse(self, key: str, expected: object, found: object) -> KeyRefusedError:
        """Return the error for a key."""
        said = "nothing" if found is None else shown(found) if isinstance(found, (list, tuple)) else found
        return KeyRefusedError(self._full(key), self.file, expected, said)

    def _full(self, key: str) -> str:
        return key if key.startswith("tokenizer.") else f"{self.metadata.get('general.architecture')}.{key}"
