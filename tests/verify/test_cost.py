"""The cost model against counting by hand and against itself, and the command that prints it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from verify.bench import cost
from verify.bench.cost import HeadSizes

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = HeadSizes(heads=1, nope=2, rope=1, value=3, rank=4)


@pytest.mark.parametrize(
    ("form", "multiplications", "nbytes"),
    [
        # 5 rows to (2 + 3) values of 4 each; 2 queries x 5 rows x (2 + 1 + 3); kv_b and rows read, expansion in and out
        (cost.vanilla, 5 * 5 * 4 + 2 * 5 * 6, 4 * (5 * 4 + 5 * 5) + 4 * 2 * 5 * 6),
        # 2 queries and results through kv_b; 2 x 5 x (5 for the score + 4 for the sum); kv_b and rows read
        (cost.absorbed, 2 * 5 * 4 + 2 * 5 * 9, 4 * (5 * 4 + 5 * 5)),
    ],
)
def test_a_small_case_by_hand(form: Callable[..., cost.Cost], multiplications: int, nbytes: int) -> None:
    assert form(ONE, 2, 5) == cost.Cost(2 * multiplications, nbytes)


@pytest.mark.parametrize("cached", [256, 1024, 163840])
def test_both_cost_the_same_at_the_crossover(cached: int) -> None:
    queries = cost.crossover(HeadSizes(), cached)
    below, above = int(queries), int(queries) + 1
    assert cost.absorbed(HeadSizes(), below, cached).operations <= cost.vanilla(HeadSizes(), below, cached).operations
    assert cost.absorbed(HeadSizes(), above, cached).operations >= cost.vanilla(HeadSizes(), above, cached).operations


def test_decoding_absorbed_costs_a_hundredth() -> None:
    # As the count in FlashInfer's pull request 551 has it.
    one, whole = cost.absorbed(HeadSizes(), 1, 4096).operations, cost.vanilla(HeadSizes(), 1, 4096).operations
    assert 0.005 < one / whole < 0.015


def test_absorbing_always_computes_less_where_the_latent_is_small() -> None:
    assert cost.crossover(HeadSizes(rank=100), 1 << 20) == float("inf")


def test_the_command_measures_both_forms() -> None:
    sizes = ["--heads", "2", "--cached", "32", "--queries", "1", "--queries", "8", "--queries", "64"]
    table = CliRunner().invoke(main, ["bench", "attention", *sizes])
    assert table.exit_code == 0, table.output
    assert "32 cached: vanilla computes less from" in table.output
    lines = json.loads(CliRunner().invoke(main, ["bench", "attention", *sizes, "--json"]).output)["measurements"]
    assert [line["queries"] for line in lines] == [1, 8]  # 64 queries need as many cached tokens
    assert all(line["vanilla_seconds"] > 0 and line["absorbed_seconds"] > 0 for line in lines)
    assert lines[1]["absorbed"]["operations"] == cost.absorbed(HeadSizes(2), 8, 32).operations
