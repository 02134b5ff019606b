"""What a finding means decides the verdict, what is printed first, the page's colour and the exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import InputError
from tests.support import hub
from tests.support.command import convert, gguf_mla
from verify.findings import Finding, Grade
from verify.job import Proof, Request, prove
from verify.levels import structure
from verify.report import terminal
from verify.report.page import page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRONG = Finding("structure", "a.key", "is wrong", 1, 2)
DIFFERS = Finding("structure", "b.key", "is another", grade=Grade.DIFFERS)
UNTOLD = Finding(
    "structure", "c.key", "is unknown", grade=Grade.CANNOT_TELL, remedy="A reference with this key would tell"
)


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grades") / "tiny.gguf"
    convert(hub.BUNDLED, path, "F32")
    return path


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the structure of any candidate have these findings."""

    def find(*findings: Finding) -> None:
        monkeypatch.setattr(structure, "check_tensors", lambda *_: findings)

    return find


def proven(candidate: Path, *findings: Finding) -> Proof:
    proof = prove(Request(hub.BUNDLED, candidate, level="structure"))
    proof.findings = list(findings)
    return proof


@pytest.mark.parametrize(
    ("findings", "grade", "status", "strict"),
    [
        ((), Grade.RIGHT, 0, 0),
        ((DIFFERS,), Grade.DIFFERS, 0, 1),
        ((UNTOLD,), Grade.RIGHT, 0, 0),
        ((UNTOLD, DIFFERS), Grade.DIFFERS, 0, 1),
        ((DIFFERS, UNTOLD, WRONG), Grade.WRONG, 1, 1),
    ],
)
def test_the_gravest_finding_decides(
    findings: tuple[Finding, ...], grade: Grade, status: int, strict: int, f32: Path, found: Callable[..., None]
) -> None:
    found(*findings)
    options: tuple[Any, ...] = ("verify", hub.BUNDLED, f32, "--level", "structure")
    plain, again = gguf_mla(*options, "--json"), gguf_mla(*options, "--strict")
    assert (plain.status, again.status) == (status, strict)
    content = json.loads(plain.output)
    assert (content["grade"], content["right"]) == (grade, grade is not Grade.WRONG)
    gravest_first = sorted((finding.grade for finding in findings), key=list(Grade).index, reverse=True)
    assert [entry["grade"] for entry in content["findings"]] == gravest_first


def test_what_could_not_be_judged_at_all_is_status_2(f32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misread = Finding("weights", "a.weight", "is read otherwise")
    monkeypatch.setattr("verify.levels.second_opinion.of_reference", lambda *_: [misread])
    answer = gguf_mla("verify", hub.BUNDLED, f32, "--level", "weights", "--json")
    assert answer.status == 2
    printed, said = answer.output.splitlines()
    content = json.loads(printed)
    assert (content["grade"], content["right"]) == ("cannot tell", False)
    assert [entry["grade"] for entry in content["findings"]] == ["cannot tell"]
    assert "nothing can be said of a file" in said


def test_only_what_is_wrong_ends_a_proof(f32: Path, found: Callable[..., None]) -> None:
    found(DIFFERS, UNTOLD)
    assert list(prove(Request(hub.BUNDLED, f32, level="weights")).seconds) == ["structure", "weights"]
    found(WRONG)
    assert list(prove(Request(hub.BUNDLED, f32, level="weights")).seconds) == ["structure"]


def test_the_gravest_is_read_first_and_what_would_tell_is_said(f32: Path) -> None:
    lines = terminal.verdict(proven(f32, DIFFERS, UNTOLD, WRONG)).splitlines()
    assert [line.split(":")[1].split(".")[0].strip() for line in lines] == ["wrong", "cannot tell", "differs"]
    assert lines[1].endswith("c.key: is unknown. A reference with this key would tell.")
    said = terminal.verdict(proven(f32, DIFFERS)).splitlines()
    assert said[0] == "tiny.gguf: differs. structure: b.key: is another."
    assert said[1].startswith("tiny.gguf: right but for differences that change nothing, as far as structure")


def test_further_findings_are_counted(f32: Path) -> None:
    lines = terminal.verdict(proven(f32, *[DIFFERS] * 20, WRONG)).splitlines()
    assert "wrong" in lines[0]
    assert lines[-1] == "... and 13 more findings"


@pytest.mark.parametrize(
    ("finding", "heading", "title"),
    [
        (WRONG, 'class="bad">wrong', "What is wrong"),
        (DIFFERS, 'class="good">right', "What differs, and changes nothing"),
        (UNTOLD, 'class="good">right', "What cannot be told"),
    ],
)
def test_the_page_shows_each_grade_under_its_title(finding: Finding, heading: str, title: str, f32: Path) -> None:
    text = page(proven(f32, finding))
    assert heading in text
    assert f"<h2>{title}</h2>" in text
    assert finding.subject in text


def test_a_failure_without_a_finding_tells_nothing(f32: Path) -> None:
    proof = proven(f32)
    proof.failure = InputError("the text ended")
    assert (proof.grade, proof.right) == (Grade.CANNOT_TELL, False)
    proof.findings.append(WRONG)
    assert proof.grade is Grade.WRONG
