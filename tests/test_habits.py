"""What users of llama.cpp's programs type by habit means here what it means there, or a sentence says what does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.recipes import without_type
from tests.support import hub
from tests.support.command import Answer, gguf_mla


@pytest.fixture(scope="session")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("habits") / "v3-BF16.gguf"
    assert gguf_mla("convert", hub.BUNDLED, path, "--quiet").status == 0
    return path


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*arguments: object, status: int = 0) -> Answer:
    answer = gguf_mla(*arguments)
    assert answer.status == status, answer.output
    return answer


def there() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------- convert


def test_outfile_and_outtype() -> None:
    run("convert", hub.BUNDLED, "--outfile", "m-{ftype}.gguf", "--outtype", "q8_0")
    assert there() == ["m-q8_0.gguf"]
    assert "named twice" in run("convert", hub.BUNDLED, "a.gguf", "--outfile", "b.gguf", status=2).output


def test_what_a_user_says_of_a_model_counts(bf16: Path) -> None:
    Path("said.json").write_text(
        json.dumps({"general.name": "A", "general.author": "B", "general.tags": ["c"], "general.sampling.top_k": 7})
    )
    options = ("--metadata", "said.json", "--model-name", "N", "--override-kv", "deepseek2.expert_used_count=int:3")
    run("convert", hub.BUNDLED, "out.gguf", "--vocab-only", *options)
    found, usual = open_gguf("out.gguf"), open_gguf(bf16)
    assert not found.tensors
    assert found.metadata["tokenizer.ggml.tokens"] == usual.metadata["tokenizer.ggml.tokens"]
    told = {"name": "N", "author": "B", "tags": ["c"], "sampling.top_k": 7}
    assert {key: found.metadata[f"general.{key}"] for key in told} == told
    assert found.metadata["deepseek2.expert_used_count"] == 3
    assert found.values["deepseek2.expert_used_count"].kind == usual.values["deepseek2.expert_used_count"].kind


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"general.author": 5}', "expected a text, found 5"),
        ('{"general.tags": "x"}', "a list of texts"),
        ('{"general.base_models": ["x"]}', "a list of objects"),
        ('{"general.sampling.top_k": "x"}', "a number"),
        ('{"deepseek2.block_count": 5}', "Set any other key with --override-kv"),
        ("[]", "a JSON object"),
        ("{", "is not sound JSON"),
    ],
)
def test_metadata_that_cannot_be_are_refused(content: str, words: str) -> None:
    Path("said.json").write_text(content)
    answer = run("convert", hub.BUNDLED, "--metadata", "said.json", "--dry-run", status=2)
    assert words in answer.output


def test_an_overridden_value_has_the_keys_type() -> None:
    wrong = ("--override-kv", "deepseek2.expert_used_count=str:two", "--dry-run")
    assert "expected a number of 32 bits, found 'two'" in run("convert", hub.BUNDLED, *wrong, status=2).output


def test_the_vocabulary_alone_has_a_name_of_its_own() -> None:
    said = run("convert", hub.BUNDLED, "--vocab-only").output
    assert there() == ["tiny-deepseek-v3-vocab.gguf"]
    assert said.startswith("tiny-deepseek-v3-vocab.gguf: metadata and vocabulary, no tensors\n")


def test_the_supported_models_are_listed_without_a_checkpoint() -> None:
    listed = run("convert", "--print-supported-models").output.splitlines()
    assert any(line.split() == ["DeepseekV3ForCausalLM", "deepseek2"] for line in listed)
    assert len(listed) > 6


# ----------------------------------------------------------------------------------------------------------- places


def test_directories_are_created_where_they_are_asked_for() -> None:
    run("convert", hub.BUNDLED, "V3-{type}/V3-{type}.gguf", "--type", "Q8_0", "--type", "F16", "--dry-run")
    assert list(Path().iterdir()) == []
    run("convert", hub.BUNDLED, "V3-{type}/V3-{type}.gguf", "--type", "Q8_0", "--type", "F16")
    run("convert", hub.BUNDLED, "sub/deep/", "--type", "Q8_0")
    assert there() == ["V3-F16/V3-F16.gguf", "V3-Q8_0/V3-Q8_0.gguf", "sub/deep/tiny-deepseek-v3-Q8_0.gguf"]


def test_a_directory_that_nobody_asked_for_is_a_slip(bf16: Path) -> None:
    assert "does not exist" in run("quantize", bf16, "nowhere/a-{type}.gguf", "Q8_0", status=2).output
    assert "standard output" in run("quantize", bf16, "-", "Q8_0", status=2).output
    assert list(Path().iterdir()) == []


def test_a_directory_that_cannot_be_created_is_a_sentence() -> None:
    Path("file").touch()
    answer = run("convert", hub.BUNDLED, "file/new/", "--type", "Q8_0", status=2)
    assert "file/new: the output cannot be created (Not a directory)" in answer.output


def test_a_created_directory_goes_again_when_nothing_is_written(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-40:] = b"\xff" * 40  # not a number, which is found only by reading
    shard.write_bytes(data)
    run("convert", checkpoint, "new/", "--type", "BF16", status=2)
    assert list(Path().iterdir()) == []


def test_a_new_type_replaces_the_old_one_in_a_default_name(bf16: Path) -> None:
    run("quantize", bf16, "Q8_0")
    run("quantize", "v3-Q8_0.gguf", "COPY")
    assert there() == ["v3-Q8_0-COPY.gguf", "v3-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("name", "short"),
    [("v3-BF16", "v3"), ("v3.q4_k_m", "v3"), ("v3-MLA-Q4_K_M", "v3"), ("v3-Q4_0-BF16", "v3"), ("v3-3.5bpw", "v3"),
     ("Q8_0", "Q8_0"), ("v3-BF16-fixed", "v3-BF16-fixed"), ("v3BF16", "v3BF16"), ("v3-IQ4_XS", "v3"), ("-F16", "-F16")],
)  # fmt: skip
def test_the_types_at_a_names_end(name: str, short: str) -> None:
    assert without_type(name) == short


# --------------------------------------------------------------------------------------------------------- quantize


def test_a_number_after_the_type_is_that_of_threads(bf16: Path) -> None:
    run("quantize", bf16, "a.gguf", "q8_0", "1")
    run("quantize", bf16, "b.gguf", "7", "1")  # Q8_0 by its number
    assert there() == ["a.gguf", "b.gguf"]
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()
    run("quantize", bf16, "c.gguf", "8")
    assert open_gguf("c.gguf").metadata["general.file_type"] == 8
    assert "that of threads" in run("quantize", bf16, "d.gguf", "Q8_0", "8", "--threads", "2", status=2).output
    assert "that of threads" in run("quantize", bf16, "d.gguf", "Q8_0", "0", status=2).output


# -------------------------------------------------------------------------------------------------- split and merge


def test_the_first_part_may_be_without_tensors(bf16: Path) -> None:
    run("split", bf16, "s", "--no-tensor-first-split")
    assert there() == ["s-00001-of-00002.gguf", "s-00002-of-00002.gguf"]  # 52 tensors, and 128 go into a part
    assert not open_gguf("s-00001-of-00002.gguf").tensors
    shown = run("inspect", "s-00002-of-00002.gguf").output  # it says what it is, and not what only the first part says
    assert "parts         part 2 of 2 of a split model\narchitecture  said in the first part\n" in shown
    assert "layout        MLA\n" in shown
    assert open_gguf_parts("s-00001-of-00002.gguf").tensors.keys() == open_gguf(bf16).tensors.keys()
    assert "several files" in run("quantize", bf16, "COPY", "--no-tensor-first-split", status=2).output


def test_merging_may_delete_the_parts_once_the_whole_is_there(bf16: Path) -> None:
    run("split", bf16, "s", "--split-max-tensors", "20", "--checksums")
    parts = there()
    run("merge", "s-00001-of-00003.gguf", "m.gguf", "--delete-splits", "--dry-run")
    assert there() == parts
    run("merge", "s-00001-of-00003.gguf", "m.gguf", "--delete-splits")
    assert there() == ["m.gguf"]
    assert Path("m.gguf").read_bytes() == bf16.read_bytes()
    assert "no parts to delete" in run("merge", "m.gguf", "n.gguf", "--delete-splits", status=2).output
    assert there() == ["m.gguf"]
