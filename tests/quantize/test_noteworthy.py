"""Values that would go wrong in silence: each is said, by name, before the work or at its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from gguf_mla import codec
from gguf_mla.container.reader import open_gguf
from tests.support.command import gguf_mla
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = "deepseek2"
LAYER = {"attn_output": (8, 256), "attn_k_b": (2, 8, 128), "ffn_up": (8, 256), "ffn_down": (8, 256)}


def names(layer: int) -> list[str]:
    return [f"blk.{layer}.{kind}.weight" for kind in LAYER]


def model(path: Path, tensors: dict[str, np.ndarray] | None = None, layers: int = 2, **values: Any) -> Path:
    """A file of so many layers, by block_count, with these tensors; by default all that a layer has."""
    random = np.random.default_rng(0)
    made = {
        f"blk.{layer}.{kind}.weight": random.standard_normal(shape, np.float32)
        for layer in range(layers)
        for kind, shape in LAYER.items()
    }
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_block_count(layers)
    writer.add_head_count(2)
    for key, value in values.items():
        writer.add_string(key.replace("_", "."), value)
    for name, data in (made if tensors is None else tensors).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(path: Path, kind: str, *options: Any, status: int = 0) -> str:
    out = path.with_name(f"{kind}-{len(list(path.parent.iterdir()))}.gguf")
    answer = gguf_mla("quantize", path, out, kind, *options)
    assert answer.status == status, answer.output
    return answer.output


def written(path: Path) -> Any:
    return open_gguf(max(path.parent.glob("*-*.gguf"), key=lambda found: found.stat().st_mtime_ns))


# ------------------------------------------------------------------------------------------------- too large for F16


@pytest.mark.parametrize("value", [7e4, -7e4, 65520.0])
def test_a_weight_beyond_f16_is_refused_with_its_row_and_another_type(tmp_path: Path, value: float) -> None:
    weights = np.ones((8, 256), np.float32)
    weights[5, 7] = value
    path = model(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": weights}, layers=1)
    said = quantize(path, "F16", status=2)
    assert "blk.0.ffn_up.weight: the value in row 5, column 7 is too large for F16" in said
    assert "Choose BF16 for this tensor" in said
    quantize(path, "BF16")


# ------------------------------------------------------------------------------------------------ importance of zero

NAME = "blk.0.ffn_up.weight"


def weighed(path: Path, row: list[float]) -> Path:
    rows = np.array([row], np.float32)
    write_imatrix(path, {NAME: (rows, np.ones(1, np.float32))}, datasets=["x"], chunk_count=1, chunk_size=512)
    return path


ROWS: dict[str, list[float]] = {
    "a whole block": [0.0] * 256 + [1.0] * 256,
    "two blocks of three kinds": [0.0] * 64 + [2.0] * 192 + [1.0] * 256,
    "all of it": [0.0] * 512,
    "a group of sixteen": [1.0] * 48 + [0.0] * 16 + [1.0] * 448,
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q3_K", "IQ4_XS", "Q4_0", "IQ2_XXS"])
def test_columns_without_importance_are_not_wiped_out(tmp_path: Path, name: str, kind: str) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal((256, 512)).astype(np.float32)
    path = model(tmp_path / "m.gguf", {NAME: values}, layers=1)
    matrix = weighed(tmp_path / "matrix.gguf", ROWS[name])
    said = quantize(path, "Q4_K_S", "--pure", "--tensor-type", f"ffn_up={kind}", "--imatrix", matrix)
    assert f"importance of neighbouring columns is zero, and such blocks are encoded without: {NAME}." in said
    found = written(path)[NAME].values()
    unknown = np.array(ROWS[name]) == 0
    error = np.square(found - values)[:, unknown].mean() / np.square(values).mean()
    assert error < 0.35  # wiped out is 1; two bits leave a quarter
    kept = codec.encode(values, kind, importance=np.ones(512, np.float32)) if kind == "IQ2_XXS" else None
    plain = codec.encode(values, kind) if kept is None else kept
    if name == "all of it":
        assert written(path).tensors[NAME].read().tobytes() == plain.tobytes()


def test_a_block_without_importance_is_encoded_without(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32)
    path = model(tmp_path / "m.gguf", {NAME: values}, layers=1)
    matrix = weighed(tmp_path / "matrix.gguf", ROWS["a whole block"])
    quantize(path, "Q4_K_S", "--pure", "--imatrix", matrix)
    blocks = written(path).tensors[NAME].read().reshape(256, 2, 144)
    row = np.array(ROWS["a whole block"], np.float32)
    assert blocks[:, 0].tobytes() == codec.encode(values, "Q4_K").reshape(256, 2, 144)[:, 0].tobytes()
    theirs = codec.encode(values, "Q4_K", importance=row).reshape(256, 2, 144)
    assert blocks[:, 1].tobytes() == theirs[:, 1].tobytes()
    said = quantize(path, "Q4_K_S", "--pure", "--imatrix", matrix, "--compat", "llama.cpp")
    assert "llama.cpp makes zeros of them" in said
    assert written(path).tensors[NAME].read().tobytes() == theirs.tobytes()


# ------------------------------------------------------------------------------------------------------ missing parts


def lacking(path: Path, *missing: str, layers: int = 4) -> Path:
    random = np.random.default_rng(0)
    tensors = {
        f"blk.{layer}.{kind}.weight": random.standard_normal(shape, np.float32)
        for layer in range(layers)
        for kind, shape in LAYER.items()
    }
    return model(path, {name: data for name, data in tensors.items() if name not in missing}, layers)


@pytest.mark.parametrize("command", ["quantize", "merge"])
def test_layers_without_tensors_are_said(tmp_path: Path, command: str) -> None:
    path = lacking(tmp_path / "m.gguf", *names(1), *names(3))
    answer = gguf_mla(command, path, tmp_path / "out.gguf", *(["Q8_0"] if command == "quantize" else []))
    assert answer.status == 0
    assert "2 of 4 layers have no tensors, though block_count counts them: 1, 3." in answer.output


def test_layers_without_a_part_are_said(tmp_path: Path) -> None:
    path = lacking(tmp_path / "m.gguf", *names(2)[2:])
    assert "1 of 4 layers have no feed-forward part: 2." in quantize(path, "Q8_0")


def test_whole_models_have_nothing_missing(tmp_path: Path) -> None:
    assert "layers have no" not in quantize(lacking(tmp_path / "m.gguf"), "Q8_0")


# ------------------------------------------------------------------------------------------------------- other types


def test_types_that_stand_in_are_counted_at_the_end(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    said = quantize(path, "Q4_K_S", "--pure")
    assert said.splitlines()[-1] == (
        "noteworthy: the rows of 2 tensors do not fit the recipe's types: 2 Q5_0 instead of Q4_K"
    )
    answer = gguf_mla("quantize", path, tmp_path / "m-{type}.gguf", "Q4_K_S", "Q5_K_S", "--pure")
    assert answer.output.splitlines()[-2:] == [
        f"noteworthy: {tmp_path}/m-{kind}_S.gguf: the rows of 2 tensors do not fit the recipe's types: "
        f"2 {other} instead of {kind}"
        for kind, other in (("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"))
    ]
    result = json.loads(quantize(path, "Q4_K_S", "--pure", "--json"))
    assert result["outputs"][0]["substituted"] == {f"blk.{layer}.attn_k_b.weight": "Q4_K" for layer in range(2)}


def test_no_fallback_refuses_them(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf")
    said = quantize(path, "Q4_K_S", "--pure", "--no-fallback", status=2)
    assert "2 tensors would get another type" in said
    assert "blk.1.attn_k_b.weight" in said
    quantize(path, "Q4_K_S", "--pure", "--no-fallback", "--tensor-type", "attn_k_b=Q8_0")


def test_warnings_are_counted_at_the_end(tmp_path: Path) -> None:
    said = quantize(lacking(tmp_path / "m.gguf", *names(1)), "Q8_0").splitlines()
    assert said[-1] == "noteworthy: 1 warning, see above"


def test_nothing_noteworthy_is_no_line(tmp_path: Path) -> None:
    assert "noteworthy: " not in quantize(model(tmp_path / "m.gguf"), "Q8_0")


# --------------------------------------------------------------------------------------------------- keys and names

STALE = {"quantize_imatrix_file": "old.gguf", "quantize_imatrix_dataset": "old.txt"}


def test_keys_of_an_older_matrix_go_unless_the_file_is_copied(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", **STALE)
    quantize(path, "Q8_0")
    assert not [key for key in written(path).metadata if key.startswith("quantize.imatrix.")]
    quantize(path, "COPY")
    assert written(path).metadata["quantize.imatrix.file"] == "old.gguf"


def test_a_new_matrix_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", **STALE)
    sums = {NAME: (np.ones((1, 256), np.float32), np.ones(1, np.float32))}
    write_imatrix(tmp_path / "new.gguf", sums, datasets=[], chunk_count=1, chunk_size=512)
    quantize(path, "Q4_0", "--imatrix", tmp_path / "new.gguf")
    found = written(path).metadata
    assert found["quantize.imatrix.file"] == "new.gguf"
    assert "quantize.imatrix.dataset" not in found


@pytest.mark.parametrize(("length", "said"), [(63, False), (64, True), (92, True)])
def test_names_that_no_engine_takes_are_said(tmp_path: Path, length: int, said: bool) -> None:
    name = "blk.0.ffn_up.".ljust(length, "x")
    path = model(tmp_path / "m.gguf", {name: np.ones((8, 256), np.float32)}, layers=1)
    assert (
        f"1 tensors have a name of more than 63 bytes, where engines stop: {name}." in quantize(path, "Q8_0")
    ) == said
