"""The types chosen are llama-quantize's, except where ours are deliberately others; wrong requests are explained."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import gguf
import pytest

from gguf_mla.container.values import Kind, Value, array, string, u32
from gguf_mla.errors import InputError
from gguf_mla.families import family_of
from gguf_mla.families.base import outputs
from gguf_mla.recipes import (
    COPY,
    FILE_TYPES,
    Choice,
    Overrides,
    RecipeModel,
    Tensor,
    choose,
    file_type,
    needing_importance,
    needs_importance,
    parse_tensor_type,
    read_tensor_types,
)
from gguf_mla.recipes.roles import TensorRole
from gguf_mla.recipes.rules import RULES, TypeRule
from gguf_mla.sources.checkpoint import open_checkpoint
from gguf_mla.sources.config import Config
from tests.golden_recipes import table
from tests.golden_recipes.models import DEEPSEEK_V3, MODELS, Sizes
from tests.support import hub

if TYPE_CHECKING:
    from pathlib import Path

V3 = MODELS["v3"]
QUANTIZED = [entry for entry in FILE_TYPES.values() if not entry.plain and entry is not COPY]


def types_of(sizes: Sizes, target: str, overrides: Overrides | None = None, *, importance: bool = False) -> table.Types:
    """What we choose, by name."""
    tensors = sizes.tensors()
    choices, _ = choose(tensors, FILE_TYPES[target], sizes.model, overrides, has_importance=importance)
    return {tensor.name: choice.type for tensor, choice in zip(tensors, choices, strict=True)}


def warnings_of(target: str, overrides: Overrides) -> list[str]:
    return choose(V3.tensors(), FILE_TYPES[target], V3.model, overrides, has_importance=False)[1]


# --------------------------------------------------------------------------------------------------- against the peer


def our_answer(sizes: Sizes, case: table.Case) -> table.Answer:
    tensors, target, overrides = sizes.tensors(), FILE_TYPES[case.target], table.OPTIONS[case.options].overrides
    try:
        choices, _ = choose(tensors, target, sizes.model, overrides, has_importance=case.importance)
    except InputError:
        return table.Answer(None)
    types = {tensor.name: choice.type for tensor, choice in zip(tensors, choices, strict=True)}
    return table.Answer(types, bool(needing_importance(tensors, choices, target)) and not case.importance)


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_of_every_file_type_gets_llama_quantizes_type(model: str) -> None:
    """And importance is demanded in the same runs."""
    sizes = MODELS[model]
    golden = table.Table.load(model, [tensor.name for tensor in sizes.tensors()]).answers
    wrong, demanding = {}, set()
    for case in (case for case in table.cases() if case.model == model):
        answer, want = our_answer(sizes, case), golden[case.key].types
        demanding.update([case.key] if answer.needs_importance else [])
        if answer.types != want:
            wrong[case.key] = set((answer.types or {}).items()) ^ set((want or {}).items())
    assert not wrong
    assert demanding == {key for key, answer in golden.items() if answer.needs_importance}


def test_every_rule_decides_something_in_the_golden_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that no table witnesses is a claim nobody checked. Ours alone: MXFP4 for experts only, and one table."""
    used: set[int] = set()
    reason = TypeRule.reason

    def recorded(rule: TypeRule, *arguments: Any) -> str | None:
        found = reason(rule, *arguments)
        used.update([id(rule)] if found else [])
        return found

    monkeypatch.setattr(TypeRule, "reason", recorded)
    small = {name: sizes for name, sizes in MODELS.items() if sizes.hidden < 1000}
    for case in (case for case in table.cases() if case.model in small):
        our_answer(small[case.model], case)
    unseen = [rule for rule in RULES if id(rule) not in used]
    others = [rule for rule in unseen if rule.roles != {TensorRole.PREDICTION_EMBD}]
    assert [(rule.type, rule.targets) for rule in others] == [("MXFP4", {"MXFP4_MOE"})]


def test_file_types_have_llama_cpps_numbers() -> None:
    known = {entry.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(entry) for entry in gguf.LlamaFileType}
    ours = {name: entry.id for name, entry in FILE_TYPES.items() if entry is not COPY}
    assert ours.items() <= (known | {"MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41}).items()


def test_the_order_of_the_file_does_not_matter() -> None:
    sizes = MODELS["legacy"]
    tensors = sizes.tensors()
    shuffled = random.Random(5).sample(tensors, len(tensors))
    for target in QUANTIZED:
        choices, _ = choose(shuffled, target, sizes.model, has_importance=False)
        assert {t.name: c.type for t, c in zip(shuffled, choices, strict=True)} == types_of(sizes, target.name)


@pytest.mark.parametrize("name", ["v2lite", "v2", "v3", "v3-tied", "bundled"])
def test_the_tables_models_are_those_of_our_conversions(name: str, tmp_path: Path) -> None:
    directory = hub.BUNDLED if name == "bundled" else hub.write(tmp_path / name, name)
    checkpoint = open_checkpoint(directory)
    config = Config(checkpoint.config, directory / "config.json")
    family = family_of(config)
    layers = family.layers_in(config, checkpoint.tensors)
    architecture = {"general.architecture": string(family.architecture)}
    model = RecipeModel.from_metadata(architecture | family.metadata(config, layers))
    tensors = [Tensor(output.name, output.shape) for output in outputs(family, config, checkpoint, layers)[0]]
    choices, _ = choose(tensors, FILE_TYPES["BF16"], model, has_importance=False)
    converted = {(t.name, t.shape, choice.type) for t, choice in zip(tensors, choices, strict=True)}
    assert model == MODELS[name].model
    assert converted == set(MODELS[name].tensors())


def test_deepseek_v3_as_q4_k_m() -> None:
    """The example of docs/recipes.md, spelled out."""
    types = types_of(DEEPSEEK_V3, "Q4_K_M")
    more = {*range(7), *range(9, 52, 3), *range(53, 61)}
    for name, kind in types.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        if "ffn_down" in name:
            assert kind == ("Q6_K" if layer in more else "Q4_K"), name
        elif "attn_k_b" in name:
            assert kind == "Q5_0", name
    assert types["output.weight"] == "Q6_K"
    assert set(types.values()) == {"F32", "Q4_K", "Q5_0", "Q6_K"}


# ------------------------------------------------------------------------------------------- where we choose otherwise


@pytest.mark.parametrize("model", [name for name, sizes in MODELS.items() if sizes.hidden < 1000])
def test_we_differ_from_llama_cpp_in_three_things_only(model: str) -> None:
    sizes = MODELS[model]
    for target in FILE_TYPES.values():
        try:
            ours, theirs = types_of(sizes, target.name), types_of(sizes, target.name, Overrides(compat=True))
        except InputError:
            assert target.name == "Q1_0"
            continue
        for name in ours:
            if "indexer.proj" in name:
                assert ours[name] == "F32"
            elif target.name == "MXFP4_MOE" and ("attn_k_b" in name or "attn_v_b" in name):
                assert (ours[name], theirs[name]) in {("Q8_0", "MXFP4"), ("F16", "F16")}, name
            elif "nextn.embed_tokens" in name and needs_importance(name, theirs[name], target):
                assert ours[name] in {"Q2_K", "Q3_K", "IQ3_S"}, name
            else:
                assert ours[name] == theirs[name], (target.name, name)


def test_an_override_in_a_plain_file_is_obeyed_unless_llama_cpp_is_to_be_followed() -> None:
    wish = (("attn_k_b", "Q8_0"),)
    name = "blk.0.attn_k_b.weight"
    assert types_of(V3, "BF16", Overrides(tensor_types=wish))[name] == "Q8_0"
    assert types_of(V3, "BF16", Overrides(tensor_types=wish, compat=True))[name] == "BF16"
    [warning] = warnings_of("BF16", Overrides(tensor_types=wish, compat=True))
    assert "attn_k_b=Q8_0" in warning
    assert "ignored in a BF16 file" in warning


# ---------------------------------------------------------------------------------------------------------- reasons


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("blk.0.ffn_down.weight", Choice("Q6_K", "ffn_down in the first or last eighth or every third layer")),
        ("blk.1.ffn_up_exps.weight", Choice("Q4_K", "default of Q4_K_M")),
        ("blk.1.attn_k_b.weight", Choice("Q5_0", "rows of 128 do not fit Q4_K", "Q4_K")),
        ("blk.1.attn_norm.weight", Choice("F32", "vector")),
        ("blk.1.ffn_gate_inp.weight", Choice("F32", "router")),
        ("blk.1.exp_probs_b.bias", Choice("F32", "vector")),
        ("blk.2.attn_q_b.weight", Choice("Q8_0", "--tensor-type attn_q_b")),
        ("output.weight", Choice("Q6_K", "output")),
    ],
)
def test_every_choice_has_its_reason(name: str, choice: Choice) -> None:
    sizes = Sizes(layers=8)
    wish = Overrides(tensor_types=(("attn_q_b", "q8_0"),))
    choices, warnings = choose(sizes.tensors(), FILE_TYPES["Q4_K_M"], sizes.model, wish, has_importance=False)
    found = {tensor.name: choice for tensor, choice in zip(sizes.tensors(), choices, strict=True)}
    assert found[name] == choice
    assert warnings == []


def test_a_checkpoints_tensors_have_no_type_yet() -> None:
    tensors = [Tensor(name, shape) for name, shape, _ in V3.tensors()]
    choices, _ = choose(tensors, FILE_TYPES["Q4_K_M"], V3.model, has_importance=False)
    assert {t.name: c.type for t, c in zip(tensors, choices, strict=True)} == types_of(V3, "Q4_K_M")
    left = Overrides(leave_output_tensor=True)
    choices, _ = choose(tensors, FILE_TYPES["Q4_K_M"], V3.model, left, has_importance=False)
    assert dict(zip((t.name for t in tensors), choices, strict=True))["output.weight"].type == "BF16"
    with pytest.raises(InputError, match="COPY needs a GGUF file"):
        choose(tensors, COPY, V3.model, has_importance=False)


# --------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("name", "expected"),
    [("q4_k_m", "Q4_K_M"), ("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("q5_k", "Q5_K_M"), ("15", "Q4_K_M"), ("0", "F32")],
)
def test_file_types_by_alias_and_number(name: str, expected: str) -> None:
    assert file_type(name).name == expected


@pytest.mark.parametrize(
    ("name", "words"), [("Q4_K_L", "Q4_K_S"), ("Q4KM", "Q4_K_M"), ("IQ4", "IQ4_XS"), ("MXFP4", "MXFP4_MOE")]
)
def test_a_misspelt_file_type_is_answered_with_near_ones(name: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"found {name}\)\. Perhaps you mean .*{words}"):
        file_type(name)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("attn_k_b=q8_0", ("attn_k_b", "Q8_0")),
        (r"blk\.\d+\.ffn=IQ4_xs", (r"blk\.\d+\.ffn", "IQ4_XS")),
        ("(?=.*exps).*down=Q6_K", ("(?=.*exps).*down", "Q6_K")),
    ],
)
def test_tensor_types_are_parsed(text: str, pair: tuple[str, str]) -> None:
    assert parse_tensor_type(text) == pair


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attn_k_b", "expected REGEX=TYPE"),
        ("=Q8_0", "expected REGEX=TYPE"),
        ("attn_k_b=", "expected REGEX=TYPE"),
        ("attn=Q4_K_M", "no tensor type 'Q4_K_M'.*Perhaps you mean Q4_K"),
        ("attn=I32", "no tensor type 'I32'"),
        ("attn=?", "Known types: F32"),
        ("attn_(k_b=Q8_0", "not a regular expression"),
        ("[[:digit:]]=Q8_0", "Write \\[0-9\\]"),
    ],
)
def test_wrong_tensor_types_are_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_tensor_type(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tensor_types": (("(", "Q8_0"),)},
        {"tensor_types": (("a", "Q9_0"),)},
        {"output_tensor_type": "Q9_0"},
        {"token_embedding_type": "Q9_0"},
    ],
    ids=str,
)
def test_overrides_are_checked_when_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Overrides(**wrong)


def test_a_file_of_tensor_types(tmp_path: Path) -> None:
    file = tmp_path / "types.txt"
    file.write_text("# protected\nattn_k_b=bf16   # of 128\n\nffn_up=q4_K ffn_gate=q4_K\n", encoding="utf-8")
    assert read_tensor_types(file) == (("attn_k_b", "BF16"), ("ffn_up", "Q4_K"), ("ffn_gate", "Q4_K"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a=q8_0\nb=q9_0\n", "line 2: .*Q8_0"), (b"\xff\xfe", "not a text"), (None, "Check the path")],
)
def test_a_wrong_file_of_tensor_types(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "types.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_tensor_types(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ((("attn_kb", "Q8_0"),), "attn_kb=Q8_0 matches no tensor"),
        ((("_norm", "Q8_0"),), "matches only tensors that are never quantized"),
        ((("attn", "Q8_0"), ("attn_k_b", "BF16")), "attn_k_b=BF16 has no effect"),
    ],
)
def test_an_expression_without_effect_is_named(wish: tuple[tuple[str, str], ...], words: str) -> None:
    [warning] = warnings_of("Q4_K_M", Overrides(tensor_types=wish))
    assert words in warning


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("Q4_K_M", {"output_tensor_type": "Q6_K"}, "output.weight: --output-tensor-type Q6_K does not fit"),
        ("F16", {"token_embedding_type": "Q6_K"}, "token_embd.weight: --token-embedding-type Q6_K does not fit"),
        ("Q1_0", {}, "rows of 272 values do not fit Q1_0.*--tensor-type"),
        ("Q8_0", {"tensor_types": (("ffn_gate", "NVFP4"),)}, "do not fit NVFP4"),
    ],
)
def test_what_does_not_fit_and_has_no_substitute(target: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        types_of(MODELS["narrow-output"], target, Overrides(**options))


# ------------------------------------------------------------ what importance is needed for; what a model is


def test_tensors_that_need_importance_are_listed_together() -> None:
    tensors = V3.tensors()
    choices, _ = choose(tensors, FILE_TYPES["Q2_K_S"], V3.model, has_importance=False)
    needing = needing_importance(tensors, choices, FILE_TYPES["Q2_K_S"])
    assert {kind for _, kind in needing} == {"Q2_K"}
    assert "token_embd.weight" not in dict(needing)
    assert needing_importance(tensors, choices, FILE_TYPES["Q2_K"]) == []


@pytest.mark.parametrize("target", [entry.name for entry in QUANTIZED if entry.name != "Q1_0"])
def test_embeddings_of_prediction_never_need_it(target: str) -> None:
    """No collector measures them, so a recipe that needed it for them could not be followed."""
    tensors, name = [Tensor("blk.61.nextn.embed_tokens.weight", (512, 256))], "blk.61.nextn.embed_tokens.weight"
    choices, _ = choose(tensors, FILE_TYPES[target], DEEPSEEK_V3.model, has_importance=True)
    assert needing_importance(tensors, choices, FILE_TYPES[target]) == []
    theirs, _ = choose(tensors, FILE_TYPES[target], DEEPSEEK_V3.model, Overrides(compat=True), has_importance=True)
    assert choices == theirs or (needs_importance(name, theirs[0].type, FILE_TYPES[target]) and choices[0].reason)


def test_what_ggml_cannot_encode_without_importance_needs_it_everywhere() -> None:
    target = FILE_TYPES["Q4_K_M"]
    assert needs_importance("token_embd.weight", "IQ2_XXS", target)
    assert not needs_importance("token_embd.weight", "IQ2_S", target)
    assert needs_importance("blk.0.attn_q.weight", "IQ2_S", target)


def test_a_tensor_that_keeps_its_type_needs_nothing() -> None:
    tensors = [Tensor("blk.0.attn_q.weight", (256, 256), "IQ2_XS")]
    choices, _ = choose(tensors, FILE_TYPES["IQ2_XS"], V3.model, has_importance=False)
    assert needing_importance(tensors, choices, FILE_TYPES["IQ2_XS"]) == []


BASE = {
    "general.architecture": string("deepseek2"),
    "deepseek2.block_count": u32(4),
    "deepseek2.attention.head_count": u32(16),
}


@pytest.mark.parametrize(
    ("more", "heads_per_key", "experts"),
    [
        ({}, 1, 0),
        ({"deepseek2.attention.head_count_kv": u32(1), "deepseek2.expert_count": u32(8)}, 16, 8),
        ({"deepseek2.attention.head_count_kv": array(Kind.U32, [4, 8, 8, 8])}, 4, 0),
        ({"deepseek2.attention.head_count_kv": u32(0)}, 0, 0),
    ],
)
def test_a_model_from_metadata(more: dict[str, Value], heads_per_key: int, experts: int) -> None:
    model = RecipeModel.from_metadata({**BASE, **more})
    assert (model.layers, model.heads_per_key, model.experts) == (4, heads_per_key, experts)
    assert model.warnings == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": u32(3)}, "no architecture"),
        ({"general.architecture": string("llama")}, "lacks llama.attention.head_count"),
        ({"deepseek2.block_count": string("4")}, "block_count is not a count"),
        ({"deepseek2.block_count": array(Kind.U32, [])}, "block_count is not a count"),
        ({"deepseek2.block_count": Value(Kind.I32, -4)}, "block_count is not a count"),
    ],
)
def test_metadata_that_tells_no_model(change: dict[str, Value], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RecipeModel.from_metadata({**BASE, **change})


def test_a_layer_beyond_the_metadata_is_refused() -> None:
    tensors = [Tensor("blk.4.ffn_down.weight", (256, 256), "BF16")]
    with pytest.raises(InputError, match=r"blk\.4\.ffn_down.*blk\.0\. to blk\.3\."):
        choose(tensors, FILE_TYPES["Q4_K_M"], V3.model, has_importance=False)


def test_models_with_other_rules_are_named() -> None:
    [warning] = RecipeModel("falcon", 4, 4, 1).warnings
    assert "falcon" in warning
    assert RecipeModel("llama", 80, 64, 8).warnings
