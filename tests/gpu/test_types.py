"""Every tensor type on the device: ggml's bytes, and the CPU's values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import codec, ggtypes

if TYPE_CHECKING:
    from gguf_mla.codec.on_cuda import Cuda

# The simulator computes with numpy, which warns of the infinities and NaN that searches pass through.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

GOLDEN = Path(__file__).parent.parent / "golden"
TYPES = [name for name, tensor_type in ggtypes.types().items() if tensor_type.block > 1]


@cache
def inputs() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "inputs.npz") as stored:
        return dict(stored)


def part(name: str, simulated: bool) -> tuple[tuple[str, ...], slice, int]:
    """Which inputs, rows and columns: all, or for the simulator a few blocks."""
    tensor_type = ggtypes.by_name(name)
    if not simulated:
        return tuple(key for key in inputs() if key != "importance"), slice(None), inputs()["importance"].size
    return ("heavy",), slice(1, 2), 512 if tensor_type.row_spread else max(tensor_type.block, 32)


@pytest.mark.parametrize("name", TYPES)
def test_encodes_and_decodes_the_golden_bytes(name: str, device: Cuda, simulated: bool) -> None:
    cases, rows, cols = part(name, simulated)
    compared = 0
    with np.load(GOLDEN / f"{name.lower()}.npz") as golden:
        for key, recorded in golden.items():
            case = key.removesuffix("+imp")
            if case not in cases:
                continue
            x = np.ascontiguousarray(inputs()[case][rows, :cols])
            importance = np.ascontiguousarray(inputs()["importance"][:cols]) if key != case else None
            expected = recorded[rows, : ggtypes.by_name(name).row_bytes(cols)]
            out = np.full(expected.shape, 0xA5, np.uint8)
            codec.encode(x, name, importance=importance, out=out, device=device)
            assert np.array_equal(out, expected), key
            values = np.full(x.shape, np.nan, np.float32)
            codec.decode(out, name, out=values, device=device)
            assert np.array_equal(values.view(np.uint32), codec.decode(out, name).view(np.uint32)), key
            compared += 1
    assert compared
