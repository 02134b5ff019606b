"""The union of choices by hand, synthetic texts, and the command that prints what batches read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.forward import indexer
from gguf_mla.forward.indexer import NOTHING
from tests.support import hub
from tests.support.attention import inputs, score_size, score_terms, terms
from tests.support.close import close
from verify.bench import union

if TYPE_CHECKING:
    from pathlib import Path

SMALL = replace(union.V32, indexer=replace(union.V32.indexer, top_k=64))


def bench(*options: object, status: int = 0) -> str:
    answer = CliRunner().invoke(main, ["bench", "attention", "--sparse", *map(str, options)])
    assert answer.exit_code == status, answer.output
    return answer.output


def test_unions_by_hand() -> None:
    chosen = torch.tensor([[0, NOTHING], [0, 1], [1, 2], [1, 2], [3, 4]])
    assert union.batch_sizes(chosen, 5, 1) == ((1 + 2 + 3 + 4 + 5) / 5, (1 + 2 + 2 + 2 + 2) / 5)
    assert union.batch_sizes(chosen, 9, 2) == ((9 + 7) / 2, (3 + 4) / 2)  # the last four: {0, 1, 2}, {1, 2, 3, 4}
    assert union.batch_sizes(chosen, 5, 5) == (5, 5)


def test_bytes_by_hand() -> None:
    chosen = torch.tensor([[0, 1], [1, 2]])
    one, two = union.readings(SMALL, "here", chosen, 10, 2, [1, 2, 4])
    row = 2 * (512 + 64)
    assert (two.masked, two.gathered, two.single, two.keys) == (10 * row, 3 * row, 4 * row, 10 * 2 * 128)
    assert (two.union, two.share) == (3, 0.3)
    assert (one.union, one.masked, one.gathered, one.single) == (2, round(9.5 * row), 2 * row, 2 * row)


def test_a_synthetic_text_has_its_queries_at_the_end() -> None:
    every, last = (union.synthetic(50, queries, 0.9, SMALL) for queries in (50, 8))
    np.testing.assert_array_equal(last.keys, every.keys)
    # The same products of 8 rows instead of 50, which BLAS adds otherwise: a projection and the Hadamard transform.
    products, size = union.WIDTH + SMALL.indexer.size, np.linalg.norm(every.queries[-8:], axis=-1, keepdims=True)
    close(last.queries, every.queries[-8:], products, size / SMALL.indexer.size**0.5)
    close(last.weights, every.weights[-8:], union.WIDTH, every.weights.square().mean().sqrt().item())
    close(indexer.scores(last, 0, 8), indexer.scores(every, 42, 50), products + score_terms(last), score_size(last))


def test_related_queries_choose_alike() -> None:
    sizes = [
        union.batch_sizes(indexer.choose(union.synthetic(1024, 32, correlation, SMALL), 64), 1024, 8)[1]
        for correlation in (0.0, 0.9, 0.99)
    ]
    assert 8 * 64 >= sizes[0] > sizes[1] > sizes[2] > 64


def test_the_command_prints_synthetic_texts() -> None:
    sizes = "--cached", 2304, "--queries", 1, "--queries", 8
    table = bench(*sizes)
    assert table.splitlines()[0].split("  ")[0] == "chosen by"
    lines: list[dict[str, Any]] = json.loads(bench(*sizes, "--json"))["measurements"]
    assert [line["queries"] for line in lines] == [1, 8] * 3
    assert all(line["union"] == 2048 for line in lines if line["queries"] == 1)
    assert all(2048 < line["union"] <= 2304 for line in lines if line["queries"] == 8)
    assert all(line["gathered"] <= line["masked"] < line["single"] for line in lines if line["queries"] == 8)


@pytest.mark.parametrize("name", ["v32", "v32-Q8_0.gguf", "glm-dsa"])
def test_the_command_looks_at_a_model(name: str, sparse_files: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(100, 200))
    options = "--model", sparse_files / name, "--tokens", tmp_path / "ids.npy", "--cached", 80, "--queries", 4, "--json"
    lines = json.loads(bench(*options))["measurements"]
    layers = ["layer 0", "layer 2"] if name == "glm-dsa" else ["layer 0", "layer 1"]
    assert [line["source"] for line in lines] == layers
    assert all(line["cached"] == 80 and line["top_k"] == 16 and 16 <= line["union"] <= 64 for line in lines)


def test_a_dense_model_is_taken_to_choose_what_it_attends_to(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(100, 200))
    options = "--model", hub.BUNDLED, "--tokens", tmp_path / "ids.npy", "--cached", 80, "--queries", 8, "--json"
    lines = json.loads(bench(*options))["measurements"]
    assert [(line["source"], line["top_k"]) for line in lines] == [("layer 0", 10), ("layer 1", 10), ("layer 2", 10)]
    assert all(10 <= line["union"] < 80 for line in lines)
    assert {line["top_k"] for line in json.loads(bench(*options, "--top-k", 20))["measurements"]} == {20}


def test_attention_mass_is_that_of_all_heads() -> None:
    x = inputs(12, 20, heads=3)
    found = union.attention_mass(x, 5)
    key = torch.einsum("sr,hrn->hsn", x.latent, x.k_b)
    scores = torch.einsum("thn,hsn->hts", x.q_nope, key) + torch.einsum("thp,sp->hts", x.q_pe, x.k_pe)
    scores[:, torch.ones(12, 20, dtype=torch.bool).triu(9)] = -torch.inf
    expected = (scores * x.scale).softmax(dim=-1).sum(dim=0)[-5:]
    close(found.where(found != -torch.inf, 0.0), expected, terms(20), float(expected.max()))
    assert torch.equal(found == -torch.inf, torch.ones(5, 20, dtype=torch.bool).triu(16))
