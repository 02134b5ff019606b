"""`gguf-mla verify` as its users meet it: verdict, exit status, JSON, page, options, bad input."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import open_gguf
from gguf_mla.cli.printing import as_json
from gguf_mla.container.values import f32, u32
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.place import Place
from tests.support import bulk, hub
from tests.support.attention import bundled_model
from tests.support.command import Answer, command, convert, gguf_mla, measure
from tests.support.damage import configure
from tests.support.html import Page
from tests.verify.faults import ARCH, Image
from verify import job, rounding
from verify.command import FORMS as OFFERED
from verify.findings import LEVELS
from verify.job import Proof, Request, prove
from verify.report import terminal
from verify.report.page import page

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.forward.attention import Form


@pytest.fixture(scope="module")
def q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "tiny-Q8_0.gguf"
    convert(hub.BUNDLED, path, "Q8_0")
    return path


def verify(reference: Path, candidate: Path, *options: object, status: int = 0) -> Answer:
    answer = gguf_mla("verify", reference, candidate, "--quiet", *options)
    assert answer.status == status, answer.output
    return answer


@pytest.fixture(scope="module")
def proof(q8: Path) -> Proof:
    """A whole proof of a right file."""
    return prove(Request(hub.BUNDLED, q8, chunks=1, threads=2))


def test_the_terminal_shows_every_level_and_the_verdict(proof: Proof) -> None:
    shown = terminal.text(proof)
    for words in ("worst tensors", "attention  coarsest type", "mean KL divergence", "same top token", "can tell"):
        assert words in shown
    levels = ", ".join(rf"{level} \(\d+\.\d s\)" for level in LEVELS)
    assert re.fullmatch(rf"tiny-Q8_0\.gguf: right, as far as {levels} can tell\.", shown.splitlines()[-1])


def test_json_has_every_measure(proof: Proof) -> None:
    content = json.loads(as_json(terminal.content(proof)))
    assert content["right"] is True
    assert content["findings"] == []
    assert len(content["tensors"]) == 52
    assert [layer["layer"] for layer in content["layers"]] == [0, 1, 2]
    logits = content["logits"]
    assert logits["tokens"] == 255
    assert 0 < logits["kld"][0] < logits["kld_percentiles"]["max"]


def test_the_page_is_sound_and_needs_nothing_else(proof: Proof) -> None:
    parser, text = Page(), page(proof)
    parser.feed(text)
    assert parser.open == []
    assert parser.loaded == []
    assert "url(" not in text
    for words in (
        "Size by type",
        "Error by tensor",
        "Layer by layer",
        "KL divergence of a token",
        'class="good">right',
    ):
        assert words in text


def test_a_wrong_file_ends_with_status_1_and_the_culprit(q8: Path, tmp_path: Path) -> None:
    image = Image.of(q8)
    image.metadata[ARCH + "rope.scaling.factor"] = f32(40)
    image.metadata[ARCH + "attention.key_length"] = u32(192)
    wrong = image.write(tmp_path / "wrong.gguf")
    answer = verify(hub.BUNDLED, wrong, "--report", tmp_path / "report.html", status=1)
    first, second = answer.output.splitlines()
    assert first == ("wrong.gguf: wrong. structure: deepseek2.rope.scaling.factor: is wrong (expected 4, found 40).")
    assert "attention.key_length" in second
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'class="bad">wrong' in written
    assert "rope.scaling.factor" in written
    parsed = json.loads(gguf_mla("verify", hub.BUNDLED, wrong, "--json").output)
    assert [finding["level"] for finding in parsed["findings"]] == ["structure", "structure"]


@pytest.mark.parametrize("level", ["structure", "weights", "attention"])
def test_a_level_ends_the_proof(level: str, q8: Path) -> None:
    line = verify(hub.BUNDLED, q8, "--level", level).output
    looked = re.findall(r"(structure|weights|attention|logits) \(", line)
    assert looked[-1] == level


def test_limits_can_be_changed(q8: Path) -> None:
    found = verify(hub.BUNDLED, q8, "--level", "weights", "--limit", "Q8_0.rms=0.004", status=1).output
    assert "expected at most 0.004 for Q8_0" in found
    verify(hub.BUNDLED, q8, "--level", "weights", "--limit", "Q8_0.rms=0.004", "--limit", "rms=1")


@pytest.mark.parametrize(
    "setting", ["rms", "rms=x", "Q9.rms=1", "Q8_0.rsm=1", "rms=-1", "rms=nan", "Q8_0.rms=inf", "rms=1e999", "=1"]
)
def test_what_is_no_limit_is_refused(setting: str, q8: Path) -> None:
    assert "this is not a limit" in verify(hub.BUNDLED, q8, "--limit", setting, status=2).output


def test_the_command_offers_every_form() -> None:
    assert tuple(FORMS) == OFFERED


def test_another_form_of_attention_says_the_same(q8: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(100, 148))
    options = ("--chunks", 1, "--context", 48, "--tokens", tmp_path / "tokens.npy", "--json")
    expected, found = (
        json.loads(verify(hub.BUNDLED, q8, *options, "--form", each).output)["logits"] for each in ("vanilla", "paged")
    )
    # A divergence is half the variance of what the candidate's logits are off: if these are off by a little more, in
    # another direction, it changes by no more than the two deviations' product. This model's logits deviate by 4.
    kld, moved = expected["kld"][0], 4 * rounding.relative(bundled_model(), 48)
    assert found["kld"][0] == pytest.approx(kld, rel=0, abs=moved * (2 * kld) ** 0.5)


def test_the_device_asked_for_is_the_one_that_computes(q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place_on(device: str, threads: int) -> Place:
        assert (device, threads) == ("cuda:1", 1)
        return Place()

    def form_on(device: str, name: str) -> Form:
        assert (device, name) == ("cuda:1", "paged")
        return lambda x: 2 * FORMS[name](x)  # a device that computes something else is found

    monkeypatch.setattr(job, "place_on", place_on)
    monkeypatch.setattr(job, "form_on", form_on)
    [finding] = prove(Request(hub.BUNDLED, q8, level="attention", form="paged", device="cuda:1")).findings[:1]
    assert (finding.level, finding.subject) == ("attention", "blk.0")


def test_a_gguf_file_is_a_reference_too(q8: Path, tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "f32.gguf", "F32")
    (tmp_path / "ids.txt").write_text(" ".join(map(str, range(100, 164))))
    verify(tmp_path / "f32.gguf", q8, "--tokens", tmp_path / "ids.txt")
    image = Image.of(q8)
    image.metadata["tokenizer.ggml.bos_token_id"] = u32(5)
    wrong = verify(tmp_path / "f32.gguf", image.write(tmp_path / "wrong.gguf"), status=1).output
    assert "bos_token_id: is wrong (expected 0, found 5)" in wrong


def test_a_legacy_file_is_right_too(tmp_path: Path) -> None:
    """attn_kv_b [H·(n+v), r] in place of its halves, and the cache sizes of plain multi-head attention."""
    convert(hub.BUNDLED, tmp_path / "f32.gguf", "F32")
    image = Image.of(tmp_path / "f32.gguf")
    for layer in range(3):
        k, v = (image.values(f"blk.{layer}.attn_{half}_b.weight") for half in "kv")
        for half in "kv":
            del image.tensors[f"blk.{layer}.attn_{half}_b.weight"]
        joined = np.concatenate([k.transpose(0, 2, 1), v], axis=1).reshape(-1, v.shape[2])
        image.put(f"blk.{layer}.attn_kv_b.weight", joined, "F32")
    for name in ("key_length_mla", "value_length_mla"):
        del image.metadata[ARCH + "attention." + name]
    sizes = {"head_count_kv": 4, "key_length": 192, "value_length": 128}
    image.metadata |= {ARCH + "attention." + name: u32(size) for name, size in sizes.items()}
    legacy = image.write(tmp_path / "legacy.gguf")
    verify(hub.BUNDLED, legacy, "--chunks", 1)
    image.change("blk.1.attn_kv_b.weight", lambda x: np.roll(x, 128, axis=0))
    wrong = verify(hub.BUNDLED, image.write(legacy), status=1).output
    assert "weights: blk.1.attn_kv_b.weight" in wrong


def test_a_split_file_is_one(q8: Path, tmp_path: Path) -> None:
    assert gguf_mla("split", q8, tmp_path / "parts.gguf", "--split-max-tensors", 20, "--quiet").status == 0
    verify(hub.BUNDLED, tmp_path / "parts-00001-of-00003.gguf", "--level", "weights")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokens.npy", b"no array", "holds no token ids"),
        ("tokens.npy", None, "cannot be read"),
        ("words.txt", b"one two three", "holds no token ids"),
        ("few.txt", b"1 2 3", "too little text"),
        ("large.txt", b"1 2 3 4 5 6 7 99999", "outside the vocabulary"),
        ("negative.txt", b"1 2 3 4 5 6 7 -9", "outside the vocabulary"),
    ],
)
def test_bad_token_files_are_refused(name: str, content: bytes | None, words: str, q8: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    answer = verify(hub.BUNDLED, q8, "--tokens", tmp_path / name, status=2)
    assert words in answer.output


def test_bad_texts_are_refused(q8: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9" * 50)
    assert "not UTF-8" in verify(hub.BUNDLED, q8, "--text", tmp_path / "latin.txt", status=2).output


def test_what_is_no_gguf_file_is_bad_input_and_not_a_verdict(q8: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"GARBAGE" * 10)
    assert "is not a GGUF file" in verify(hub.BUNDLED, tmp_path / "noise.gguf", status=2).output
    assert verify(tmp_path / "missing", q8, status=2)
    image = Image.of(q8)
    del image.metadata[ARCH + "block_count"]
    assert "block_count" in verify(hub.BUNDLED, image.write(tmp_path / "headless.gguf"), status=1).output


def test_a_report_that_cannot_be_written_is_the_machines_fault(q8: Path, tmp_path: Path) -> None:
    report = tmp_path / "nowhere" / "report.html"
    assert "cannot be written" in verify(hub.BUNDLED, q8, "--level", "structure", "--report", report, status=3).output


@pytest.mark.engine
@pytest.mark.usefixtures("judges")
def test_llama_cpp_says_what_the_forward_pass_says(tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "f32.gguf", "F32")
    answer = verify(hub.BUNDLED, tmp_path / "f32.gguf", "--level", "weights", "--engine", "llama.cpp", "--json")
    prompts = json.loads(answer.output)["engine"]  # within its limit, or the file would be called wrong
    assert [prompt["length"] for prompt in prompts] == [8, 16, 32, 64, 128]
    assert all(prompt["same_top"] for prompt in prompts)  # this model is trained: nothing is as likely as the likeliest


@pytest.mark.slow
def test_peak_memory_grows_with_a_layer_and_not_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for name, layers in (("small", 2), ("large", 6)):
        size = {"layers": layers, "experts": 8, "num_experts_per_tok": 2}
        checkpoint = bulk.write(tmp_path / name, "v3", tokenizer="bundled", shard_bytes=100_000_000, **size)
        out = tmp_path / f"{name}.gguf"
        convert(checkpoint, out, "Q8_0")
        line = command("verify", checkpoint, out, "--chunks", 1, "--context", 32, "--threads", 1, "--quiet")
        # The tiled weights of this checkpoint mean nothing, so only the levels that judge weights must be right.
        measured = measure([*line, "--limit", "layer=100", "--limit", "kld=100"], tmp_path / "report.json")
        assert measured.status == 0, measured.output
        peaks.append(measured.peak)
    small, large = (open_gguf(tmp_path / f"{name}.gguf").size for name in ("small", "large"))
    assert large > small * 3
    assert peaks[1] - peaks[0] < (large - small) / 4  # of its four more layers not even one, as it is stored


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "DeepseekV5ForCausalLM"])
def test_other_models_are_refused(name: str, q8: Path, checkpoint: Path) -> None:
    configure(architectures=[name])(checkpoint)
    assert f"found {name}" in verify(checkpoint, q8, status=2).output
