"""A GGUF file reads texts by its own tokens, merges and pre-tokenizer, to the same ids as the checkpoint."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convert.tokenizer.pretokenizers import PRE_TOKENIZERS
from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.sources.folder import LocalFolder
from gguf_mla.text import encoders
from gguf_mla.text.splitting import SPLITTINGS
from gguf_mla.text.tokens import SAMPLE
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.texts import TEXTS
from verify.findings import Grade
from verify.job import LOST_CUTS, Request, prove
from verify.keys import pieces

if TYPE_CHECKING:
    from pathlib import Path

MIXED = "It's 12345 <｜User｜>你好 <｜end▁of▁sentence｜>\n\n  def f(x):\treturn x  # ½ é"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("texts")
    convert(hub.BUNDLED, directory / "{type}.gguf", "F32", "--type", "Q8_0")
    return directory


@pytest.mark.parametrize("text", [MIXED, SAMPLE.read_text("utf-8"), *TEXTS], ids=lambda text: repr(text[:16]))
def test_a_file_reads_texts_as_its_checkpoint_does(text: str, files: Path) -> None:
    file = open_gguf(files / "F32.gguf")
    assert encoders.of_gguf(file.metadata, file.path)(text) == encoders.of_folder(LocalFolder(hub.BUNDLED))(text)


@pytest.mark.parametrize("entry", PRE_TOKENIZERS, ids=lambda entry: entry.name)
def test_both_tables_of_pre_tokenizers_cut_alike(entry: Any) -> None:
    """The converter's names are by tokenizer.json, the judge's by llama.cpp: neither reads the other."""
    theirs = [piece for piece, _ in encoders.splitter(entry.patterns).pre_tokenize_str(pieces.PROBE)]
    assert theirs == [
        piece for piece, _ in encoders.splitter(SPLITTINGS[entry.name].steps).pre_tokenize_str(pieces.PROBE)
    ]


def test_the_probe_tells_ways_to_cut_apart() -> None:
    cuts = {
        steps: tuple(encoders.splitter(steps).pre_tokenize_str(pieces.PROBE)) for steps in map(steps_of, SPLITTINGS)
    }
    assert len(set(cuts.values())) == len(cuts)


def steps_of(name: str) -> tuple[str, ...]:
    return SPLITTINGS[name].steps


def test_gguf_against_gguf_runs_every_level_on_a_text(files: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(SAMPLE.read_text("utf-8")[:700], encoding="utf-8")
    options = ("--text", tmp_path / "text", "--context", 32, "--chunks", 2, "--json")
    answer = gguf_mla("verify", files / "F32.gguf", files / "Q8_0.gguf", *options)
    content = json.loads(answer.output)
    assert (answer.status, content["grade"]) == (0, "right")
    assert list(content["seconds"]) == ["structure", "weights", "attention", "logits"]
    same = prove(Request(hub.BUNDLED, files / "Q8_0.gguf", text=tmp_path / "text", context=32, chunks=2))
    assert same.scores is not None
    assert content["logits"]["tokens"] == same.scores.kld.size
    assert content["logits"]["perplexity_candidate"][0] == pytest.approx(same.scores.perplexities()[1].value, rel=1e-4)


def test_a_text_is_read_with_the_files_own_tokens_where_the_reference_has_lost_its_cuts(
    files: Path, tmp_path: Path
) -> None:
    shutil.copytree(hub.BUNDLED, tmp_path / "lost")
    path = tmp_path / "lost" / "tokenizer.json"
    lost = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"pre_tokenizer": lost}), encoding="utf-8")
    sound, found = (
        prove(Request(reference, files / "Q8_0.gguf", level="attention", context=64, chunks=1))
        for reference in (hub.BUNDLED, tmp_path / "lost")
    )
    assert sound.tokens is not None
    np.testing.assert_array_equal(found.tokens, sound.tokens)
    assert (found.grade, [finding.grade for finding in found.findings]) == (Grade.RIGHT, [Grade.CANNOT_TELL])
    assert LOST_CUTS in found.warnings
    assert LOST_CUTS not in sound.warnings


def test_what_is_missing_is_said_before_the_first_level(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.job.open_candidate", lambda *_: pytest.fail("a level has begun"))
    (tmp_path / "short").write_text("a")
    (tmp_path / "ids").write_text("1 2 3 4 5 6 7 8 9999")
    pair = files / "F32.gguf", files / "Q8_0.gguf"
    with pytest.raises(InputError, match="too little text"):
        prove(Request(*pair, text=tmp_path / "short"))
    with pytest.raises(InputError, match="outside the vocabulary"):
        prove(Request(*pair, tokens=tmp_path / "ids"))
    with pytest.raises(InputError, match="both given"):
        prove(Request(*pair, tokens=tmp_path / "ids", text=tmp_path / "short"))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(InputError, match="needs the package tokenizers"):
        prove(Request(*pair))
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    with pytest.raises(InputError, match="--engine needs"):
        prove(Request(*pair, level="weights", engine=True))
