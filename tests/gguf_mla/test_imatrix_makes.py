"""Importance of other makes: one row for all heads, renamed and reshaped entries, the other layout, fused tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.importance.matrix import Imatrix, read_imatrix
from tests.support import hub, legacy
from tests.support.command import convert, gguf_mla
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from pathlib import Path

HEADS, RANK, NOPE = 4, 64, 32


def matrix(path: Path, entries: dict[str, np.ndarray], **options: Any) -> Imatrix:
    """A matrix over one token whose entry NAME has these importances, [rows, cols]."""
    sums = {name: (np.asarray(rows, np.float32), np.ones(len(rows), np.float32)) for name, rows in entries.items()}
    write_imatrix(path, sums, datasets=["x"], chunk_count=1, chunk_size=512)
    return read_imatrix([path], **options)


def drawn(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, cols)).astype(np.float32) + np.float32(0.1)


def name(kind: str) -> str:
    return f"blk.3.{kind}.weight"


@pytest.mark.parametrize("kind", ["attn_k_b", "attn_v_b"])
@pytest.mark.parametrize(
    "entry", ["{}", "{} (reshaped)", "CUDA0#{}#0", "{} (view)", "CUDA1#{} (reshaped)#3", "{} (reshaped) (permuted)"]
)
def test_one_row_serves_all_heads_whatever_it_is_called(tmp_path: Path, kind: str, entry: str) -> None:
    rows = drawn(1, NOPE)
    found = matrix(tmp_path / "m.gguf", {entry.format(name(kind)): rows})
    assert found.names == (name(kind),)
    np.testing.assert_array_equal(found.rows(name(kind), (HEADS, RANK, NOPE)), np.repeat(rows, HEADS, axis=0))


def test_a_row_for_each_head_is_kept(tmp_path: Path) -> None:
    rows = drawn(HEADS, NOPE)
    found = matrix(tmp_path / "m.gguf", {name("attn_k_b") + " (reshaped)": rows})
    np.testing.assert_array_equal(found.rows(name("attn_k_b"), (HEADS, RANK, NOPE)), rows)


def test_an_own_name_goes_before_a_changed_one(tmp_path: Path) -> None:
    own, other = drawn(1, NOPE, 1), drawn(1, NOPE, 2)
    entries = {name("attn_k_b"): own, name("attn_k_b") + " (reshaped)": other}
    found = matrix(tmp_path / "m.gguf", entries)
    np.testing.assert_array_equal(found.rows(name("attn_k_b"), (1, RANK, NOPE)), own)


def test_heads_that_lie_in_two_dimensions_get_the_mean(tmp_path: Path) -> None:
    rows = drawn(HEADS, NOPE)
    found = matrix(tmp_path / "m.gguf", {name("attn_k_b"): rows})
    got = found.rows(name("attn_k_b"), (HEADS * RANK, NOPE))
    np.testing.assert_allclose(got, rows.mean(axis=0, keepdims=True), rtol=1e-6)  # summed in another order


def test_experts_need_a_row_each(tmp_path: Path) -> None:
    found = matrix(tmp_path / "m.gguf", {name("ffn_down_exps"): drawn(1, 32)})
    with pytest.raises(InputError, match="does not fit"):
        found.rows(name("ffn_down_exps"), (4, 8, 32))


@pytest.mark.parametrize(
    ("wanted", "stored"),
    [
        ("ffn_gate_exps", "ffn_gate_up_exps"),
        ("ffn_up_exps", "ffn_gate_up_exps"),
        ("ffn_gate_exps", "ffn_up_exps"),
        ("ffn_gate_up_exps", "ffn_gate_exps"),
        ("ffn_gate", "ffn_up"),
        ("ffn_up_shexp", "ffn_gate_shexp"),
    ],
)
def test_what_has_the_same_input_has_the_same_importance(tmp_path: Path, wanted: str, stored: str) -> None:
    count = 4 if wanted.endswith("_exps") else 1
    rows = drawn(count, 32)
    shape = (count, 8, 32) if count > 1 else (8, 32)
    found = matrix(tmp_path / "m.gguf", {name(stored): rows})
    np.testing.assert_array_equal(found.rows(name(wanted), shape), rows)
    assert read_imatrix([tmp_path / "m.gguf"], stand_ins={}).missing([name(wanted)]) == [name(wanted)]
    excluded = read_imatrix([tmp_path / "m.gguf"], exclude=[wanted + "."])
    assert excluded.missing([name(wanted)]) == [name(wanted)]


def test_the_other_layout_serves_in_both_directions(tmp_path: Path) -> None:
    latent, heads = drawn(1, RANK), drawn(HEADS, RANK, 1)
    older = matrix(tmp_path / "legacy.gguf", {name("attn_kv_b"): latent})
    np.testing.assert_array_equal(older.rows(name("attn_v_b"), (HEADS, 16, RANK)), np.repeat(latent, HEADS, axis=0))
    assert older.missing([name("attn_k_b")]) == [name("attn_k_b")]
    mla = matrix(tmp_path / "mla.gguf", {name("attn_v_b"): heads, name("attn_k_b"): drawn(HEADS, NOPE)})
    got = mla.rows(name("attn_kv_b"), (HEADS * 48, RANK))
    np.testing.assert_allclose(got, heads.mean(axis=0, keepdims=True), rtol=1e-6)  # summed in another order


def test_a_literal_reading_is_llama_cpps(tmp_path: Path) -> None:
    reshaped = name("attn_k_b") + " (reshaped)"
    found = matrix(tmp_path / "m.gguf", {reshaped: drawn(1, NOPE)}, stand_ins={}, literal=True)
    assert found.names == (reshaped,)
    assert found.missing([name("attn_k_b")]) == [name("attn_k_b")]


# What llama-quantize insists on, beside tensors that lie inside the file: its loader stops at any of these.
NEEDED = ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


def loads(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    assert all(key in reader.fields for key in NEEDED)
    ends = [int(t.data_offset) + int(t.n_bytes) for t in reader.tensors]
    assert path.stat().st_size % reader.alignment == 0
    assert path.stat().st_size == -(-max(ends) // reader.alignment) * reader.alignment
    names = {t.name for t in reader.tensors}
    assert {n.removesuffix(".in_sum2") + ".counts" for n in names if n.endswith(".in_sum2")} <= names
    assert {t.tensor_type for t in reader.tensors} == {gguf.GGMLQuantizationType.F32}


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_every_matrix_that_we_write_loads(tmp_path: Path, count: int) -> None:
    matrix(tmp_path / "m.gguf", {name("ffn_down_exps"): drawn(count, 33), name("attn_k_b"): drawn(1, 5)})
    loads(tmp_path / "m.gguf")


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_the_matrix_of_an_upgrade_loads(tmp_path: Path, form: str) -> None:
    convert(hub.BUNDLED, tmp_path / "mla.gguf", "BF16")
    old = legacy.write_variant(tmp_path / "mla.gguf", tmp_path / "legacy.gguf", "legacy")
    source = tmp_path / f"m.{form}"
    kv_b, other = "blk.0.attn_kv_b.weight", "blk.0.attn_output.weight"
    width = open_gguf(old).tensors[other].shape[-1]
    if form == "gguf":
        matrix(source, {kv_b: drawn(1, 512), other: drawn(1, width)})
    else:
        entries = {kv_b: drawn(1, 512), other: drawn(1, width)}
        data = np.int32(len(entries)).tobytes()
        for key, rows in entries.items():
            data += np.int32(len(key)).tobytes() + key.encode() + np.array([2, rows.size], np.int32).tobytes()
            data += rows.tobytes()
        source.write_bytes(data)
    answer = gguf_mla("upgrade", old, tmp_path / "out.gguf", "--imatrix", source, "--quiet")
    assert answer.status == 0, answer.output
    loads(tmp_path / "out.imatrix.gguf")


def test_the_matrix_of_another_model_is_not_mapped(tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "mla.gguf", "BF16")
    for entries, words in (
        ({"blk.0.attn_output.weight": drawn(1, 515)}, "does not fit the tensor"),
        ({"blk.99.attn_output.weight": drawn(1, 512)}, "no importance of any tensor"),
    ):
        matrix(tmp_path / "m.gguf", entries)
        answer = gguf_mla("downgrade", tmp_path / "mla.gguf", tmp_path / "out.gguf", "--imatrix", tmp_path / "m.gguf")
        assert answer.status == 2
        assert words in answer.output
        (tmp_path / "m.gguf").unlink()
