"""Every tensor type against the bytes that ggml wrote, and against gguf-py where it can encode.

The types are discovered, so a new type without golden bytes fails here.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from gguf_mla import codec, ggtypes
from gguf_mla.errors import InputError

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDS: dict[str, Any] = json.loads((GOLDEN / "types.json").read_text())
TYPES = [name for name in ggtypes.types() if name != "F32"]
GGUF_PY_ENCODES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
GGUF_PY_LACKS = ("Q1_0", "Q2_0")
POISON = 0xA5


@cache
def inputs() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "inputs.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("name", TYPES)
def test_encodes_and_decodes_the_golden_bytes(name: str) -> None:
    with np.load(GOLDEN / f"{name.lower()}.npz") as golden:
        assert len(golden) == len(inputs()) - 1 or len(golden) == 2 * (len(inputs()) - 1)
        for key, expected in golden.items():
            case = key.removesuffix("+imp")
            out = np.full(expected.shape, POISON, np.uint8)
            importance = inputs()["importance"] if key != case else None
            codec.encode(inputs()[case], name, importance=importance, out=out)
            assert np.array_equal(out, expected), key
            values = np.full(inputs()[case].shape, np.nan, np.float32)
            codec.decode(expected, name, out=values)
            recorded = RECORDS[name]["decoded_sha256"].get(key)
            assert recorded in (None, hashlib.sha256(values.tobytes()).hexdigest()[:16]), key


@pytest.mark.parametrize("name", TYPES)
def test_numbers_are_those_of_ggml_and_gguf_py(name: str) -> None:
    tensor_type = ggtypes.by_name(name)
    record = {key: RECORDS[name][key] for key in ("id", "block", "bytes", "needs_importance")}
    assert record == {
        "id": tensor_type.id,
        "block": tensor_type.block,
        "bytes": tensor_type.bytes,
        "needs_importance": tensor_type.needs_importance,
    }
    if name not in GGUF_PY_LACKS:
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor_type.id)] == (
            tensor_type.block,
            tensor_type.bytes,
        )
        assert gguf.GGMLQuantizationType(tensor_type.id).name == name


def test_every_golden_file_has_a_type() -> None:
    assert set(RECORDS) == set(TYPES)


@pytest.mark.parametrize("name", GGUF_PY_ENCODES)
def test_encodes_what_gguf_py_encodes(name: str) -> None:
    x = np.random.default_rng(7).standard_normal((5, 768)).astype(np.float32)
    expected = quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(codec.encode(x, name), expected)


@pytest.mark.parametrize("name", [name for name in TYPES if name not in GGUF_PY_LACKS])
def test_decodes_what_gguf_py_decodes(name: str) -> None:
    tensor_type = ggtypes.by_name(name)
    x = np.random.default_rng(8).standard_normal((5, 768)).astype(np.float32)
    data = codec.encode(x, name, importance=np.ones(768, np.float32))
    expected = dequantize(data, gguf.GGMLQuantizationType(tensor_type.id))
    assert np.allclose(codec.decode(data, name), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [1, 3, 15, 17])
def test_row_counts_that_do_not_fill_the_lanes(name: str, rows: int) -> None:
    cols = 512 if ggtypes.by_name(name).block <= 256 else 1024
    x = np.tile(inputs()["heavy"], (5, 1))[:rows, :cols]
    importance = inputs()["importance"][:cols]
    whole = codec.encode(np.tile(inputs()["heavy"], (5, 1))[:, :cols], name, importance=importance)
    assert np.array_equal(codec.encode(x, name, importance=importance), whole[:rows])
    assert np.array_equal(codec.decode(whole[:rows], name), codec.decode(whole, name)[:rows])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-32, 1e-12, 1e6])
def test_extreme_values_give_bytes_that_decode_to_numbers(name: str, scale: float) -> None:
    x = (inputs()["weights"].astype(np.float64) * scale).astype(np.float32)
    data = codec.encode(x, name, importance=np.ones(x.shape[1], np.float32), check=scale < 1e6)
    values = codec.decode(data, name)
    assert scale >= 1e6 or np.isfinite(values).all()
    assert scale != 0.0 or not values.any()


def test_types_are_found_by_name_and_id() -> None:
    assert ggtypes.by_name("q4_k") is ggtypes.by_id(12)
    assert ggtypes.by_name("I32").bytes == 4
    with pytest.raises(InputError, match=r"no tensor type 'Q9_9'.*Known types: F32, F16"):
        ggtypes.by_name("Q9_9")
    with pytest.raises(InputError, match="no tensor type with id 99"):
        ggtypes.by_id(99)


def test_a_row_that_is_no_whole_number_of_blocks_is_refused() -> None:
    tensor_type = ggtypes.by_name("Q4_K")
    assert tensor_type.row_bytes(512) == 288
    assert not tensor_type.fits(100)
    with pytest.raises(InputError, match="a row of 100 values cannot be Q4_K"):
        tensor_type.row_bytes(100)


def test_plain_numbers_are_sized_like_ggml() -> None:
    for name, tensor_type in ggtypes.stored().items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (1, tensor_type.bytes)
        assert gguf.GGMLQuantizationType[name] == tensor_type.id


def test_importing_the_types_imports_nothing_heavy() -> None:
    program = (
        "import sys; from gguf_mla import ggtypes; ggtypes.types(); "
        "sys.exit(bool({'numpy', 'numba', 'torch', 'gguf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
