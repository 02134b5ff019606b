"""The JSON of a proof has exactly the fields that docs/verification.md lists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.cli.printing import as_json
from gguf_mla.errors import InputError
from tests.support import hub
from tests.support.command import convert
from verify.findings import Finding
from verify.job import Proof, Request, prove
from verify.levels.engine import EngineAgreement
from verify.levels.exact import Sameness, Way
from verify.levels.weights import Position
from verify.report import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs" / "verification.md"
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "q_lora_rank": 64,
         "moe_intermediate_size": 32, "intermediate_size": 64, "kv_lora_rank": 64, "tame": True}  # fmt: skip


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """All that a proof can find: sparse attention, a prediction layer, an engine, a finding, a failure."""
    directory = tmp_path_factory.mktemp("json")
    hub.write(directory / "v32", "v32", **SMALL)
    convert(directory / "v32", directory / "v32.gguf", "F16")
    (directory / "ids").write_text(" ".join(map(str, range(100, 132))))
    found = prove(Request(directory / "v32", directory / "v32.gguf", tokens=directory / "ids", chunks=1))
    found.findings.append(Finding("logits", "the predictions", "are not the reference's", "a", "b"))
    found.engine = [EngineAgreement(8, 0.1, 0.2, same_top=True)]
    found.exact = [Sameness("a.weight", "Q8_0", "", Way(), 10, 1, Position(0, 1, 32))]
    found.failure = InputError("the engine cannot be asked")
    return found


def documented() -> dict[str, set[str]]:
    """What the table says: an object's path → its fields; "" is the whole."""
    section = DOCS.read_text(encoding="utf-8").split("## JSON")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    found: dict[str, set[str]] = {"": set()}
    for paths, fields in rows:
        for path in re.findall(r"`([^`]+)`", paths):
            found[""] |= {path.split(".")[0].removesuffix("[]")}
            names = set(re.findall(r"`([^`]+)`", fields))
            if path not in ("right", "grade", "schema", "version"):
                found[path] = names
            if "." in path:
                parent, _, name = path.rpartition(".")
                found[parent].add(name)
    return {path: names for path, names in found.items() if names}


def printed(value: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    if isinstance(value, dict) and path not in ("seconds", "request.set"):  # these name levels and settings
        yield path, set(value)
        for name, inner in value.items():
            yield from printed(inner, f"{path}.{name}".lstrip("."))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield from printed(value[0], path + "[]")


def test_every_field_is_documented_and_every_documented_field_is_there(proof: Proof) -> None:
    content = json.loads(as_json(terminal.content(proof)))
    assert dict(printed(content)) == documented()


def test_what_a_program_relies_on(proof: Proof) -> None:
    content = json.loads(as_json(terminal.content(proof)))
    assert (content["schema"], content["grade"], content["right"]) == (1, "wrong", False)
    assert content["request"]["level"] == "logits"
    assert list(content["seconds"]) == ["structure", "weights", "attention", "logits"]
    assert content["findings"][-1]["sentence"] == ("the predictions: are not the reference's (expected a, found b).")
    assert all(len(content["logits"][name]) == 2 for name in ("kld", "ln_ratio", "same_top"))
    assert content["error"] == "the engine cannot be asked."
    assert content["predicted"][0]["tokens"] > 0
