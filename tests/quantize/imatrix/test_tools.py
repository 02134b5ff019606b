"""Parts are added exactly in any order; matrices are shown and written in other forms."""

from __future__ import annotations

import itertools
import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla.container import reader
from gguf_mla.errors import InputError
from gguf_mla.importance.exact import Exact
from gguf_mla.importance.gguf import write_matrix
from gguf_mla.importance.matrix import LAYER_MEAN, read_imatrix
from gguf_mla.importance.partial import Part, open_part
from quantize.imatrix import coverage
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.job import How, collect
from quantize.imatrix.written import summed
from tests.support.command import gguf_mla
from tests.support.matrices import write_imatrix
from tests.support.schema import faults
from tests.test_json import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quantize.imatrix.job import Work


@pytest.fixture(scope="module")
def parts(work: Work, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory, wanted = tmp_path_factory.mktemp("parts"), Wanted(output=False, prediction=False, perplexity=False)
    works = [work_of(work.weights, work.chunks, wanted, ["words.txt"], f"{number}/3") for number in (1, 2, 3)]
    return [collect(part, directory / f"{n}.gguf", How()).path for n, part in enumerate(works, 1)]


def done(*arguments: object) -> str:
    answer = gguf_mla(*arguments)
    assert answer.status == 0, answer.output
    return answer.output


def test_parts_make_the_same_matrix_in_any_order(parts: list[Path], tmp_path: Path) -> None:
    found = set()
    for number, order in enumerate(itertools.permutations(parts)):
        done("imatrix", "merge", tmp_path / f"{number}.gguf", *order)
        found.add((tmp_path / f"{number}.gguf").read_bytes())
    assert "1 of 3 chunks are missing" in done("imatrix", "merge", tmp_path / "two.gguf", parts[2], parts[0])
    done("imatrix", "merge", tmp_path / "tree.gguf", parts[1], tmp_path / "two.gguf")
    assert found == {(tmp_path / "tree.gguf").read_bytes()}


def test_parts_are_the_whole_but_for_rounding(parts: list[Path], made: Callable[..., bytes], tmp_path: Path) -> None:
    done("imatrix", "merge", tmp_path / "merged.gguf", *parts)
    made("whole.gguf")
    merged, whole = (read_imatrix([tmp_path / f"{name}.gguf"]) for name in ("merged", "whole"))
    assert merged.chunk_count == whole.chunk_count == 3
    for name in merged.names:
        (found, counts), (expected, tokens) = merged.sums(name), whole.sums(name)
        np.testing.assert_array_equal(counts, tokens)
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_does_not_belong_together_is_not_added(parts: list[Path], tmp_path: Path, work: Work) -> None:
    out, wanted = tmp_path / "m.gguf", Wanted(output=False, prediction=False, perplexity=False)
    assert "in two of the parts" in gguf_mla("imatrix", "merge", out, parts[0], parts[0]).output
    other = work_of(work.weights, work.chunks[::-1].copy(), wanted, [], "2/3")
    collect(other, tmp_path / "other.gguf", How())
    assert "is not a part of the run" in gguf_mla("imatrix", "merge", out, parts[0], tmp_path / "other.gguf").output
    assert "not an importance matrix" in gguf_mla("imatrix", "show", parts[0]).output
    assert not out.exists()


def test_sums_do_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(1)
    values = [np.exp(rng.normal(size=64) * 8) * rng.choice([-1, 1], 64) for _ in range(4)]
    found = set()
    for order in itertools.permutations(values):
        total = Exact.of(order[0])
        for value in order[1:]:
            total = total + Exact.of(value)
        found.add((total.whole.tobytes(), total.rest.tobytes()))
    assert len(found) == 1
    np.testing.assert_allclose(total.whole + total.rest, np.sum(values, axis=0), rtol=1e-9)


def test_both_forms_say_the_same(made: Callable[..., bytes], work: Work, tmp_path: Path) -> None:
    made("m.gguf")
    done("imatrix", "convert", tmp_path / "m.gguf", tmp_path / "m.dat")
    new, old = read_imatrix([tmp_path / "m.gguf"]), read_imatrix([tmp_path / "m.dat"])
    for entry in work.entries.values():
        shape = entry.matrices, 4, entry.cols
        np.testing.assert_allclose(old.rows(entry.name, shape), new.rows(entry.name, shape), rtol=1e-6)
    done("imatrix", "convert", tmp_path / "m.gguf", tmp_path / "l.gguf", "--names", "legacy", "--heads", 4)
    legacy = read_imatrix([tmp_path / "l.gguf"])
    assert {name.split(".")[2] for name in legacy.names if "_b" in name} >= {"attn_kv_b"}
    assert not [name for name in legacy.names if ".attn_v_b." in name]


@pytest.mark.parametrize("tool", [("merge", -1), ("convert", 1)], ids=["merge", "convert"])
def test_calls_of_dat_files_keep_their_weight(tool: tuple[str, int], tmp_path: Path) -> None:
    """A call counts for a chunk of 512 tokens where no file says how many it had."""
    old, again, new = (tmp_path / name for name in ("old.dat", "again.dat", "new.gguf"))
    name, values = b"blk.0.attn_q_a.weight", np.array([100, 250, 0.5], np.float32)
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 100, 3) + values.tobytes()
    old.write_bytes(struct.pack("<i", 1) + entry + struct.pack("<ii4s", 100, 4, b"text"))
    done("imatrix", tool[0], *(old, new)[:: tool[1]])
    done("imatrix", "convert", new, again)
    assert again.read_bytes() == old.read_bytes()
    sums, counts = read_imatrix([new]).sums(name.decode())
    assert counts.tolist() == [[100 * 512]]
    assert sums.tolist() == [(values * 512).tolist()]
    if tool[0] == "convert":
        again.unlink()
        done("imatrix", "convert", old, again)
        assert again.read_bytes() == old.read_bytes()


def test_a_matrix_with_a_count_for_each_expert_and_one_with_calls_are_added(tmp_path: Path) -> None:
    new, old, out, name = tmp_path / "new.gguf", tmp_path / "old.dat", tmp_path / "out.gguf", "blk.1.ffn_up_exps.weight"
    entry = np.ones((2, 3), np.float32), np.array([1, 0], np.float32)
    write_imatrix(new, {name: entry}, datasets=["x"], chunk_count=1, chunk_size=8)
    head = struct.pack("<ii", 1, len(name)) + name.encode()
    old.write_bytes(head + struct.pack("<ii", 2, 6) + np.full(6, 4, np.float32).tobytes())
    done("imatrix", "merge", out, new, old)
    sums, counts = read_imatrix([out]).sums(name)
    assert counts.tolist() == [[1 + 2 * 8], [2 * 8]]
    assert sums.tolist() == [[1 + 4 * 8] * 3] * 2


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_the_sums_of_parts_are_read_once(form: str, parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened, asked, right = [open_part(path) for path in parts], [], Part.sums
    monkeypatch.setattr(Part, "sums", lambda part, name: asked.append((part.path, name)) or right(part, name))
    matrix = summed(opened, form)
    assert asked == []
    write_matrix(parts[0].with_name(f"once.{form}"), matrix)
    assert len(asked) == len(set(asked)) == 3 * len(opened[0].tensors)


def test_heads_without_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.dat").write_bytes(struct.pack("<ii1siif", 1, 1, b"a", 1, 1, 2.0))
    answer = gguf_mla("imatrix", "convert", tmp_path / "m.dat", tmp_path / "n.dat", "--heads", 4)
    assert "Give --names, or leave out --heads" in answer.output
    assert not (tmp_path / "n.dat").exists()


def test_what_is_shown(made: Callable[..., bytes], tmp_path: Path) -> None:
    made("m.gguf")
    shown = json.loads(done("imatrix", "show", tmp_path / "m.gguf", "--json", "--report", tmp_path / "m.html"))
    assert list(faults(shown, SCHEMA, SCHEMA)) == []
    assert shown["matrix"]["experts"]["count"] == 2 * 8
    assert sum(shown["matrix"]["experts"]["tokens"]["1"]) == 3 * 24 * 4
    energy = {entry["name"]: entry["energy"] for entry in shown["matrix"]["tensors"]}
    squares, counts = read_imatrix([tmp_path / "m.gguf"]).sums("blk.0.attn_q_a.weight")
    assert energy["blk.0.attn_q_a.weight"] == pytest.approx(float(squares.sum() / counts[0, 0]), rel=1e-6)
    assert (tmp_path / "m.html").read_text().count("<td style=") == 2 * 8


def test_inspect_reads_the_head_of_a_matrix_once(
    made: Callable[..., bytes], parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("m.gguf")
    parsed, parse = [], reader._Parser.parse
    monkeypatch.setattr(reader._Parser, "parse", lambda parser: parsed.append(parser) or parse(parser))
    assert "m.gguf: importance matrix" in done("inspect", tmp_path / "m.gguf")
    assert f"{parts[0].name}: part of an importance matrix" in done("inspect", parts[0])
    assert len(parsed) == 2


def test_coverage_counts_what_is_little_seen() -> None:
    covered = coverage.of_counts([("blk.3.ffn_up_exps.weight", np.array([0, 99, 100, 5000]))])
    assert [covered.below(limit) for limit in coverage.LIMITS] == [1, 2, 3]
    assert covered.least == 0
    assert coverage.text(covered).splitlines()[-1] == "  3 ·░▒▓"


def test_rounds_go_on_until_every_expert_has_seen_enough_or_the_text_ends(predicting: Path, tmp_path: Path) -> None:
    ids, more, out = (tmp_path / name for name in ("ids.npy", "more.txt", "m.gguf"))
    np.save(ids, np.random.default_rng(1).integers(5, 2000, 3 * 24))
    more.write_text("def words(text):\n    return text.split()\n" * 12)
    options = ("--tokens", ids, "--context", 24, "--no-ppl", "--threads", 1, "--more-text", more)
    answer = done("imatrix", predicting, out, *options, "--min-tokens-per-expert", 1000)
    rounds = [line for line in answer.splitlines() if line.startswith("round ")]
    matrix = read_imatrix([out])
    assert len(rounds) >= 2
    assert matrix.datasets == ("ids.npy", "more.txt")
    assert 3 * (len(rounds) - 1) < matrix.chunk_count <= 3 * len(rounds)
    assert f"{matrix.chunk_count} chunks" in answer
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "m.gguf", "more.txt"]


def test_a_prior_for_experts_that_saw_no_token(tmp_path: Path) -> None:
    sums = np.array([[2, 4], [0, 0], [6, 12]], np.float32)
    entries = {"blk.1.ffn_up_exps.weight": (sums, np.array([2, 0, 2], np.float32))}
    write_imatrix(tmp_path / "m.gguf", entries, datasets=["x"], chunk_count=1, chunk_size=8)
    ones = read_imatrix([tmp_path / "m.gguf"])
    mean = read_imatrix([tmp_path / "m.gguf"], unseen=LAYER_MEAN)
    np.testing.assert_array_equal(ones.rows("blk.1.ffn_up_exps.weight", (3, 4, 2)), [[1, 2], [1, 1], [3, 6]])
    np.testing.assert_array_equal(mean.rows("blk.1.ffn_up_exps.weight", (3, 4, 2)), [[1, 2], [2, 4], [3, 6]])
    assert "quantize.imatrix.unseen" not in ones.metadata()
    assert mean.metadata()["quantize.imatrix.unseen"].data == "layer-mean"
    assert ones.identity != mean.identity


def test_parts_of_work_are_refused_that_cannot_be(work: Work) -> None:
    for share in ("0/2", "3/2", "1/99", "a/b", "1"):
        with pytest.raises(InputError, match="--split-work"):
            work_of(work.weights, work.chunks, Wanted(output=False, prediction=False, perplexity=False), [], share)
