"""The same text on plain numpy lanes gives the bytes that the compiled kernels give."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_mla import codec, ggtypes

QUANTIZED = [name for name, kind in ggtypes.types().items() if kind.block > 1]


def plain_encode(name: str, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Encode 16 blocks, [16, block] float32, with the text run as it stands."""
    kind = ggtypes.by_name(name)
    values, scratch = x.T.copy(), np.full((kind.scratch, 16), np.nan, np.float32)
    out = np.full((16, kind.bytes), 0xA5, np.uint8)
    with np.errstate(all="ignore"):
        if importance is None:
            kind.module.encode(values, scratch, kind.tables(), out)
        else:
            scratch[0] = np.mean(x * x, axis=1)
            kind.module.encode_weighted(values, importance.T.copy(), scratch, kind.tables(), out)
    return out


def blocks(name: str) -> np.ndarray:
    """16 rows of one block each, of several scales, one of them all zeros."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((16, ggtypes.by_name(name).block)) * 10.0 ** rng.integers(-6, 3, (16, 1))
    x[3] = 0
    x[4, ::2] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZED)
def test_plain_lanes_give_the_kernels_bytes(name: str) -> None:
    kind, x = ggtypes.by_name(name), blocks(name)
    if hasattr(kind.module, "encode"):
        assert np.array_equal(plain_encode(name, x, None), codec.encode(x, name))
    if kind.uses_importance and not kind.row_spread:
        importance = np.random.default_rng(12).random(x.shape[1], np.float32)
        expected = codec.encode(x, name, importance=importance)
        assert np.array_equal(plain_encode(name, x, np.tile(importance, (16, 1))), expected)


@pytest.mark.parametrize("name", QUANTIZED)
def test_plain_lanes_decode_like_the_kernels(name: str) -> None:
    kind = ggtypes.by_name(name)
    data = codec.encode(blocks(name), name, importance=np.ones(kind.block, np.float32))
    expected = codec.decode(data, name)
    for row, values in zip(data, expected, strict=True):
        out = np.full(kind.block, np.nan, np.float32)
        kind.module.decode_block(row, kind.tables(), out)
        assert np.array_equal(out.view(np.uint32), values.view(np.uint32))


def test_cuda_kernels_are_kept_where_those_of_the_cpu_are() -> None:
    from gguf_mla.codec import cuda_cache, cuda_kernels, kernel_cache

    kept = cuda_cache.CudaKernelCache(cuda_kernels.function("encode", ggtypes.by_name("Q4_0")))
    assert kept._impl.locator.get_source_stamp() == kernel_cache.source_stamp()
