"""The library as its page describes it, and what it says where it cannot do what is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_mla
from gguf_mla import discovery, library
from gguf_mla.sources.checkpoint import open_checkpoint
from tests.support import hub
from tests.support.command import environment

PAGE = (hub.REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_every_line_of_the_page_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here" / "tiny-deepseek-v3").symlink_to(hub.BUNDLED)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) > 8
    exec(compile("\n".join(blocks), "library.md", "exec"), {})
    shown = re.findall(r"print\(\w+\)  # (.*)", PAGE)
    assert capfd.readouterr().out.splitlines() == shown  # and nothing else is printed


def test_a_model_of_many_tensors_is_shown_in_a_line() -> None:
    checkpoint = open_checkpoint(hub.BUNDLED)
    shown = "<Checkpoint tiny-deepseek-v3: DeepseekV3ForCausalLM, 91 tensors in 2 files>"
    assert repr(checkpoint) == shown
    assert repr(checkpoint["model.norm.weight"]) == "Tensor(name='model.norm.weight', shape=(256,), type='BF16')"


def test_the_public_names_are_all_that_is_completed() -> None:
    assert [name for name in dir(gguf_mla) if not name.startswith("_")] == sorted(gguf_mla.__all__)


def test_what_is_stored_in_two_places_has_no_raw_bytes() -> None:
    weight = open_checkpoint(hub.BUNDLED)["model.layers.0.mlp.down_proj.weight"]
    with pytest.raises(gguf_mla.InputError, match=r"FP8 128x128.*Take \.values\(\)"):
        weight.raw()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ("text", "not rows of numbers"),
        ([[1.0], [1.0, 2.0]], "not rows of numbers"),
        (np.float32(1), "not rows of numbers|not a row"),
        (np.zeros((1, 1, 1, 32), np.float32), "not a row and not a matrix"),
        (np.zeros(32, np.float64), "cannot be encoded"),
    ],
)
def test_what_is_not_rows_is_a_sentence(x: Any, words: str) -> None:
    with pytest.raises(gguf_mla.InputError, match=words):
        gguf_mla.quantize(x, "Q8_0")


def test_a_row_has_the_bytes_that_it_has_in_a_matrix() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    whole = gguf_mla.quantize(rows, "Q4_0")
    assert np.array_equal(gguf_mla.quantize(rows[1], "Q4_0"), whole[1])
    assert np.array_equal(gguf_mla.quantize(rows.tolist(), "Q4_0"), whole)
    assert np.array_equal(gguf_mla.dequantize(whole[1], "Q4_0"), gguf_mla.dequantize(whole, "Q4_0")[1])
    assert gguf_mla.quantize(rows[np.newaxis], "Q4_0").shape == (1, 3, 36)


def test_an_option_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(gguf_mla.InputError, match="nonsense"):
        gguf_mla.convert(hub.BUNDLED, "o.gguf", nonsense=1)
    with pytest.raises(gguf_mla.InputError, match="no such command"):
        library.run("transmogrify")


def test_a_difference_is_a_result_and_no_exception() -> None:
    gguf_mla.convert(hub.BUNDLED, "a.gguf", type="F16")
    gguf_mla.quantize_file("a.gguf", "b.gguf", "COPY", override_kv="deepseek2.expert_used_count=int:1")
    proof = gguf_mla.verify(hub.BUNDLED, "b.gguf", level="structure")
    assert proof["status"] == 1
    assert not proof["right"]


def test_the_command_works_beside_a_users_own_convert_py() -> None:
    for name in ("convert", "quantize", "verify"):
        Path(f"{name}.py").write_text("raise SystemExit('my own script')\n")
    env = environment() | {"PYTHONPATH": f".:{hub.REPOSITORY}"}
    python = sys.executable
    line = [python, "-m", "gguf_mla", "convert", str(hub.BUNDLED), "o.gguf", "--dry-run", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    program = (
        "import pathlib, gguf_mla\ntry:\n gguf_mla.convert('x')\nexcept gguf_mla.InputError as e: print(e)\n"
        "pathlib.Path('convert.py').unlink()\n"
        f"print(gguf_mla.convert({str(hub.BUNDLED)!r}, 'o.gguf', dry_run=True)['status'])"
    )
    answer = subprocess.run([python, "-c", program], capture_output=True, text=True, env=env, check=False)
    refused, done_then = answer.stdout.splitlines()
    assert "the package convert of this environment is not gguf-mla's" in refused, answer.stderr
    assert done_then == "0"  # the package that is called is ours


def test_another_distribution_of_that_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs_convert").mkdir()
    (tmp_path / "theirs_convert" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    from importlib.metadata import EntryPoint

    entry = EntryPoint("convert", "theirs_convert.command:convert", "gguf_mla.commands")
    with pytest.raises(gguf_mla.InputError, match="the package theirs_convert of this environment is not gguf-mla's"):
        discovery.load(entry)
