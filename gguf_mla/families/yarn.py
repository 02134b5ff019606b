"""The rotary position keys of an MLA model, and which configurations GGUF cannot express.

YaRN multiplies cos and sin by g(s, mscale) / g(s, mscale_all_dim) and the softmax scale by g(s, mscale_all_dim)², with
g(s, m) = 1 + 0.1·m·ln s. GGUF carries only mscale_all_dim, as `yarn_log_multiplier` = 0.1·mscale_all_dim, and a
deepseek2 reader takes mscale to be equal to it. Source: DeepSeek-V2's and V3's published modelling code.

beta_fast and beta_slow have keys, which llama.cpp (b11549) reads for other architectures than these: it takes 32 and 1,
as DeepSeek has them, unless its user says otherwise. Kimi-K2 has 1 and 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, f32, string, u32

if TYPE_CHECKING:
    from gguf_mla.sources.config import Config


def rope_values(config: Config) -> dict[str, Value]:
    """Return the rope keys without the architecture's prefix; InputError for a rotation GGUF cannot express.

    Reads `rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta`.
    """
    if not config.flag("rope_interleave", default=True):
        raise config.refuse(
            "rope_interleave",
            True,
            False,
            "describes another order of the rotated values, which a deepseek2 file cannot express,",
        )
    scaling = _scaling(config)
    theta = scaling.number("rope_theta", config.number("rope_theta", 10000.0))
    values = {"yarn": _yarn, "linear": _linear}.get(_kind(scaling), _unscaled)(config, scaling)
    return values | {"rope.freq_base": f32(theta)}


def warnings(config: Config) -> list[str]:
    """Return what llama.cpp will compute otherwise unless it is told."""
    scaling = _scaling(config)
    said = {"beta_fast": (32.0, "--yarn-beta-fast"), "beta_slow": (1.0, "--yarn-beta-slow")}
    stated = {key: scaling.number(key) for key in said if _kind(scaling) == "yarn" and scaling.has(key)}
    return [
        f"YaRN's {key} is {value:g} in this model, and the file says so, but llama.cpp takes {said[key][0]:g}; "
        f"run it with {said[key][1]} {value:g}."
        for key, value in stated.items()
        if value != said[key][0]
    ]


def _scaling(config: Config) -> Config:
    return config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")


def _kind(scaling: Config) -> str:
    return scaling.choice("rope_type" if scaling.has("rope_type") else "type", ("yarn", "linear", "default"), "default")


def _unscaled(_config: Config, _scaling: Config) -> dict[str, Value]:
    return {}


def _linear(_config: Config, scaling: Config) -> dict[str, Value]:
    """Return the keys of positions divided by a factor, which change no scale of the attention.

    Readers of these architectures multiply the attention's scale by ((1 + 0.1·ln s)·(1 + 0.1·L·ln s))² whatever the
    kind of scaling, where yarn_log_multiplier is 0.1·L; so it is written as what makes this 1.
    """
    factor = scaling.number("factor")
    if factor < 1.0:
        raise scaling.refuse("factor", "1 or more", factor)
    return {
        "rope.scaling.type": string("linear"),
        "rope.scaling.factor": f32(factor),
        "rope.scaling.yarn_log_multiplier": f32(-0.1 / (1.0 + 0.1 * math.log(factor))),
    }


def _yarn(config: Config, scaling: Config) -> dict[str, Value]:
    original = scaling.positive(
        "original_max_position_embeddings",
        config.positive("original_max_position_embeddings", config.positive("max_position_embeddings")),
    )
    values = {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(scaling.number("factor")),
        "rope.scaling.original_context_length": u32(original),
        "rope.scaling.yarn_log_multiplier": f32(0.1 * _mscale(scaling)),
    }
    for key in ("beta_fast", "beta_slow"):
        if scaling.has(key):
            values[f"rope.scaling.yarn_{key}"] = f32(scaling.number(key))
    return values


def _mscale(scaling: Config) -> float:
    """Return mscale_all_dim; refuse a configuration whose attention scale a reader would not arrive at."""
    for key in ("mscale", "mscale_all_dim"):
        if not scaling.has(key):
            raise scaling.refuse(
                f"rope scaling without {key}",
                "mscale and mscale_all_dim, equal",
                "nothing",
                "has an attention scale that GGUF cannot express",
                _override(scaling),
            )
    mscale, all_dim = scaling.number("mscale"), scaling.number("mscale_all_dim")
    if mscale != all_dim:
        raise scaling.refuse(
            "rope scaling with mscale ≠ mscale_all_dim",
            f"both {all_dim:g}",
            f"mscale {mscale:g} and mscale_all_dim {all_dim:g}",
            "cannot be expressed in GGUF, which has a key for mscale_all_dim alone",
            _override(scaling),
        )
    if scaling.has("attention_factor") and scaling.number("attention_factor") != 1.0:
        raise scaling.refuse(
            "attention_factor",
            1.0,
            scaling.number("attention_factor"),
            "cannot be expressed in GGUF beside mscale_all_dim",
        )
    return all_dim


def _override(scaling: Config) -> str:
    """Return how to convert all the same, and what it costs: the file then has the scales of another model."""
    factor = scaling.number("factor")
    scale = (1.0 + 0.1 * math.log(factor)) ** 2 if factor > 1.0 else 1.0
    return (
        "With --set rope_scaling.mscale=1 --set rope_scaling.mscale_all_dim=1 (rope_parameters where that is its name) "
        f"it is converted as DeepSeek's own models are; attention is then up to {scale:.2f} times as sharp as in the "
        "original, and answers differ"
    )
