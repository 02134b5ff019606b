"""Every checkpoint that a tool has left becomes the same values as the one it was made of, or a sentence."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.sources.checkpoint import Choices
from gguf_mla.sources.recognise import settings
from tests.inputs.cases import CASES, Case
from tests.inputs.workshop import base, planned, values_of
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = {"--no-mtp": ("mtp", "drop"), "--pad-vocab": ("pad_vocabulary", True)}


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The values of unchanged checkpoints by kind."""

    @cache
    def of(kind: str) -> dict[str, bytes]:
        return values_of(*planned(base(kind).write(tmp_path_factory.mktemp("truth") / kind)))

    return of


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_read_or_explained(name: str, tmp_path: Path, truths: Any) -> None:
    case = CASES[name]
    directory = case.write(tmp_path / "model")
    answer = gguf_mla(
        "convert", directory, tmp_path / "out.gguf", "--type", "BF16", "--dry-run", "--json", *case.options
    )
    assert answer.status == (2 if case.refused else 0), answer.output
    assert "Traceback" not in answer.output
    said = answer.output if case.refused else " ".join(json.loads(answer.output)["warnings"])
    assert [word for word in case.words if word not in said] == [], said
    assert [word for word in case.silent if word in said] == [], said
    assert len(said) < 2000
    if not case.refused and case.same:
        compare(case, directory, truths(case.kind))


def compare(case: Case, directory: Path, truth: dict[str, bytes]) -> None:
    """What is planned has the values that the unchanged checkpoint has, tensor by tensor."""
    found = values_of(*planned(directory, *decided(case)[:1], **decided(case)[1]))
    differing = {name for name in found.keys() | truth.keys() if found.get(name) != truth.get(name)}
    assert [name for name in differing if not any(part in name for part in case.other)] == []
    for part in case.other:
        assert any(part in name for name in differing), f"{part} is as it was"


def decided(case: Case) -> tuple[Choices, dict[str, Any]]:
    """The options of a command line as what the planner takes."""
    words, sets, options = list(case.options), [], {}
    given: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word in FLAGS:
            options[FLAGS[word][0]] = FLAGS[word][1]
        elif word == "--set":
            sets.append(words.pop(0))
        elif word == "--pre":
            options["pre"] = words.pop(0)
        else:
            given[word.removeprefix("--")] = words.pop(0)
    return Choices(**given, settings=settings.parse(sets)), options


def test_dense_models_have_no_experts(tmp_path: Path) -> None:
    plan, _ = planned(CASES["B2 dense"].write(tmp_path / "model"))
    assert not [job.name for job in plan.tensors if "exp" in job.name]
    keys = {key.removeprefix("deepseek2."): value.data for key, value in plan.metadata.items()}
    assert (keys["leading_dense_block_count"], keys["expert_shared_count"]) == (2, 0)
    assert not {"expert_count", "expert_used_count", "expert_group_count"} & keys.keys()


def test_a_shared_expert_that_is_not_there_is_zero(tmp_path: Path) -> None:
    plan, checkpoint = planned(CASES["B2"].write(tmp_path / "model"))
    parts = [part for job in plan.tensors if "_shexp" in job.name for part in job.parts]
    assert len(parts) == 3
    assert not any(checkpoint.tensors[part.source].read(part.start, part.stop).any() for part in parts)
    assert plan.metadata["deepseek2.expert_shared_count"].data == 1


def test_pruned_groups_become_one(tmp_path: Path) -> None:
    case = CASES["B3 set"]
    choices, options = decided(case)
    plan, _ = planned(case.write(tmp_path / "model"), choices, **options)
    keys = ("expert_count", "expert_group_count", "expert_group_used_count")
    assert [plan.metadata[f"deepseek2.{key}"].data for key in keys] == [3, 1, 1]


def test_the_body_alone_has_its_values(tmp_path: Path, truths: Any) -> None:
    plan, checkpoint = planned(CASES["A10 the body alone"].write(tmp_path / "model"))
    found, truth = values_of(plan, checkpoint), truths("v3")
    assert {name: truth[name] for name in found} == found
    assert truth.keys() - found.keys() == {"output.weight"}
