"""The deepseek2 rules: what a configuration becomes, what is refused, what is warned about."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import InputError
from gguf_mla.families import families, family_of, prediction, refused
from gguf_mla.families.base import Layers, Rule, Rules, outputs, source_shapes, stack
from gguf_mla.families.deepseek2 import FAMILY
from gguf_mla.sources.config import Config
from tests.support import hub, kinds

if TYPE_CHECKING:
    from gguf_mla.container.values import Value
    from gguf_mla.families.base import Family


def config(kind: str, **changes: Any) -> Config:
    return Config(hub.config_of(kind, "bundled", **changes), Path("config.json"))


def scaling(**changes: Any) -> dict[str, Any]:
    return {**kinds.V3["rope_scaling"], **changes}


def metadata(found: Config, family: Family = FAMILY) -> dict[str, Value]:
    return family.metadata(found, family.layers_in(found, ()))


def value(found: Config, key: str) -> Any:
    entry = metadata(found).get(f"deepseek2.{key}")
    return None if entry is None else entry.data


@pytest.mark.parametrize("kind", ["v2lite", "v2", "v3", "v3fp8"])
def test_the_classes_lead_to_the_family(kind: str) -> None:
    assert family_of(config(kind)) is FAMILY


def test_latent_attention_is_described_as_multi_query() -> None:
    keys = (
        "head_count",
        "head_count_kv",
        "key_length",
        "value_length",
        "key_length_mla",
        "value_length_mla",
        "kv_lora_rank",
    )
    assert [value(config("v3"), f"attention.{key}") for key in keys] == [4, 1, 576, 512, 192, 128, 512]


@pytest.mark.parametrize(
    ("kind", "changes", "rank"),
    [
        ("v3", {}, 256),
        ("v2lite", {}, None),  # 27 layers: the engine does not ask
        ("v2lite", {"num_hidden_layers": 26}, None),
        ("v2lite", {"num_hidden_layers": 5}, 0),  # the engine would refuse the file without the key
    ],
)
def test_the_rank_of_q_is_written_where_a_reader_asks(kind: str, changes: dict[str, Any], rank: int | None) -> None:
    assert value(config(kind, **changes), "attention.q_lora_rank") == rank


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("v2lite", {}, (1, 1, 1, None)),
        ("v2", {}, (1, 4, 2, None)),
        ("v3", {}, (2, 4, 2, True)),
        ("v3", {"scoring_func": None, "topk_method": None, "norm_topk_prob": None}, (2, 4, 2, True)),
        ("v2", {"scoring_func": None}, (1, 4, 2, None)),
        ("v2lite", {"n_group": 4, "topk_group": 2}, (1, 1, 1, None)),  # greedy knows no groups
    ],
)
def test_routing(kind: str, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    keys = ("expert_gating_func", "expert_group_count", "expert_group_used_count", "expert_weights_norm")
    assert tuple(value(config(kind, **changes), key) for key in keys) == expected


def test_yarn_is_written_as_the_reader_undoes_it() -> None:
    assert value(config("v3"), "rope.scaling.yarn_log_multiplier") == 0.1
    assert value(config("v2lite"), "rope.scaling.yarn_log_multiplier") == pytest.approx(0.0707)
    assert value(config("v3"), "rope.scaling.original_context_length") == 4096


def read_back(found: Config) -> tuple[float, float]:
    """What llama.cpp multiplies cos and sin by, and the softmax's scale, as b11434 computes them."""
    family = family_of(found)
    written = metadata(found, family)

    def number(key: str) -> float:
        entry = written.get(f"{family.architecture}.rope.scaling.{key}")
        return 1.0 if entry is None else float(entry.data)

    stretch, all_dim = math.log(number("factor")), number("yarn_log_multiplier") / 0.1
    mscale = all_dim if family.architecture == "deepseek2" and all_dim != 1 else 1.0
    factor = (1 + 0.1 * mscale * stretch) / (1 + 0.1 * all_dim * stretch) if all_dim else 1 + 0.1 * stretch
    factor *= number("attn_factor")
    return factor, (factor * (1 + 0.1 * all_dim * stretch)) ** 2


G = 1 + 0.1 * math.log(40)


@pytest.mark.parametrize("kind", ["v3", "v32", "glm-dsa"])
@pytest.mark.parametrize(
    ("changes", "rotated", "softmax"),
    [
        ({}, 1, G**2),
        ({"mscale": None, "mscale_all_dim": None}, G, 1),
        ({"mscale_all_dim": None}, G, 1),
        ({"mscale": 0.5}, (1 + 0.05 * math.log(40)) / G, G**2),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1, (1 + 0.0707 * math.log(40)) ** 2),
        ({"mscale": None, "mscale_all_dim": None, "attention_factor": 1.0}, 1, 1),
        ({"mscale": None, "mscale_all_dim": None, "attention_factor": 2.5}, 2.5, 1),
    ],
)
def test_a_reader_arrives_at_yarns_scales(kind: str, changes: dict[str, Any], rotated: float, softmax: float) -> None:
    assert read_back(config(kind, rope_scaling=scaling(**changes))) == pytest.approx((rotated, softmax), rel=1e-6)


def test_both_spellings_of_the_rope_section_say_the_same() -> None:
    old = config("v3")
    parameters = {**scaling(), "rope_type": "yarn", "rope_theta": 10000}
    del parameters["type"]
    new = config("v3", rope_scaling=None, rope_theta=None, rope_parameters=parameters)
    assert metadata(new) == metadata(old)


def test_a_model_without_scaling_has_no_scaling_keys() -> None:
    assert not [key for key in metadata(config("v3", rope_scaling=None)) if "scaling" in key]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": scaling(mscale=None)}, "two ways.*mscale missing and mscale_all_dim 1"),
        ({"rope_scaling": scaling(mscale_all_dim=-3)}, "scales of attention above zero"),
        ({"rope_scaling": scaling(factor=1, attention_factor=1.3, mscale=None, mscale_all_dim=None)}, "more than 1"),
        ({"rope_scaling": scaling(type="dynamic")}, "expected yarn or linear or default, found dynamic"),
        ({"rope_scaling": scaling(factor=None)}, "factor is missing"),
        ({"rope_scaling": scaling(attention_factor=1.3)}, "attention_factor contradicts mscale"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"topk_method": "lottery"}, "topk_method.*noaux_tc, found lottery"),
        ({"scoring_func": "tanh"}, "scoring_func.*found tanh"),
        ({"hidden_act": "gelu"}, "hidden_act.*expected silu, found gelu"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"n_shared_experts": None}, "n_shared_experts is missing"),
        ({"n_group": 3}, "n_group"),
        ({"topk_group": 8}, "n_group"),
        ({"kv_lora_rank": "512"}, "kv_lora_rank.*whole number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": [1]}, "rope_scaling.*an object"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob.*true or false"),
    ],
)
def test_what_gguf_cannot_express_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        metadata(config("v3", **changes))


def test_v2_group_choice_is_warned_about() -> None:
    assert [warning for warning in FAMILY.warnings(config("v2")) if "group_limited_greedy" in warning]
    assert FAMILY.warnings(config("v3")) == []
    assert FAMILY.warnings(config("v2lite")) == []


def test_what_the_engine_would_compute_otherwise_is_warned_about() -> None:
    assert "1e-05" in FAMILY.warnings(config("v3", rms_norm_eps=1e-5))[0]
    assert "27 layers" in FAMILY.warnings(config("v3", num_hidden_layers=27))[0]


def test_the_architecture_must_be_known() -> None:
    with pytest.raises(
        InputError,
        match=r"expected DeepseekV2ForCausalLM or DeepseekV3ForCausalLM or .*, found LlamaForCausalLM",
    ):
        family_of(config("v3", architectures=["LlamaForCausalLM"]))


def test_models_that_are_not_converted_have_a_reason() -> None:
    for name, reason in refused.REASONS.items():
        with pytest.raises(InputError, match=f"{name} is not converted: ") as error:
            family_of(config("v3", architectures=[name]))
        assert reason in str(error.value)
    assert not refused.REASONS.keys() & {name for family in families() for name in family.classes}


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_scaling": scaling(llama_4_scaling_beta=0.5)},
        {"llama_4_scaling": {"beta": 0.5, "original_max_position_embeddings": 4096}},
    ],
)
def test_queries_that_grow_are_stated_where_readers_know_them(stated: dict[str, Any]) -> None:
    assert value(config("v3", **stated), "attention.temperature_scale") == 0.5
    assert value(config("v3", **stated), "attention.temperature_length") == 4096
    with pytest.raises(InputError, match="llama_4_scaling is not what readers of deepseek32 files know"):
        metadata(config("v32", **stated), family_of(config("v32")))


# ----------------------------------------------------------------------------------------------------------- GLM


def test_layers_without_experts_may_be_listed_instead_of_counted() -> None:
    listed = config("glm-lite", first_k_dense_replace=None, mlp_layer_types=["dense", "dense", "sparse", "sparse"])
    assert value(listed, "leading_dense_block_count") == 2
    with pytest.raises(InputError, match=r"mlp_layer_types.*dense layers first"):
        metadata(config("glm-lite", first_k_dense_replace=None, mlp_layer_types=["sparse", "dense"]))


def test_only_some_layers_of_glm_5_2_have_an_indexer() -> None:
    kinds = ["full", "shared", "shared", "full"]
    stated = config("glm-dsa", indexer_types=kinds, num_nextn_predict_layers=1)
    family = family_of(stated)
    assert [layer for layer in range(5) if "indexer" in family.conditions(stated, layer)] == [0, 3]
    assert "prediction" in family.conditions(stated, 4)  # which may have one
    assert list(metadata(stated, family)["glm-dsa.attention.indexer.types"].data) == [True, False, False, True]
    for wrong in (["full"], ["shared", "full", "full", "full"], [["full"], 2, 3, 4], 4):
        with pytest.raises(InputError, match=r'indexer_types.*expected "full", then 3 times "full" or "shared"'):
            metadata(config("glm-dsa", indexer_types=wrong), family)


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize(
    "stated",
    [{"index_topk_pattern": "FSFS"}, {"index_topk_freq": 2}, {"index_topk_freq": 3, "index_skip_topk_offset": 1}, {}],
)
def test_the_layers_with_an_indexer_may_be_stated_otherwise(stated: dict[str, Any]) -> None:
    from transformers import GlmMoeDsaConfig

    expected = GlmMoeDsaConfig(num_hidden_layers=4, **stated).indexer_types
    values = metadata(config("glm-dsa", **stated), family_of(config("glm-dsa")))
    assert list(values["glm-dsa.attention.indexer.types"].data) == [kind == "full" for kind in expected]


@pytest.mark.parametrize(("kind", "usual"), [("v32", False), ("glm-dsa", True)])
def test_an_indexer_that_rotates_otherwise_than_its_readers_is_refused(kind: str, usual: bool) -> None:
    family = family_of(config(kind))
    metadata(config(kind, indexer_rope_interleave=usual), family)
    with pytest.raises(InputError, match="indexer_rope_interleave is not what readers"):
        metadata(config(kind, indexer_rope_interleave=not usual), family)


MARK = "model.layers.{}.eh_proj.weight"


@pytest.mark.parametrize(("kind", "kept"), [("v3", 0), ("v32", 2), ("glm-lite", 2), ("glm-dsa", 2)])
def test_a_family_answers_for_its_prediction_layers(kind: str, kept: int) -> None:
    found = config(kind, num_nextn_predict_layers=7)  # often stated wrongly: what counts is what is there
    family, last = family_of(found), found.positive("num_hidden_layers")
    names = {MARK.format(last), MARK.format(last + 1), MARK.format(last - 1), "model.layers.99.eh_proj.weight"}
    layers = family.layers_in(found, names)
    assert layers == Layers(last, kept)
    stated = {key.partition(".")[2]: value.data for key, value in family.metadata(found, layers).items()}
    assert (stated["block_count"], stated.get("nextn_predict_layers", 0)) == (last + kept, kept)
    blocks = {name for name in source_shapes(family, found, layers) if name.endswith("eh_proj.weight")}
    assert blocks == {MARK.format(last + number) for number in range(kept)}


def test_what_the_configuration_states_is_marked_by_names() -> None:
    assert prediction.stated(config("v32", num_hidden_layers=3, num_nextn_predict_layers=2)) == {
        MARK.format(3),
        MARK.format(4),
    }


def test_each_layer_has_its_rules_between_those_of_the_model() -> None:
    first, last = Rule("first", "f", ("one",)), Rule("last", "l", ("one",))
    rules = Rules((first,), (Rule("a.{layer}", "a", ("one",)),), (last,)).with_layer(
        Rule("b.{layer}", "b.{expert}", ("one", "two"), form=stack)
    )
    family = replace(
        FAMILY,
        rules=rules,
        dimensions=lambda _: {"one": 1, "two": 2, "experts": 3},
        conditions=lambda *_: frozenset(),
        drops=lambda *_: (),
    )
    tensors = {
        name: SimpleNamespace(shape=shape, stored="F32", raw_type=None)
        for name, shape in {"f": (1,), "a": (1,), "l": (1,), **{f"b.{n}": (1, 2) for n in range(3)}}.items()
    }
    opened: Any = SimpleNamespace(tensors=tensors, names=tensors.keys(), absent={}, folder=None)
    found, dropped = outputs(family, config("v3"), opened, Layers(1, 1))
    assert [(tensor.name, tensor.shape) for tensor in found] == [
        ("first", (1,)),
        ("a.0", (1,)),
        ("b.0", (3, 1, 2)),
        ("a.1", (1,)),
        ("b.1", (3, 1, 2)),
        ("last", (1,)),
    ]
    assert dropped == {}
