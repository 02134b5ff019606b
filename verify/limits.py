"""What a type may cost, by type: the thresholds of a verdict. docs/verification.md says where each comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class TypeLimit:
    """Limits of a ggml type.

    rms    relative RMS error of a tensor
    row    that of any row
    peak   largest error of a block by the block's largest value
    layer  WMAPE of what a layer's attention or whole layer adds, on the same input
    kld    mean Kullback-Leibler divergence of a file of this type, in nats
    """

    rms: float
    row: float
    peak: float
    layer: float
    kld: float


TABLE: Mapping[str, TypeLimit] = {
    "F32": TypeLimit(1e-6, 1e-6, 1e-6, 1e-4, 1e-7),
    "F16": TypeLimit(4e-4, 6e-4, 7e-4, 0.002, 5e-4),
    "BF16": TypeLimit(0.0033, 0.0038, 0.0045, 0.01, 1e-3),
    "Q8_0": TypeLimit(0.012, 0.014, 0.0085, 0.03, 0.004),
    "Q6_K": TypeLimit(0.035, 0.08, 0.22, 0.1, 0.012),
    "Q5_K": TypeLimit(0.065, 0.09, 0.28, 0.18, 0.025),
    "Q5_1": TypeLimit(0.065, 0.09, 0.35, 0.18, 0.025),
    "Q5_0": TypeLimit(0.09, 0.12, 0.35, 0.2, 0.03),
    "Q4_K": TypeLimit(0.125, 0.2, 0.65, 0.4, 0.07),
    "Q4_1": TypeLimit(0.13, 0.2, 0.8, 0.4, 0.07),
    "Q4_0": TypeLimit(0.155, 0.24, 0.6, 0.45, 0.09),
    "IQ4_NL": TypeLimit(0.135, 0.2, 0.55, 0.45, 0.07),
    "IQ4_XS": TypeLimit(0.135, 0.2, 0.55, 0.45, 0.08),
    "MXFP4": TypeLimit(0.17, 0.22, 0.3, 0.5, 0.1),
    "NVFP4": TypeLimit(0.12, 0.15, 0.25, 0.45, 0.09),
    "Q3_K": TypeLimit(0.24, 0.42, 0.8, 0.7, 0.2),
    "IQ3_S": TypeLimit(0.32, 0.45, 1.1, 0.7, 0.25),
    "IQ3_XXS": TypeLimit(0.4, 0.55, 1.7, 0.8, 0.35),
    "Q2_K": TypeLimit(0.42, 0.6, 1.3, 1.0, 0.75),
    "IQ2_S": TypeLimit(0.6, 0.75, 1.5, 1.0, 0.75),
    "IQ2_XS": TypeLimit(0.6, 0.75, 2.3, 1.1, 0.9),
    "IQ2_XXS": TypeLimit(0.72, 0.97, 2.7, 1.2, 1.3),
    "IQ1_M": TypeLimit(0.74, 0.88, 2.6, 1.3, 2.0),
    "IQ1_S": TypeLimit(0.74, 0.88, 2.7, 1.3, 2.4),
    "TQ1_0": TypeLimit(0.9, 0.985, 0.56, 1.9, 6.0),
    "TQ2_0": TypeLimit(0.9, 0.985, 0.56, 1.9, 6.0),
    "Q2_0": TypeLimit(0.85, 0.95, 0.56, 1.9, 6.0),
    "Q1_0": TypeLimit(0.93, 0.96, 1.2, 1.9, 6.0),
}

# Tables of whole numbers, as which experts a token takes: another number is another expert.
NUMBERS: Mapping[str, TypeLimit] = {"I32": TypeLimit(0.0, 0.0, 0.0, 1e-4, 1e-7)}


@dataclass(frozen=True)
class Limits:
    """The limits in force; `settings` are what was changed, as it was given."""

    table: Mapping[str, TypeLimit] = field(default_factory=lambda: TABLE)
    settings: tuple[str, ...] = ()

    def of(self, type_name: str) -> TypeLimit:
        """Return the limits of a type; InputError for one that is not a type of weights."""
        if type_name in NUMBERS:
            return NUMBERS[type_name]
        if type_name not in self.table:
            raise InputError(f"{type_name} is not a type of weights", expected=", ".join(self.table))
        return self.table[type_name]

    def divergence(self, shares: Mapping[str, float]) -> float:
        """Return the limit of the mean divergence of a file in which types have these shares of the values.

        The divergence grows with the square of the weights' errors, and squares of independent errors add up.
        """
        return sum(share * self.of(name).kld for name, share in shares.items())

    def with_settings(self, settings: Iterable[str]) -> Limits:
        """Return these limits with settings like "Q4_K.rms=0.2" or "kld=0.5", which holds for every type."""
        table, settings = dict(self.table), tuple(settings)
        for setting in settings:
            types, name, value = _parse(setting)
            for type_name in types:
                table[type_name] = replace(table[type_name], **{name: value})
        return Limits(table, (*self.settings, *settings))


UNRELATED = 0.985  # what no limit of a row or tensor exceeds: with nothing of the reference in it, it is off by 1


@dataclass(frozen=True)
class Stage:
    """A quantization that values went through; `turned` when its blocks lay along what are the columns now."""

    type: str
    turned: bool = False


def allowed(stages: Iterable[Stage], limits: Limits) -> TypeLimit:
    """Return what several quantizations may cost together.

    Their errors are independent, so squares add up, and so do divergences, which grow with squares; the largest errors
    may meet, and the later one is of a value that the earlier has enlarged already.
    """
    rms, row, peak, layer, kld = 0.0, 0.0, 0.0, 0.0, 0.0
    for limit in (limits.of(stage.type) for stage in stages):
        rms, row, layer = math.hypot(rms, limit.rms), math.hypot(row, limit.row), math.hypot(layer, limit.layer)
        peak, kld = peak + limit.peak * (1 + peak), kld + limit.kld
    return TypeLimit(min(rms, UNRELATED), min(row, UNRELATED), peak, layer, kld)


def exceeds(value: float, limit: float) -> bool:
    """Whether a measure is beyond its limit, as every judge of a proof asks; NaN is, whatever the limit."""
    return not value <= limit


NAMES = tuple(each.name for each in fields(TypeLimit))


def _parse(setting: str) -> tuple[tuple[str, ...], str, float]:
    key, _, number = setting.partition("=")
    type_name, _, name = key.rpartition(".")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if name not in NAMES or (type_name and type_name not in TABLE) or not 0 <= value < math.inf:
        raise InputError(
            "this is not a limit", expected=f"[TYPE.]NAME=NUMBER with NAME {', '.join(NAMES)}", found=repr(setting)
        )
    return (type_name,) if type_name else tuple(TABLE), name, value
