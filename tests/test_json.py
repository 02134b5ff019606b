"""What every command prints with --json is one object of the documented schema, also where it fails."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gguf_mla.test_imatrix import dat
from tests.support import hub
from tests.support.command import gguf_mla
from tests.support.schema import faults

SCHEMA: Any = json.loads((hub.REPOSITORY / "gguf_mla" / "data" / "json.schema.json").read_text(encoding="utf-8"))
PAGE = (hub.REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("json")
    assert gguf_mla("convert", hub.BUNDLED, directory / "bf16.gguf", "--quiet").status == 0
    assert gguf_mla("downgrade", directory / "bf16.gguf", directory / "old.gguf", "--quiet").status == 0
    dat(directory / "m.dat", {"blk.0.attn_q_a.weight": (1, [1, 2, 3]), "blk.1.attn_q_a.weight": (1, [1, 2, 4])})
    return directory


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def printed(*words: object, status: int = 0) -> Any:
    answer = gguf_mla(*words, "--json")
    assert answer.status == status, answer.output
    [line] = [line for line in answer.output.splitlines() if line.startswith("{")]
    document = json.loads(line)
    assert list(faults(document, SCHEMA, SCHEMA)) == []
    assert document["status"] == status
    return document


LINES = {
    "convert": ("convert", hub.BUNDLED, "o.gguf"),
    "convert dry": ("convert", hub.BUNDLED, "o.gguf", "--dry-run"),
    "convert many": ("convert", hub.BUNDLED, "o-{type}.gguf", "--type", "F16", "--type", "BF16", "--checksums"),
    "convert many dry": ("convert", hub.BUNDLED, "o-{type}.gguf", "--type", "F16", "--type", "BF16", "--dry-run"),
    "vocabulary": ("convert", hub.BUNDLED, "o.gguf", "--vocab-only"),
    "quantize": ("quantize", "FILES/bf16.gguf", "o.gguf", "Q8_0", "--timings"),
    "split": ("split", "FILES/bf16.gguf", "o", "--split-max-tensors", "20", "--checksums"),
    "upgrade": ("upgrade", "FILES/old.gguf", "o.gguf"),
    "upgrade dry": ("upgrade", "FILES/old.gguf", "o.gguf", "--dry-run"),
    "inspect": ("inspect", "FILES/old.gguf"),
    "inspect context": ("inspect", "FILES/bf16.gguf", "--context", "100"),
    "inspect fit": ("inspect", "FILES/bf16.gguf", "--fit", "1G"),
    "inspect matrix": ("inspect", "FILES/m.dat"),
    "imatrix show": ("imatrix", "show", "FILES/m.dat"),
    "verify": ("verify", hub.BUNDLED, "FILES/bf16.gguf", "--level", "structure"),
    "bench": ("bench", "dequantize", "--types", "Q8_0", "--seconds", "0.001", "--rows", "1"),
}
COMMANDS = {"bench": "bench dequantize", "imatrix show": "imatrix show"}  # those of two words
REFUSED = {
    "no such file": ("inspect", "nowhere.gguf"),
    "no such option": ("convert", "--nonsense"),
    "no such model": ("verify", "nowhere", "nowhere.gguf"),
    "exists": ("convert", hub.BUNDLED, "FILES/bf16.gguf"),
    "exists dry": ("convert", hub.BUNDLED, "FILES/bf16.gguf", "--dry-run"),
}


def line(words: tuple[object, ...], files: Path) -> list[str]:
    return [str(word).replace("FILES", str(files)) for word in words]


@pytest.mark.parametrize("name", LINES)
def test_what_is_printed_has_the_schema(name: str, files: Path) -> None:
    document = printed(*line(LINES[name], files))
    assert document["errors"] == []
    assert document["command"] == COMMANDS.get(name, LINES[name][0])
    assert ("matrix" in document) == ("matrix" in name)
    for part in (part for output in document["outputs"] for part in output["parts"]):
        if "--checksums" in LINES[name]:
            assert part["sha256"] == hashlib.sha256(Path(part["path"]).read_bytes()).hexdigest()
        if "--dry-run" not in LINES[name]:
            assert part["bytes"] == Path(part["path"]).stat().st_size


@pytest.mark.parametrize("name", REFUSED)
def test_a_failure_has_it_too(name: str, files: Path) -> None:
    document = printed(*line(REFUSED[name], files), status=2)
    [error] = document["errors"]
    assert error["status"] == 2
    assert error["what"] in error["sentence"]
    assert (document["outputs"] == []) == (name != "exists dry")


def test_a_plan_and_what_is_written_have_the_same_shape() -> None:
    words = ("convert", hub.BUNDLED, "o-{type}.gguf", "--type", "F16", "--type", "BF16")
    planned, written = printed(*words, "--dry-run"), printed(*words)
    assert planned.keys() == written.keys()
    assert [{**output, "plan": None} for output in planned["outputs"]] == written["outputs"]
    assert list(written["stages"]) == ["planning", "streaming", "finishing"]
    assert written["elapsed"] >= sum(written["stages"].values()) - 0.01


def test_shared_work_has_the_schema_too() -> None:
    printed("plan", "convert", hub.BUNDLED, "o.gguf", "--out", "p.json")
    shown = printed("plan", "show", "p.json", "--workers", "1,2-3")
    assert [row["workers"] for row in shown["workers"]] == [1, 2, 3]
    assert printed("work", "p.json")["share"]["jobs"] == list(range(shown["plan"]["jobs"]))
    assert printed("finish", "p.json").keys() == printed("convert", hub.BUNDLED, "p.gguf").keys()


def test_a_removed_part_is_named(files: Path) -> None:
    printed("split", files / "bf16.gguf", "s", "--split-max-tensors", "30")
    merged = printed("merge", "s-00001-of-00002.gguf", "m.gguf", "--delete-splits")
    assert merged["run"]["removed"] == ["s-00001-of-00002.gguf", "s-00002-of-00002.gguf"]


def test_the_page_names_every_field() -> None:
    named = set(re.findall(r"`\.?([a-z0-9_.\[\]]+)`", PAGE))
    words = {word.removesuffix("[]") for name in named for word in name.split(".")}
    fields = {*SCHEMA["properties"]}
    for definition in SCHEMA["$defs"].values():
        fields |= {*definition["properties"]}
    words |= {word.removesuffix("[]") for word in words}
    assert fields - words - {"source"} == set()


def test_a_fault_is_a_fault() -> None:
    document = {"schema": 2, "version": 1, "status": 0, "outputs": [{"path": "x"}]}
    found = list(faults(document, SCHEMA, SCHEMA))
    assert any("$.errors is missing" in fault for fault in found)
    assert any("$.version" in fault for fault in found)
    assert any("$.outputs[0].bytes is missing" in fault for fault in found)
    assert any("$.schema: 2 is not allowed" in fault for fault in found)
