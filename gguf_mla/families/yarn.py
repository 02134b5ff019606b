"""The rotary position keys of an MLA model, and which configurations GGUF cannot express.

YaRN multiplies cos and sin by r = g(s, mscale) / g(s, mscale_all_dim), without these keys by r = g(s, 1), and the
softmax scale by k² = g(s, mscale_all_dim)², without by 1, with g(s, m) = 1 + 0.1·m·ln s. Source: DeepSeek-V2's and V3's
published modelling code, and transformers', whose attention_factor is r itself.

GGUF has `yarn_log_multiplier` for 0.1·mscale_all_dim, and `attn_factor`, a number that readers multiply r with. Given l
and a, a reader of deepseek2 (llama.cpp) arrives at r = a and k = a·(1 + l·ln s); one of the others, which takes mscale
for 1, at k = a·g(s, 1) and r = k / (1 + l·ln s). So whatever r and k are, l = (k/r - 1) / ln s. Of published models a
is 1.

beta_fast and beta_slow have keys, which llama.cpp (b11549) reads for other architectures than these: it takes 32 and 1,
as DeepSeek has them, unless its user says otherwise. Kimi-K2 has 1 and 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gguf_mla.container.values import Value, f32, string, u32

if TYPE_CHECKING:
    from gguf_mla.sources.config import Config

LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
GROWING = ("deepseek2", "mistral4")  # whose readers let queries grow with their position
TAKE_ONE = ("deepseek32", "glm-dsa", "mistral4")  # whose readers take mscale for 1


def rope_values(config: Config, architecture: str) -> dict[str, Value]:
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
    kind, values = _kind(scaling), dict[str, Value]()
    if kind == "yarn":
        values = _yarn(config, scaling, takes_one=architecture in TAKE_ONE)
    elif kind == "linear":
        values = _linear(scaling)
    return values | {"rope.freq_base": f32(theta)} | _temperature(config, scaling, architecture)


def _temperature(config: Config, scaling: Config, architecture: str) -> dict[str, Value]:
    """Return the keys of queries that grow with their position t, by 1 + β·ln(1 + ⌊t / L⌋); none where they do not.

    Llama 4 and the Mistrals with latent attention have them: as `llama_4_scaling_beta` beside YaRN's L, or, in
    Mistral's own configurations, as `llama_4_scaling`. llama.cpp's converter leaves them out of mistral4 files, which
    are wrong beyond the first L tokens.
    """
    own = config.section("llama_4_scaling")
    beta = own.number("beta", scaling.number("llama_4_scaling_beta", 0.0))
    if not beta:
        return {}
    if architecture not in GROWING:
        raise config.refuse("llama_4_scaling", "none", beta, f"is not what readers of {architecture} files know,")
    key = "original_max_position_embeddings"
    length = own.positive(key) if own.has(key) else scaling.positive(key)
    return {"attention.temperature_scale": f32(beta), "attention.temperature_length": u32(length)}


def warnings(config: Config) -> list[str]:
    """Return what llama.cpp will compute otherwise unless it is told."""
    scaling = _scaling(config)
    said = {"beta_fast": (32.0, "--yarn-beta-fast"), "beta_slow": (1.0, "--yarn-beta-slow")}
    stated = {key: scaling.number(key) for key in said if _kind(scaling) == "yarn" and scaling.has(key)}
    found = [_on_scales()] if _kind(scaling) == "yarn" and _rotated(scaling) != 1.0 else []
    return found + [
        f"YaRN's {key} is {value:g} in this model, and the file says so, but llama.cpp takes {said[key][0]:g}; "
        f"run it with {said[key][1]} {value:g}."
        for key, value in stated.items()
        if value != said[key][0]
    ]


def _on_scales() -> str:
    return (
        "YaRN's scales of attention are not those of DeepSeek's models; they are written as rope.scaling.attn_factor "
        "and yarn_log_multiplier, from which llama.cpp (b11434) arrives at them. A reader that ignores the first "
        "computes another model."
    )


def _scaling(config: Config) -> Config:
    return config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")


def _kind(scaling: Config) -> str:
    return scaling.choice("rope_type" if scaling.has("rope_type") else "type", ("yarn", "linear", "default"), "default")


def _linear(scaling: Config) -> dict[str, Value]:
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


def _yarn(config: Config, scaling: Config, *, takes_one: bool) -> dict[str, Value]:
    original = scaling.positive(
        "original_max_position_embeddings",
        config.positive("original_max_position_embeddings", config.positive("max_position_embeddings")),
    )
    values = {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(scaling.number("factor")),
        "rope.scaling.original_context_length": u32(original),
        **_scales(scaling, takes_one=takes_one),
    }
    for key in ("beta_fast", "beta_slow"):
        if scaling.has(key):
            values[f"rope.scaling.yarn_{key}"] = f32(scaling.number(key))
    return values


def _scales(scaling: Config, *, takes_one: bool) -> dict[str, Value]:
    """Return the keys from which a reader arrives at the scales of the rotation and of the softmax."""
    stretch = math.log(max(1.0, scaling.number("factor")))
    all_dim = scaling.number("mscale_all_dim", 0.0)
    rotated, root = _rotated(scaling), 1.0 + 0.1 * all_dim * stretch
    is_usual = bool(all_dim) and not (takes_one and all_dim != 1.0)  # a reader that sees 0 takes mscale for 1
    if rotated == 1.0 and (is_usual or not stretch):
        return {LOG_MULTIPLIER: f32(0.1 * all_dim)}
    if not stretch:
        raise scaling.refuse("factor", "more than 1", scaling.number("factor"), "cannot stand beside attention_factor")
    multiplier = (root / rotated - 1.0) / stretch
    whole = 1.0 + 0.1 * stretch
    factor = root / whole if takes_one or not multiplier else rotated
    return {LOG_MULTIPLIER: f32(multiplier), "rope.scaling.attn_factor": f32(factor)}


def _rotated(scaling: Config) -> float:
    """Return what cos and sin are multiplied by; InputError where DeepSeek's code and transformers differ on it."""
    stretch = math.log(max(1.0, scaling.number("factor")))

    def scale(mscale: float) -> float:
        return 1.0 + 0.1 * mscale * stretch

    mscale, all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if min(scale(mscale), scale(all_dim), scaling.number("attention_factor", 1.0)) <= 0:
        raise scaling.refuse("rope scaling", "scales of attention above zero", "one that is not")
    here = scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
    there = scale(scaling.number("mscale", 1.0)) / scale(all_dim)
    factor = scaling.number("attention_factor", here)
    if not math.isclose(here, there, rel_tol=1e-6):
        raise scaling.refuse(
            "rope scaling with one of mscale and mscale_all_dim, or with 0,",
            "both, or neither",
            f"mscale {_shown(scaling, 'mscale')} and mscale_all_dim {_shown(scaling, 'mscale_all_dim')}",
            "is read in two ways, by transformers and by DeepSeek's own code",
            "Say which: --set rope_scaling.mscale=1 --set rope_scaling.mscale_all_dim=1 is what DeepSeek's models "
            "have, null for both what other programs write (rope_parameters where that is its name)",
        )
    if (mscale or all_dim) and not math.isclose(factor, here, rel_tol=1e-6):
        raise scaling.refuse(
            "attention_factor",
            f"{here:g}, or none",
            factor,
            "contradicts mscale and mscale_all_dim",
            "Say which counts: --set rope_scaling.attention_factor=null, or null for the other two",
        )
    return factor


def _shown(scaling: Config, key: str) -> str:
    return f"{scaling.number(key):g}" if scaling.has(key) else "missing"
