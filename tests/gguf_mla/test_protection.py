"""Our own recipes: the routed experts as llama.cpp has them, everything else protected."""

from __future__ import annotations

import pytest

from gguf_mla.container.writer import TensorSpec
from gguf_mla.errors import InputError
from gguf_mla.recipes import FILE_TYPES, choose, file_type
from tests.golden_recipes.models import DEEPSEEK_V3, MODELS, Sizes

QUANTIZING = [name for name, entry in FILE_TYPES.items() if entry.default and not entry.plain]


def types_of(sizes: Sizes, name: str) -> dict[str, str]:
    tensors = sizes.tensors()
    choices, _ = choose(tensors, file_type(name), sizes.model, has_importance=True)
    return {tensor.name: choice.type for tensor, choice in zip(tensors, choices, strict=True)}


def nbytes(sizes: Sizes, name: str) -> int:
    types = types_of(sizes, name)
    return sum(TensorSpec(tensor.name, tensor.shape, types[tensor.name]).nbytes for tensor in sizes.tensors())


@pytest.mark.parametrize("name", [name for name in QUANTIZING if name != "Q1_0"])
def test_routed_experts_are_llama_cpps_and_nothing_else_is_below_six_bits(name: str) -> None:
    theirs, ours = types_of(DEEPSEEK_V3, name), types_of(DEEPSEEK_V3, f"MLA-{name}")
    assert {t: kind for t, kind in ours.items() if "_exps" in t} == {t: k for t, k in theirs.items() if "_exps" in t}
    others = {kind for tensor, kind in ours.items() if "_exps" not in tensor}
    assert others <= {"F32", "BF16", "Q8_0", "Q6_K"}


@pytest.mark.parametrize(
    ("name", "heads", "rest"),
    [
        ("MLA-Q8_0", "BF16", "Q8_0"),
        ("mla-q4_k_m", "Q8_0", "Q8_0"),
        ("MLA-IQ4_XS", "Q8_0", "Q8_0"),
        ("MLA-Q3_K_M", "Q8_0", "Q6_K"),
        ("MLA-IQ1_S", "Q8_0", "Q6_K"),
    ],
)
def test_how_much_is_protected_follows_the_experts(name: str, heads: str, rest: str) -> None:
    types = types_of(MODELS["v32"], name)
    assert types["blk.1.attn_k_b.weight"] == types["blk.1.attn_v_b.weight"] == heads
    assert types["blk.1.attn_q_b.weight"] == types["blk.1.ffn_up_shexp.weight"] == types["output.weight"] == rest
    assert types["blk.1.ffn_gate_inp.weight"] == "F32"


@pytest.mark.parametrize(("name", "least", "most"), [("Q4_K_M", 1.9, 2.1), ("Q2_K", 2.8, 3.0), ("IQ1_S", 7.0, 7.3)])
def test_protection_costs_what_the_documentation_says(name: str, least: float, most: float) -> None:
    assert least < 100 * (nbytes(DEEPSEEK_V3, f"MLA-{name}") / nbytes(DEEPSEEK_V3, name) - 1) < most


@pytest.mark.parametrize("name", ["MLA-F16", "MLA-BF16", "MLA-COPY"])
def test_what_quantizes_nothing_protects_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} does not exist"):
        file_type(name)


def test_a_misspelt_base_is_answered_with_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown file type.*Perhaps you mean Q4_K_M"):
        file_type("MLA-Q4_KM")
