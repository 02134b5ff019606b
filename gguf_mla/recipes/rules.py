"""The table: role of a tensor × file type → type, with conditions.

The first rule whose conditions hold decides; without one a tensor gets the file type's default. The facts are
llama-quantize's (b11434) for the DeepSeek architectures, without its branches for Falcon and Llama 70B.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_mla.errors import InputError
from gguf_mla.layout.names import split_name
from gguf_mla.recipes.file_types import FILE_TYPES
from gguf_mla.recipes.roles import TensorRole

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.recipes.model import RecipeModel


@dataclass(frozen=True)
class Facts:
    """What a condition may ask about a tensor.

    name            the tensor's name
    count, of       how many tensors of its role were decided before it; how many there are (layers, for ffn tensors)
    fits            its rows are whole blocks of the file type's default
    stacked         it is one matrix per expert or head
    has_importance  an importance file was given, whatever it contains
    compat          llama-quantize's very choice is wanted
    """

    name: str
    model: RecipeModel
    count: int
    of: int
    fits: bool
    stacked: bool
    has_importance: bool
    compat: bool

    @property
    def layer(self) -> int:
        """The layer, by name where there are experts and by counting where there are none, as llama-quantize has it."""
        if self.model.experts <= 1:
            return self.count
        layer, _ = split_name(self.name)
        if layer is None or layer >= self.of:
            expected = f"blk.0. to blk.{self.of - 1}. as the metadata counts layers"
            raise InputError("the name tells no layer of this model", tensor=self.name, expected=expected)
        return layer


@dataclass(frozen=True)
class Condition:
    """`text` follows the role's name in a reason."""

    text: str
    holds: Callable[[Facts], bool]


@dataclass(frozen=True)
class TypeRule:
    """Tensors of `roles` get `type` in files of `targets` where all conditions hold."""

    roles: frozenset[TensorRole]
    targets: frozenset[str]
    type: str
    conditions: tuple[Condition, ...]

    def reason(self, facts: Facts, role: TensorRole) -> str | None:
        """Return the words for the table if the rule applies."""
        if all(condition.holds(facts) for condition in self.conditions):
            return " ".join([role.value, *(condition.text for condition in self.conditions)])
        return None


def _more(layer: int, of: int) -> bool:
    return layer < of // 8 or layer >= 7 * of // 8 or (layer - of // 8) % 3 == 2


MISFIT = Condition("whose rows do not fit the default", lambda p: not p.fits)
SHARED_KEYS = Condition("where 4 heads or more share a key", lambda p: p.model.heads_per_key >= 4)
FOUR_EXPERTS = Condition("with 4 experts or more", lambda p: p.model.experts >= 4)
EIGHT_EXPERTS = Condition("with exactly 8 experts", lambda p: p.model.experts == 8)
NOT_EIGHT = Condition("with other than 8 experts", lambda p: p.model.experts != 8)
IMPORTANCE = Condition("with importance", lambda p: p.has_importance)
NO_IMPORTANCE = Condition("without importance", lambda p: not p.has_importance)
FIRST_EIGHTH = Condition("in the first eighth", lambda p: p.layer < p.of // 8)
FIRST_SIXTEENTH = Condition("in the first sixteenth", lambda p: p.layer < p.of // 16)
MIDDLE = Condition("in the middle three quarters", lambda p: p.of // 8 <= p.layer < 7 * p.of // 8)
MORE = Condition("in the first or last eighth or every third layer", lambda p: _more(p.layer, p.of))
COUNTED_FIRST = Condition("among the first layers / 8 of them", lambda p: p.count < p.of // 8)
COUNTED_MORE = Condition("among the first or last eighth or every third", lambda p: _more(p.count, p.of))
FIRST_TWO = Condition("among the first two", lambda p: p.count < 2)
FIRST_FOUR = Condition("among the first four", lambda p: p.count < 4)
STACKED = Condition("of three dimensions", lambda p: p.stacked)
EXPERTS = Condition("of stacked experts", lambda p: p.stacked)
AS_LLAMA_CPP = Condition("as in llama.cpp", lambda p: p.compat)
# Rows are looked up, and a collector sees products: with the file type's default a file of few bits could not be made.
UNMEASURED = Condition("which have no importance", lambda p: not p.compat)

ALL = frozenset(FILE_TYPES)
MXFP4 = frozenset({"MXFP4_MOE"})
LOW = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
HIGH = ALL - LOW - MXFP4
FFN = frozenset({TensorRole.FFN_UP, TensorRole.FFN_GATE, TensorRole.FFN_DOWN})
INNER = frozenset(TensorRole) - {TensorRole.OUTPUT}


def _rule(
    kind: str, roles: TensorRole | frozenset[TensorRole], targets: str | frozenset[str], *conditions: Condition
) -> TypeRule:
    where = frozenset({roles}) if isinstance(roles, TensorRole) else roles
    return TypeRule(where, frozenset(targets.split()) if isinstance(targets, str) else targets, kind, conditions)


RULES = (
    # Output, and embeddings that serve as output
    _rule("Q8_0", TensorRole.OUTPUT, "MXFP4_MOE Q8_0"),
    _rule("Q8_0", TensorRole.OUTPUT, ALL, MISFIT),
    _rule("Q5_K", TensorRole.OUTPUT, LOW | {"IQ3_XXS"}),
    _rule("Q6_K", TensorRole.OUTPUT, ALL),
    # MXFP4_MOE. In an MLA file attn_k_b and attn_v_b have three dimensions too; they are no experts.
    _rule("MXFP4", INNER, MXFP4, STACKED, AS_LLAMA_CPP),
    _rule("MXFP4", FFN, MXFP4, EXPERTS),
    _rule("Q8_0", INNER, MXFP4),
    # Token embeddings
    _rule("Q2_K", TensorRole.TOKEN_EMBD, "IQ1_S IQ1_M IQ2_XXS IQ2_XS"),
    _rule("IQ3_S", TensorRole.TOKEN_EMBD, "IQ2_S IQ2_M IQ3_XXS"),
    _rule("Q4_K", TensorRole.TOKEN_EMBD, "TQ1_0 TQ2_0 Q2_0"),
    # Embeddings that prediction has for itself: no others that are measured nowhere may be quantized (roles.py)
    _rule("Q2_K", TensorRole.PREDICTION_EMBD, "IQ1_S IQ1_M IQ2_XXS IQ2_XS", UNMEASURED),
    _rule("IQ3_S", TensorRole.PREDICTION_EMBD, "IQ2_S IQ2_M IQ3_XXS", UNMEASURED),
    _rule("Q3_K", TensorRole.PREDICTION_EMBD, "Q2_K_S", UNMEASURED),
    # attn_v and attn_kv_b
    _rule("Q4_K", TensorRole.VALUE, LOW, SHARED_KEYS),
    _rule("Q4_K", TensorRole.VALUE, LOW, FOUR_EXPERTS),
    _rule("IQ3_S", TensorRole.VALUE, "IQ2_S IQ2_M"),
    _rule("Q2_K", TensorRole.VALUE, LOW),
    _rule("Q8_0", TensorRole.VALUE, HIGH, EIGHT_EXPERTS),
    _rule("Q4_K", TensorRole.VALUE, "Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", SHARED_KEYS),
    _rule("Q5_K", TensorRole.VALUE, "IQ4_NL IQ4_XS", SHARED_KEYS),
    _rule("Q3_K", TensorRole.VALUE, "Q2_K"),
    _rule("IQ3_S", TensorRole.VALUE, "IQ3_XXS", NO_IMPORTANCE),
    _rule("Q4_K", TensorRole.VALUE, "IQ3_M"),
    _rule("Q5_K", TensorRole.VALUE, "Q3_K_M", FIRST_TWO),
    _rule("Q4_K", TensorRole.VALUE, "Q3_K_M"),
    _rule("Q5_K", TensorRole.VALUE, "Q3_K_L"),
    _rule("Q5_K", TensorRole.VALUE, "Q4_K_S", FIRST_FOUR),
    _rule("Q6_K", TensorRole.VALUE, "Q4_K_M Q5_K_M", COUNTED_MORE),
    # attn_k and attn_q
    _rule("Q4_K", TensorRole.KEY, LOW, EIGHT_EXPERTS),
    _rule("Q8_0", TensorRole.KEY, HIGH, EIGHT_EXPERTS),
    _rule("IQ3_XXS", frozenset({TensorRole.KEY, TensorRole.QUERY}), "IQ3_XS"),
    _rule("IQ2_S", frozenset({TensorRole.KEY, TensorRole.QUERY}), "IQ3_XXS"),
    # attn_output
    _rule("Q5_K", TensorRole.ATTN_OUTPUT, LOW, EIGHT_EXPERTS),
    _rule("Q5_K", TensorRole.ATTN_OUTPUT, "Q2_K Q3_K_S Q3_K_M Q4_K_S Q4_K_M", EIGHT_EXPERTS),
    _rule("Q5_K", TensorRole.ATTN_OUTPUT, "IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS", EIGHT_EXPERTS),
    _rule("IQ2_XXS", TensorRole.ATTN_OUTPUT, "IQ1_S IQ1_M"),
    _rule("IQ3_S", TensorRole.ATTN_OUTPUT, "IQ2_S IQ2_M IQ3_XXS"),
    _rule("Q3_K", TensorRole.ATTN_OUTPUT, "Q2_K"),
    _rule("Q4_K", TensorRole.ATTN_OUTPUT, "Q3_K_M IQ3_M"),
    _rule("Q5_K", TensorRole.ATTN_OUTPUT, "Q3_K_L", NOT_EIGHT),
    # ffn_down, with _exps and _shexp
    _rule("IQ3_S", TensorRole.FFN_DOWN, "IQ2_S IQ2_M", COUNTED_FIRST),
    _rule("Q2_K", TensorRole.FFN_DOWN, "IQ1_S IQ1_M IQ2_XXS IQ2_XS", COUNTED_FIRST),
    _rule("Q3_K", TensorRole.FFN_DOWN, "Q2_K"),
    _rule("Q4_K", TensorRole.FFN_DOWN, "Q2_K_S IQ3_M", FIRST_EIGHTH),
    _rule("Q4_K", TensorRole.FFN_DOWN, "IQ3_M", EIGHT_EXPERTS, MORE),
    _rule("Q4_K", TensorRole.FFN_DOWN, "IQ3_XXS", NO_IMPORTANCE, FIRST_EIGHTH),
    _rule("Q3_K", TensorRole.FFN_DOWN, "IQ3_XXS", NO_IMPORTANCE),
    _rule("Q5_K", TensorRole.FFN_DOWN, "Q3_K_M", FIRST_SIXTEENTH),
    _rule("Q4_K", TensorRole.FFN_DOWN, "Q3_K_M"),
    _rule("Q5_K", TensorRole.FFN_DOWN, "Q3_K_L"),
    _rule("Q5_K", TensorRole.FFN_DOWN, "Q4_K_S", FIRST_EIGHTH),
    _rule("Q5_K", TensorRole.FFN_DOWN, "IQ4_NL IQ4_XS", FIRST_EIGHTH, NO_IMPORTANCE),
    _rule("Q6_K", TensorRole.FFN_DOWN, "Q4_K_M Q5_K_M", MORE),
    _rule("Q4_1", TensorRole.FFN_DOWN, "Q4_0", FIRST_EIGHTH, IMPORTANCE),
    _rule("Q5_1", TensorRole.FFN_DOWN, "Q5_0", FIRST_EIGHTH, IMPORTANCE),
    # ffn_gate and ffn_up
    _rule("IQ3_XXS", frozenset({TensorRole.FFN_GATE, TensorRole.FFN_UP}), "IQ3_XS", MIDDLE),
)  # fmt: skip

# What a type whose blocks do not fit a row is replaced by; F16 fits any row, for all that are not named or fit neither.
SMALLER = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# llama-quantize stops at a row that these do not fit.
NO_SUBSTITUTE = frozenset({"Q1_0", "NVFP4"})

# Without importance these are noise, and llama-quantize refuses. (Q2_K counts only in a Q2_K_S file.)
NEEDS_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})


def types_in(target: str) -> list[str]:
    """Return the types that tensors of a file may get by its rules, the default first; floats stay what they are."""
    given = [FILE_TYPES[target].default, *(rule.type for rule in RULES if target in rule.targets)]
    return list(dict.fromkeys([*given, *(SMALLER[kind] for kind in given if kind in SMALLER)]))


@functools.cache
def rules_for(role: TensorRole, target: str) -> tuple[TypeRule, ...]:
    """Return the rules that may apply, in order."""
    return tuple(rule for rule in RULES if role in rule.roles and target in rule.targets)
