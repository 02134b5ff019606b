"""The same formula on plain numpy lanes gives the bytes that the compiled kernels give."""

from __future__ import annotations

import types

import numpy as np
import pytest

from gguf_mla import codec, ggtypes
from gguf_mla.codec.encoding import Encoding, uses_importance

QUANTIZED = [name for name, tensor_type in ggtypes.types().items() if tensor_type.block > 1]


def plain_encode(name: str, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Encode 16 blocks, [16, block] float32, with the formula run as it stands."""
    tensor_type = ggtypes.by_name(name)
    values, scratch = x.T.copy(), np.full((tensor_type.scratch, 16), np.nan, np.float32)
    out = np.full((16, tensor_type.bytes), 0xA5, np.uint8)
    with np.errstate(all="ignore"):
        if importance is None:
            tensor_type.module.encode(values, scratch, tensor_type.tables(), out)
        else:
            scratch[0] = np.mean(x * x, axis=1)
            tensor_type.module.encode_weighted(values, importance.T.copy(), scratch, tensor_type.tables(), out)
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
    tensor_type, x = ggtypes.by_name(name), blocks(name)
    if hasattr(tensor_type.module, "encode"):
        assert np.array_equal(plain_encode(name, x, None), codec.encode(x, name))
    if uses_importance(tensor_type) and not tensor_type.row_spread:
        importance = np.random.default_rng(12).random(x.shape[1], np.float32)
        expected = codec.encode(x, name, importance=importance)
        assert np.array_equal(plain_encode(name, x, np.tile(importance, (16, 1))), expected)


@pytest.mark.parametrize("name", QUANTIZED)
def test_plain_lanes_decode_like_the_kernels(name: str) -> None:
    tensor_type = ggtypes.by_name(name)
    data = codec.encode(blocks(name), name, importance=np.ones(tensor_type.block, np.float32))
    expected = codec.decode(data, name)
    for row, values in zip(data, expected, strict=True):
        out = np.full(tensor_type.block, np.nan, np.float32)
        tensor_type.module.decode_block(row, tensor_type.tables(), out)
        assert np.array_equal(out.view(np.uint32), values.view(np.uint32))


def test_cuda_kernels_are_kept_where_those_of_the_cpu_are() -> None:
    from gguf_mla.codec import cuda_cache, cuda_kernels, kernel_cache

    kept = cuda_cache.CudaKernelCache(cuda_kernels.function(cuda_kernels.encoder(Encoding(ggtypes.by_name("Q4_0")))))
    name, key = kept._names("signature", types.SimpleNamespace(magic_tuple=lambda: ("sm_90",)))
    assert name.startswith("gguf_mla.codec.cuda_kernels.Q4_0_encode-")
    assert kernel_cache.source_stamp().encode() in key
