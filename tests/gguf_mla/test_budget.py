"""Files of a wanted size: what is bought, what it costs, and what the measured errors are worth."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from convert.command import convert
from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.plan import measure
from gguf_mla.plan.jobs import Part, Untyped
from gguf_mla.recipes import FileType, Offer, candidates, sensitivity, spend, target
from gguf_mla.sources.checkpoint import open_checkpoint
from quantize.command import quantize
from tests.support import command
from tests.support.hub import BUNDLED
from tests.support.sources import Weights

if TYPE_CHECKING:
    from pathlib import Path

offers = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=4)


def as_offers(tensors: list[list[tuple[int, int]]]) -> list[dict[str, Offer]]:
    return [{str(k): Offer(str(k), nbytes, float(e)) for k, (nbytes, e) in enumerate(of)} for of in tensors]


@given(st.lists(offers, min_size=1, max_size=4), st.integers(0, 80))
def test_spending_is_optimal_but_for_one_step(tensors: list[list[tuple[int, int]]], spare: int) -> None:
    choices = as_offers(tensors)
    allowed = sum(min(offer.nbytes for offer in of.values()) for of in choices) + spare
    found = spend(choices, allowed)
    assert sum(offer.nbytes for offer in found) <= allowed
    combinations = itertools.product(*(of.values() for of in choices))
    best = min(sum(o.error for o in c) for c in combinations if sum(o.nbytes for o in c) <= allowed)
    # What is bought last may not fit: the choice loses at most one step, and no step saves more than a whole tensor.
    step = max(max(o.error for o in of.values()) - min(o.error for o in of.values()) for of in choices)
    assert best <= sum(offer.error for offer in found) <= best + step


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(InputError, match=r"too small for this model.*at least 30 B.*found 29 B.*--imatrix"):
        spend(as_offers([[(10, 3), (40, 1)], [(20, 3)]]), 29)


def test_the_output_matters_most_and_a_layer_less_the_more_there_are() -> None:
    names = ("output.weight", "token_embd.weight", "blk.3.ffn_up_exps.weight", "blk.3.attn_output.weight")
    few, many = ([sensitivity(name, layers) for name in names] for layers in (3, 61))
    assert few == sorted(few, reverse=True)
    assert many == sorted(many, reverse=True)
    assert [a > b for a, b in zip(few, many, strict=True)] == [False, False, True, True]


def test_what_matters_more_is_bought_first() -> None:
    offers = [{"low": Offer("low", 1, 4.0, w), "high": Offer("high", 2, 1.0, w)} for w in (1.0, 1.5)]
    assert [offer.type for offer in spend(offers, 3)] == ["low", "high"]


def test_no_type_is_bought_that_does_not_fit_or_lacks_its_importance() -> None:
    assert set(candidates(128, has_importance=True)) == {"BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL", "Q4_0"}
    assert candidates(100, has_importance=True) == ["BF16"]
    assert set(candidates(256, has_importance=True)) - set(candidates(256, has_importance=False)) == {
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bits", "nbytes"), [("3.5bpw", 3.5, None), ("4BPW", 4.0, None), ("200G", None, 200e9)]
)
def test_sizes_are_names_of_types(name: str, bits: float | None, nbytes: float | None) -> None:
    wanted: Any = target(name)
    assert (wanted.name, wanted.bits, wanted.nbytes) == (name, bits, nbytes)
    assert isinstance(target("Q4_K_M"), FileType)


# --------------------------------------------------------------------------------------------------------- measuring


def embeddings() -> Untyped:
    return Untyped("token_embd.weight", (2048, 256), (Part("model.embed_tokens.weight", 0, 2048),), "BF16")


def test_measured_errors_are_those_of_the_whole_tensor() -> None:
    sources = open_checkpoint(BUNDLED).tensors
    [found] = measure.errors([embeddings()], [["Q8_0", "Q4_0"]], sources)
    values = (sources["model.embed_tokens.weight"].read().astype(np.uint32) << 16).view(np.float32)
    for kind, error in found.items():
        ggml_type = gguf.GGMLQuantizationType[kind]
        lost = values - dequantize(gguf.quants.quantize(values, ggml_type), ggml_type)
        # 16 of 2048 rows: measured within 20 % here, where neighbouring types are a factor of 4 apart
        assert error == pytest.approx(np.sum(lost**2) / np.sum(values**2), rel=0.2)


def test_errors_are_weighed_by_importance() -> None:
    sources = open_checkpoint(BUNDLED).tensors
    spike = np.full((1, 256), 1e-6, np.float32)
    spike[0, :8] = 1
    [even] = measure.errors([embeddings()], [["Q2_K"]], sources)
    [weighed] = measure.errors([embeddings()], [["Q2_K"]], sources, Weights({"token_embd.weight": spike}))
    assert weighed["Q2_K"] < 0.7 * even["Q2_K"]  # the eight columns that count are favoured within blocks of 16


def test_a_transposed_part_is_measured_as_it_will_be_stored() -> None:
    class Source:
        values = "F32"

        def read(self, start: int, stop: int) -> np.ndarray:
            rows = np.zeros((128, 512), np.float32)
            rows[:, ::2] = np.linspace(-1, 1, 128)[:, None]  # columns, rows once transposed, are 0 or a ramp
            return rows[start:stop]

    tensor = Untyped("blk.0.attn_k_b.weight", (1, 512, 128), (Part("kv_b", 0, 128, columns=512),), "F32")
    sources: Any = {"kv_b": Source()}
    [found] = measure.errors([tensor], [["Q4_1"]], sources)
    assert 1e-4 < found["Q4_1"] < 1e-2  # a ramp in 4-bit steps; rows as read would be two values, without any error


def test_a_weight_that_is_not_finite_is_named() -> None:
    class Source:
        values, name = "F32", "model.embed_tokens.weight"

        def read(self, start: int, stop: int) -> np.ndarray:
            rows = np.zeros((2048, 256), np.float32)
            rows[257, 7] = np.nan  # 256 is the first row that is looked at
            return rows[start:stop]

    sources: Any = {"model.embed_tokens.weight": Source()}
    with pytest.raises(InputError, match=r"model.embed_tokens.weight: has a weight that is not .* row 257, column 7"):
        list(measure.errors([embeddings()], [["Q4_1"]], sources))


# ---------------------------------------------------------------------------------------------------------- commands


def run(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def written(tmp_path: Path, *options: object) -> Path:
    out = tmp_path / "out.gguf"
    result = run(convert, BUNDLED, out, *options, "--quiet", "--overwrite")
    assert result.exit_code == 0, result.output
    return out


def test_a_file_has_the_wanted_bits_per_weight(tmp_path: Path) -> None:
    found = [open_gguf(written(tmp_path, "--target-bpw", bits)) for bits in (3.5, 4.5)]
    nbytes = [sum(tensor.nbytes for tensor in file.tensors.values()) for file in found]
    parameters = sum(tensor.rows * tensor.shape[-1] for tensor in found[0].tensors.values())
    assert 3.4 < nbytes[0] * 8 / parameters <= 3.5
    assert 4.4 < nbytes[1] * 8 / parameters <= 4.5


def test_a_file_has_at_most_the_wanted_size(tmp_path: Path) -> None:
    assert 3_900_000 < written(tmp_path, "--target-size", "4M").stat().st_size <= 4_000_000


def test_options_come_first_and_threads_change_nothing(tmp_path: Path) -> None:
    options = ("--target-bpw", 4, "--tensor-type", "attn_output=Q8_0", "--leave-output-tensor")
    one, two = (written(tmp_path, *options, "--threads", threads).read_bytes() for threads in (1, 2))
    assert one == two
    types = {name: tensor.type for name, tensor in open_gguf(tmp_path / "out.gguf").tensors.items()}
    assert {kind for name, kind in types.items() if "attn_output" in name} == {"Q8_0"}
    assert types["output.weight"] == "BF16"


def test_quantize_takes_sizes_too_and_names_the_file_by_it(tmp_path: Path) -> None:
    source = written(tmp_path, "--type", "BF16")
    assert run(quantize, source, tmp_path / "o-{type}.gguf", "--target-bpw", "4.5", "Q8_0", "--quiet").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("o-*")) == ["o-4.5bpw.gguf", "o-Q8_0.gguf"]
    assert (tmp_path / "o-4.5bpw.gguf").read_bytes()[-4096:] == written(tmp_path, "--target-bpw", 4.5).read_bytes()[
        -4096:
    ]


def test_the_dry_run_shows_what_each_choice_loses() -> None:
    options = (BUNDLED, "--target-bpw", "4.5", "--dry-run")
    [planned] = json.loads(run(convert, *options, "--json").output)["outputs"]
    weights = sum(tensor["type"] != "F32" for tensor in planned["plan"]["tensors"])
    assert len(re.findall(r"4\.5bpw: relative error [0-9.]+ %", run(convert, *options).output)) == weights > 30


def test_a_model_without_layers_cannot_be_weighed(tmp_path: Path) -> None:
    source = written(tmp_path, "--type", "BF16")
    layers = bytearray(source.read_bytes())
    at = layers.index(b"deepseek2.block_count") + len(b"deepseek2.block_count") + 4
    layers[at : at + 4] = bytes(4)
    source.write_bytes(layers)
    refused = command.gguf_mla("quantize", source, tmp_path / "o.gguf", "--target-bpw", "4.5", "--allow-requantize")
    assert refused.status == 2
    assert "expected a number above 0 in deepseek2.block_count, found 0" in refused.output
