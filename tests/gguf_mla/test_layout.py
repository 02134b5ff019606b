"""The halves of kv_b_proj, against the definition written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_mla.errors import InputError
from gguf_mla.layout.detect import attention_layout
from gguf_mla.layout.kv_b import join_kv_b, split_kv_b
from gguf_mla.plan.halves import key_parts, value_parts

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(1, 4))


@given(SIZES)
def test_split_is_the_definition(sizes: tuple[int, int, int, int]) -> None:
    heads, nope, value, rank = sizes
    kv_b = np.arange(heads * (nope + value) * rank).reshape(-1, rank)
    k_b, v_b = split_kv_b(kv_b, heads, nope)
    assert k_b.shape == (heads, rank, nope)
    assert v_b.shape == (heads, value, rank)
    for head in range(heads):
        first = head * (nope + value)
        for i in range(rank):
            assert k_b[head, i].tolist() == [kv_b[first + j, i] for j in range(nope)]
            assert v_b[head, :, i].tolist() == [kv_b[first + nope + j, i] for j in range(value)]


@given(SIZES)
def test_join_undoes_split(sizes: tuple[int, int, int, int]) -> None:
    heads, nope, value, rank = sizes
    kv_b = np.random.default_rng(0).integers(0, 99, (heads * (nope + value), rank))
    assert np.array_equal(join_kv_b(*split_kv_b(kv_b, heads, nope)), kv_b)


@given(SIZES)
def test_parts_name_the_rows_that_split_takes(sizes: tuple[int, int, int, int]) -> None:
    heads, nope, value, rank = sizes
    kv_b = np.arange(heads * (nope + value) * rank).reshape(-1, rank)
    k_b, v_b = split_kv_b(kv_b, heads, nope)
    assert all(part.transposed for part in key_parts("w", heads, nope, value, rank))
    assert np.array_equal(k_b, [kv_b[part.start : part.stop].T for part in key_parts("w", heads, nope, value, rank)])
    assert np.array_equal(v_b, [kv_b[part.start : part.stop] for part in value_parts("w", heads, nope, value)])


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="does not divide into heads"):
        split_kv_b(np.zeros((10, 4)), heads=3, nope=2)
    with pytest.raises(InputError, match="do not belong together"):
        join_kv_b(np.zeros((2, 4, 3)), np.zeros((2, 3, 5)))


def test_lists_are_matrices_and_what_is_neither_is_refused() -> None:
    k_b, v_b = split_kv_b([[1.0], [2.0], [3.0]], heads=1, nope=2)  # type: ignore[arg-type]
    assert (k_b.tolist(), v_b.tolist()) == ([[[1.0, 2.0]]], [[[3.0]]])
    with pytest.raises(InputError, match=r"kv_b_proj has another shape \(expected 2 dimensions, found \(4,\)\)"):
        split_kv_b(np.zeros(4), heads=1, nope=2)
    with pytest.raises(InputError, match="rows of unequal length"):
        split_kv_b([[1.0], [2.0, 3.0]], heads=1, nope=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="v_b has another shape"):
        join_kv_b(np.zeros((2, 4, 3)), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"], "MLA"),
        (["blk.0.attn_kv_b.weight"], "legacy"),
        (["blk.0.attn_kv_b.weight", "blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"], "both"),
        (["blk.0.attn_q.weight", "output.weight"], "none"),
    ],
)
def test_the_layout_of_a_file_is_told_by_its_tensors(names: list[str], layout: str) -> None:
    assert attention_layout(names) == layout
