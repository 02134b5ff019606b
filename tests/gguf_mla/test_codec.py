"""Rows in, rows out: sources, importance per expert, threads, errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_mla import codec, ggtypes
from gguf_mla.codec import encoding, trial
from gguf_mla.errors import InputError

RNG = np.random.default_rng(3)
FORMULAS = {  # of a float, of types without and with importance, and of one that needs it
    "BF16": ["encode_value"],
    "Q8_0": ["encode"],
    "Q4_0": ["encode", "encode_weighted"],
    "IQ2_XXS": ["encode_weighted"],
    "I32": [],
}
SIMPLE = ("Q8_0", "Q4_0", "Q5_1", "Q6_K", "Q4_K")


def bfloat16(x: np.ndarray) -> np.ndarray:
    return codec.encode(x, "BF16").view(np.uint16)


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("weighted", [False, True])
def test_sixteen_bit_sources_are_encoded_like_their_float32_values(name: str, weighted: bool) -> None:
    x = RNG.standard_normal((5, 512)).astype(np.float32)
    importance = RNG.random(512, np.float32) if weighted else None
    halves, brains = x.astype(np.float16), bfloat16(x)
    assert np.array_equal(
        codec.encode(halves, name, importance=importance),
        codec.encode(halves.astype(np.float32), name, importance=importance),
    )
    assert np.array_equal(
        codec.encode(brains, name, source="BF16", importance=importance),
        codec.encode(codec.decode(brains.view(np.uint8), "BF16"), name, importance=importance),
    )


def test_every_float16_is_widened_exactly() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[(patterns & 0x7C00) != 0x7C00].reshape(-1, 32)
    x = finite.view(np.float16)
    assert np.array_equal(codec.encode(x, "Q8_0"), codec.encode(x.astype(np.float32), "Q8_0"))


@pytest.mark.parametrize("numba_first", [False, True])
def test_floats_convert_bit_for_bit_with_numpy_and_with_kernels(numba_first: bool) -> None:
    program = """
import numpy as np
from gguf_mla import codec
words = np.random.default_rng(0).integers(0, 1 << 32, (3, 4099), dtype=np.uint32)
x = words.view(np.float32)
nan = np.isnan(x)
half = codec.encode(x, "F16", check=False).view(np.uint16)
with np.errstate(over="ignore", invalid="ignore"):
    expected = np.where(nan, words >> 16 & 0x8000 | 0x7E00, x.astype(np.float16).view(np.uint16))
assert np.array_equal(half, expected)
brain = codec.encode(x, "BF16", check=False).view(np.uint16)
rounded = (words + np.uint32(0x7FFF) + (words >> 16 & 1)) >> 16
assert np.array_equal(brain, np.where(nan, words >> 16 | 64, rounded))
wide = codec.decode(half.view(np.uint8), "F16")
assert np.array_equal(wide[~nan], half.view(np.float16).astype(np.float32)[~nan])
assert np.array_equal(codec.decode(brain.view(np.uint8), "BF16").view(np.uint32), brain.astype(np.uint32) << 16)
assert np.array_equal(codec.encode(x, "F32", check=False), x.view(np.uint8))
"""
    command = [sys.executable, "-c", ("import numba" if numba_first else "") + program]
    subprocess.run(command, check=True)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(SIMPLE),
    slices=st.integers(1, 4),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_three_dimensions_are_their_slices(
    name: str, slices: int, rows: int, blocks: int, threads: int, seed: int
) -> None:
    rng, cols = np.random.default_rng(seed), 256 * blocks
    x = rng.standard_normal((slices, rows, cols), np.float32)
    importance = rng.random((slices, cols), np.float32)
    data = codec.quantize(x, name, importance, threads=threads)
    for index in range(slices):
        assert np.array_equal(data[index], codec.encode(x[index], name, importance=importance[index]))
    values = codec.dequantize(data, name, threads=threads)
    assert np.array_equal(values[0], codec.decode(data[0], name))


def test_threads_do_not_change_the_bytes() -> None:
    x = RNG.standard_normal((3000, 1024)).astype(np.float32)
    assert np.array_equal(codec.quantize(x, "Q4_0", threads=1), codec.quantize(x, "Q4_0", threads=4))


@pytest.mark.parametrize("name", ["Q4_0", "BF16", "IQ4_NL"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (37, 100), (39, 255)])
def test_nan_and_infinity_are_reported_by_row_and_column(name: str, bad: float, position: tuple[int, int]) -> None:
    x = np.ones((40, 256), np.float32)
    x[position] = bad
    x[39, 255] = bad
    with pytest.raises(InputError, match=rf"row {position[0]}, column {position[1]} is {bad}"):
        codec.encode(x, name)
    codec.encode(x, name, check=False)


def test_nan_is_found_in_sixteen_bit_sources() -> None:
    x = np.ones((4, 256), np.float16)
    x[2, 7] = np.nan
    with pytest.raises(InputError, match="row 2, column 7"):
        codec.encode(x, "Q8_0")
    brains = bfloat16(np.ones((4, 256), np.float32))
    brains[2, 7] = 0x7FFF
    with pytest.raises(InputError, match="row 2, column 7"):
        codec.encode(brains, "Q8_0", source="BF16")


def test_wrong_arguments_are_sentences() -> None:
    x = np.ones((2, 256), np.float32)
    with pytest.raises(InputError, match="cannot be encoded without importance"):
        codec.encode(x, "IQ2_XXS")
    with pytest.raises(InputError, match=r"importance weights do not fit.*float32 \[256\]"):
        codec.encode(x, "Q4_K", importance=np.ones(255, np.float32))
    with pytest.raises(InputError, match="these rows cannot be encoded"):
        codec.encode(x.astype(np.float64), "Q4_K")
    with pytest.raises(InputError, match="plain numbers"):
        codec.encode(x, "I32")
    with pytest.raises(InputError, match="a multiple of 256"):
        codec.encode(x[:, :100], "Q4_K")
    with pytest.raises(InputError, match="the output array does not fit"):
        codec.encode(x, "Q4_K", out=np.empty((2, 3), np.uint8))
    with pytest.raises(InputError, match="not rows of Q4_K"):
        codec.decode(np.zeros((2, 143), np.uint8), "Q4_K")
    with pytest.raises(InputError, match="no device 'tpu'"):
        codec.quantize(x, "Q4_K", device="tpu")


def test_empty_rows_and_views_are_fine() -> None:
    assert codec.encode(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
    assert codec.decode(np.empty((0, 144), np.uint8), "Q4_K").shape == (0, 256)
    x = RNG.standard_normal((8, 512)).astype(np.float32)
    assert np.array_equal(codec.encode(x[::2, 256:], "Q4_K"), codec.encode(x[::2, 256:].copy(), "Q4_K"))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_results_begin_on_a_cache_line(rows: int) -> None:
    x = np.ones((rows, 32), np.float32)
    encoded = codec.encode(x, "Q8_0")
    arrays = encoded, codec.decode(encoded, "Q8_0"), codec.quantize(x, "Q8_0"), codec.dequantize(encoded, "Q8_0")
    assert [array.ctypes.data % 64 for array in arrays] == [0] * 4


def test_plain_numbers_decode_by_their_values() -> None:
    for name in ggtypes.stored():
        numbers = np.arange(-3, 4).astype({"F64": np.float64}.get(name, f"i{ggtypes.by_name(name).bytes}"))
        decoded = codec.decode(numbers.view(np.uint8)[np.newaxis], name)
        assert decoded.tolist() == [[-3, -2, -1, 0, 1, 2, 3]]


def test_the_formula_that_runs_is_a_name_in_the_types_file() -> None:
    for tensor_type in ggtypes.types().values():
        found = encoding.encodings(tensor_type)
        assert len(set(found)) == len(found) > 0
        assert all(callable(getattr(tensor_type.module, one.formula)) for one in found)
        assert tensor_type.needs_importance == all(one.weighted for one in found)
    ways = {name: [one.formula for one in encoding.encodings(ggtypes.by_name(name))] for name in FORMULAS}
    assert ways == FORMULAS


def test_importance_is_used_where_there_is_a_formula_for_it() -> None:
    q4_0, q8_0, f16 = (ggtypes.by_name(name) for name in ("Q4_0", "Q8_0", "F16"))
    assert encoding.choose(q4_0, "ggml", weighted=True) == encoding.Encoding(q4_0, True)
    assert encoding.choose(q8_0, "ggml", weighted=True) == encoding.Encoding(q8_0, False)
    assert encoding.choose(f16, "ggml", weighted=True).formula == "encode_value"
    with pytest.raises(InputError, match=r"Q4_0 has no search 'best' \(expected ggml, found best\)"):
        codec.encode(np.ones((1, 32), np.float32), "Q4_0", search="best")
    with pytest.raises(InputError, match=r"Q4_0 has no search 'best'"):
        codec.quantize(np.ones((1, 32), np.float32), "Q4_0", search="best")


def test_a_second_search_is_a_function_in_a_types_file(monkeypatch: pytest.MonkeyPatch) -> None:
    q8_0 = ggtypes.by_name("Q8_0")
    monkeypatch.setattr(q8_0.module, "encode_negated", negated, raising=False)
    encoding.encodings.cache_clear()
    try:
        assert [one.search for one in encoding.encodings(q8_0)] == ["ggml", "negated"]
        assert encoding.choose(q8_0, "negated", weighted=True).formula == "encode_negated"
        assert [use.action for use in trial.uses("Q8_0")] == ["decode", "encode", "encode_negated"]
        assert [use.action for use in trial.writing("Q8_0", weighted=True)] == ["encode"]
    finally:
        encoding.encodings.cache_clear()


def negated() -> None:
    """Stand in for a formula; nothing here runs it."""
