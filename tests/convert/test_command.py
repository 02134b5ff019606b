"""`gguf-mla convert` as it is used: names, dry run, JSON, overwriting, links of a hub cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_mla.cli.main import main
from gguf_mla.container.reader import open_gguf
from tests.support import hub


def run(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_without_out_the_file_is_named_after_the_checkpoint_and_its_type() -> None:
    run(hub.BUNDLED)
    run(hub.BUNDLED, "--type", "q8_0")
    assert sorted(path.name for path in Path().iterdir()) == [
        "tiny-deepseek-v3-BF16.gguf",
        "tiny-deepseek-v3-Q8_0.gguf",
    ]


def test_out_may_be_a_directory() -> None:
    Path("models").mkdir()
    run(hub.BUNDLED, "models", "--type", "F16")
    assert [path.name for path in Path("models").iterdir()] == ["tiny-deepseek-v3-F16.gguf"]


@pytest.mark.parametrize(("kind", "own"), [("v3", 32), ("v3fp8", 32), ("v3-f16", 1), ("v3-f32", 0)])
def test_auto_keeps_the_checkpoints_own_type(tmp_path: Path, kind: str, own: int) -> None:
    directory = hub.write(tmp_path / kind, kind, num_hidden_layers=1, n_routed_experts=4, num_nextn_predict_layers=0)
    run(directory, "own.gguf")
    assert open_gguf("own.gguf").metadata["general.file_type"] == own


def test_a_dry_run_shows_the_plan_and_writes_nothing() -> None:
    shown = run(hub.BUNDLED, "--type", "Q8_0", "--dry-run").stdout
    assert list(Path().iterdir()) == []
    assert "blk.1.ffn_gate_exps.weight   8x256x256  FP8 128x128  Q8_0" in shown
    assert "bits per weight" in shown
    assert "free disk" in shown


def test_the_plan_as_json_is_what_is_written() -> None:
    plan = json.loads(run(hub.BUNDLED, "out.gguf", "--type", "Q8_0", "--dry-run", "--json").stdout)
    result = json.loads(run(hub.BUNDLED, "out.gguf", "--type", "Q8_0", "--json").stdout)
    file, [planned], [written] = open_gguf("out.gguf"), plan["outputs"], result["outputs"]
    assert [(t["name"], tuple(t["shape"]), t["type"], t["bytes"]) for t in planned["plan"]["tensors"]] == [
        (t.name, t.shape, t.type, t.nbytes) for t in file.tensors.values()
    ]
    assert planned["plan"]["metadata"].keys() == file.metadata.keys()
    assert written["bytes"] == file.size
    assert written | {"plan": None} == planned | {"plan": None}


def test_a_file_that_exists_is_replaced_only_on_request() -> None:
    Path("out.gguf").write_bytes(b"precious")
    assert "exists already" in run(hub.BUNDLED, "out.gguf", status=2).stderr
    assert Path("out.gguf").read_bytes() == b"precious"
    run(hub.BUNDLED, "out.gguf", "--overwrite")
    assert open_gguf("out.gguf").metadata["general.architecture"] == "deepseek2"


def test_quiet_says_nothing() -> None:
    result = run(hub.BUNDLED, "out.gguf", "--quiet")
    assert result.stdout == result.stderr == ""


def test_the_bytes_depend_neither_on_threads_nor_on_the_run() -> None:
    for threads in (1, 2, 5):
        run(hub.BUNDLED, f"{threads}.gguf", "--type", "Q8_0", "--threads", threads)
    assert Path("1.gguf").read_bytes() == Path("2.gguf").read_bytes() == Path("5.gguf").read_bytes()


def test_a_hub_cache_of_links_is_read(tmp_path: Path, pristine: Path) -> None:
    snapshot, blobs = tmp_path / "models--owner--name/snapshots/0123abcd", tmp_path / "models--owner--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(pristine.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    run(snapshot, "linked.gguf")
    run(pristine, "plain.gguf")
    linked, plain = open_gguf("linked.gguf"), open_gguf("plain.gguf")
    assert all(
        linked.tensors[name].read().tobytes() == tensor.read().tobytes() for name, tensor in plain.tensors.items()
    )


def test_group_limited_greedy_is_warned_about(tmp_path: Path) -> None:
    directory = hub.write(tmp_path / "v2", "v2", num_hidden_layers=1, n_routed_experts=4)
    result = run(directory, "out.gguf")
    assert result.stderr.count("warning:") == 1
    assert "group_limited_greedy" in result.stderr


def test_a_second_process_on_the_same_output_is_refused() -> None:
    from gguf_mla.files.output import OutputFile

    with OutputFile(Path("out.gguf"), 100):
        assert "another process is writing" in run(hub.BUNDLED, "out.gguf", status=2).stderr
        assert Path("out.gguf.partial").exists()
    run(hub.BUNDLED, "out.gguf")


def test_an_unfinished_file_that_no_run_has_noted_is_kept() -> None:
    Path("out.gguf.partial").write_bytes(b"half" * 1000)
    assert "no run of ours has noted it. Move it away" in run(hub.BUNDLED, "out.gguf", status=2).stderr
    assert Path("out.gguf.partial").read_bytes() == b"half" * 1000
