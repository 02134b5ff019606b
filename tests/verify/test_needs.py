"""What a proof needs is asked for before any weight is read; what levels have found outlives one that fails."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.cli.printing import as_json
from gguf_mla.errors import InputError, MachineError
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.html import Page
from tests.support.replant import Plant, string
from verify.job import Proof, Request, prove
from verify.levels import attention, engine, logits, second_opinion, weights
from verify.levels.attention import LayerAgreement
from verify.levels.engine import EngineAgreement, read_answer
from verify.levels.logits import Scores
from verify.limits import Limits, exceeds
from verify.measures import Agreement
from verify.report import terminal
from verify.report.page import page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAN = float("nan")


@pytest.fixture(scope="module")
def q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("needs") / "tiny-Q8_0.gguf"
    convert(hub.BUNDLED, path, "Q8_0")
    return path


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight may be read."""

    def read(*_: Any) -> Any:
        pytest.fail("weights were read")

    monkeypatch.setattr(second_opinion, "of_reference", read)


def npy(header: str, data: bytes = bytes(64)) -> bytes:
    text = header.encode() + b" " * (-(11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def saved(save: Callable[..., None], *values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    save(file, *values, **options)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("a.txt", "1 2 3")
    return file.getvalue()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", saved(np.savez, np.arange(100)), "holds no token ids"),
        ("npz.npy", saved(np.savez, np.arange(100)), "holds no token ids"),
        ("zip.npy", archive(), "holds no token ids"),
        ("broken.npz", archive()[:-9], "holds no token ids"),
        ("broken.npy", b"PK\x03\x04" + bytes(40), "holds no token ids"),
        ("npz.txt", saved(np.savez, np.arange(100)), "holds no token ids"),
        ("objects.npy", saved(np.save, np.array([{}] * 9), allow_pickle=True), "holds no token ids"),
        ("pickle.npy", b"\x80\x04\x95" + bytes(40), "holds no token ids"),
        ("records.npy", saved(np.save, np.zeros(9, [("a", "<i8")])), "holds no token ids"),
        ("floats.npy", saved(np.save, np.ones(20)), "found float64"),
        ("times.npy", saved(np.save, np.zeros(20, "<m8[s]")), "holds no token ids"),
        ("huge.npy", saved(np.save, np.full(9, (1 << 64) - 1, np.uint64)), "outside the vocabulary"),
        ("negative.npy", saved(np.save, np.full((3, 3), -1)), "outside the vocabulary"),
        ("empty.npy", saved(np.save, np.zeros(0, int)), "too little text"),
        ("one.npy", saved(np.save, np.int64(5)), "too little text"),
        ("long.npy", npy("{'descr':'<i8','fortran_order':False,'shape':(1152921504606846976,)}"), "holds no token ids"),
        ("wide.npy", npy("{'descr':'<i8','fortran_order':False,'shape':(4294967296, 4294967296)}"), "no token ids"),
        ("short.npy", npy("{'descr':'<i8','fortran_order':False,'shape':(100,)}"), "holds no token ids"),
        ("less.npy", npy("{'descr':'<i8','fortran_order':False,'shape':(-5,)}"), "holds no token ids"),
        ("open.npy", npy("(" * 3000), "holds no token ids"),
        ("empty.txt", b"", "too little text"),
        ("blank.txt", b" \n, [] ", "too little text"),
        ("large.txt", b"1 2 3 4 5 6 7 8 18446744073709551616", "holds no token ids"),
        ("both.txt", b"-1 2 3 4 5 6 7 8 18446744073709551615", "holds no token ids"),
        ("digits.txt", b"1 2 3 4 5 6 7 8 " + b"9" * 5000, "holds no token ids"),
        ("word.txt", b"x" * 100_000, "holds no token ids"),
        ("half.txt", b"1.5 2.5", "holds no token ids"),
    ],
)
def test_ids_that_are_none(name: str, content: bytes, words: str, q8: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        prove(Request(hub.BUNDLED, q8, tokens=tmp_path / name))
    assert str(tmp_path / name) in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("option", [("--context", 7), ("--context", 10**12), ("--chunks", 0), ("--chunks", 10**20)])
def test_sizes_out_of_range(option: tuple[str, int], q8: Path) -> None:
    answer = gguf_mla("verify", hub.BUNDLED, q8, *option)
    assert (answer.status, "is not in the range" in answer.output) == (2, True)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("level", ["structure", "logits"])
def test_a_text_and_ids_at_once_are_refused(level: str, q8: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("1 2 3 4 5 6 7 8 9")
    options = ("--text", tmp_path / "ids.txt", "--tokens", tmp_path / "ids.txt", "--level", level)
    answer = gguf_mla("verify", hub.BUNDLED, q8, *options)
    assert answer.status == 2
    assert "--text and --tokens are both given" in answer.output


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("missing", "options", "words"),
    [
        ("xllamacpp", {"engine": True}, "--engine needs llama.cpp"),
        ("xllamacpp", {"engine": True, "level": "weights"}, "--engine needs llama.cpp"),
        ("tokenizers", {}, "needs the package tokenizers"),
        ("tokenizers", {"level": "attention"}, "needs the package tokenizers"),
    ],
)
def test_a_missing_package_is_missed_first(
    missing: str, options: dict[str, Any], words: str, q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=words):
        prove(Request(hub.BUNDLED, q8, **options))


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("key", "value"), [("pre", "a-name-of-mine"), ("pre", "kimi-linear"), ("model", "llama"), ("model", None)]
)
def test_a_gguf_reference_whose_texts_cannot_be_read_is_said_first(
    key: str, value: str | None, q8: Path, tmp_path: Path
) -> None:
    changed = {f"tokenizer.ggml.{key}": None if value is None else string(value)}
    reference = Plant(q8).write(tmp_path / "reference.gguf", changed)
    with pytest.raises(InputError, match="Give token ids with --tokens"):
        prove(Request(reference, q8))
    assert prove(Request(reference, reference, level="structure")).right


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("text", ["", "a", "a b"])
def test_too_little_text_is_said_first(text: str, q8: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text)
    with pytest.raises(InputError, match="too little text"):
        prove(Request(hub.BUNDLED, q8, text=tmp_path / "text"))


@pytest.mark.parametrize(
    ("level", "step", "error", "status"),
    [
        ("attention", (attention.Attentions, "compare"), MachineError("the GPU went away"), 3),
        ("logits", (logits.Passes, "run"), InputError("the file ends too early"), 2),
        ("logits", (logits.Passes, "run"), MemoryError(), 3),
    ],
)
def test_what_was_found_outlives_a_level_that_fails(
    level: str,
    step: tuple[type, str],
    error: Exception,
    status: int,
    q8: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(*step, fail)
    options = ("--chunks", 1, "--context", 64, "--quiet", "--report", tmp_path / "report.html")
    answer = gguf_mla("verify", hub.BUNDLED, q8, *options, "--json")
    assert answer.status == status
    printed, said = answer.output.splitlines()
    content = json.loads(printed)
    assert (content["right"], len(content["tensors"]), "error" in content) == (False, 52, True)
    assert list(content["seconds"]) == ["structure", "weights", "attention"][: 2 + (level == "logits")]
    assert said.startswith("gguf-mla: error: ")
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not proven" in written
    assert "Error by tensor" in written
    assert "not proven. As far as structure" in gguf_mla("verify", hub.BUNDLED, q8, *options).output


def test_a_difference_found_before_a_failure_is_shown(q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(*arguments: Any) -> Any:
        if compared:
            raise MachineError("the disk went away")
        compared.append(replace((yield from compare(*arguments)), special=3))
        return compared[0]

    compared: list[Any] = []
    compare = weights.compare
    monkeypatch.setattr(weights, "compare", some)
    answer = gguf_mla("verify", hub.BUNDLED, q8, "--quiet", "--level", "weights")
    assert answer.status == 3
    assert "has 3 values that are NaN or infinite" in answer.output
    assert "the disk went away" in answer.output


def said(difference: float, kld: float) -> EngineAgreement:
    return EngineAgreement(8, difference, kld, same_top=True)


LAYER = LayerAgreement(0, "Q8_0", Agreement(1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "found",
    [
        lambda: engine.judge([said(0, 0), said(0, NAN), said(0, 0)], None),
        lambda: engine.judge([said(0, 0), said(NAN, 0)], 1.0),
        lambda: engine.judge([said(NAN, 0), said(0, 0)], 1.0),
        lambda: attention.judge(replace(LAYER, measured=Agreement(NAN, NAN, NAN)), Limits()),
        lambda: logits.judge(Scores(*(np.array([0.0, NAN]) for _ in range(3)), np.ones(2, bool)), 1.0),
    ],
)
def test_what_is_not_a_number_is_a_difference(found: Callable[[], object]) -> None:
    assert found() is not None


def test_nothing_is_within_a_limit_but_what_is() -> None:
    assert [exceeds(value, 1.0) for value in (0.0, 1.0, 1.1, NAN, float("inf"))] == [False, False, True, True, True]
    assert exceeds(0.0, NAN)
    assert engine.judge([said(0.0, 0.0)], 1.0) is None


def answer_of(listed: Any) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}


def test_an_engine_that_says_null_says_no_number() -> None:
    ids, values = read_answer(json.dumps(answer_of([{"id": 5, "logprob": None}, {"id": 6, "logprob": -1.0}])))
    assert ids.tolist() == [5, 6]
    np.testing.assert_array_equal(values, [NAN, -1.0])


@pytest.mark.parametrize(
    "answer", ["", "{", {}, {"choices": []}, answer_of([]), answer_of([{}]), answer_of([{"id": "x", "logprob": 0}]), 5]
)
def test_an_answer_of_the_engine_that_cannot_be_read(answer: Any) -> None:
    with pytest.raises(MachineError, match="answer"):
        read_answer(answer)


@pytest.mark.parametrize("worst", [NAN, float("inf"), 1e30])
def test_a_report_shows_what_is_not_a_number(worst: float, q8: Path) -> None:
    proof: Proof = prove(Request(hub.BUNDLED, q8, level="weights", limits=Limits().with_settings(["rms=0"])))
    proof.tensors[0].sums[:] = worst
    proof.layers = proof.attention = [replace(LAYER, measured=Agreement(worst, worst, worst)), LAYER]
    proof.scores = Scores(*(np.array([0.0, worst]) for _ in range(3)), np.ones(2, bool))
    with np.errstate(all="ignore"):
        parser = Page()
        parser.feed(page(proof))
        assert parser.open == []
        assert terminal.text(proof)
        assert as_json(terminal.content(proof))


def test_the_second_opinion_takes_the_same_nan_for_the_same() -> None:
    data = np.array([[1.0, NAN, float("inf")]], np.float32).view(np.uint8)
    tensor: Any = SimpleNamespace(name="x", type="F32", rows=1, read=lambda *_: data)
    assert second_opinion.of_gguf(tensor) is None
