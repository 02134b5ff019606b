"""How stored matrices become tensors: without a copy where that can be, decoded there, on so many threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from gguf_mla import codec
from gguf_mla.codec import cuda_driver
from gguf_mla.errors import MachineError
from gguf_mla.forward import on_device
from gguf_mla.forward.cuda.device import sent
from gguf_mla.forward.place import CPU, Place, enough_memory
from gguf_mla.forward.tensors import Blocks, Stack
from tests.support import hub
from tests.support.command import convert
from tests.support.weights import checkpoint_weights, gguf_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def values(rows: int = 8, cols: int = 64) -> np.ndarray:
    room = codec.empty((rows, cols), np.dtype(np.float32))
    room[:] = np.random.default_rng(0).standard_normal((rows, cols), np.float32)
    return room


def test_aligned_memory_is_shared() -> None:
    array = values()
    assert CPU.tensor(array).data_ptr() == array.ctypes.data


def test_other_memory_is_copied_to_where_products_always_add_alike() -> None:
    aside, fixed = values().ravel()[1:65], values()
    fixed.flags.writeable = False
    for array in (aside, fixed, values().T):
        found = CPU.tensor(array)
        np.testing.assert_array_equal(found, array)
        assert found.data_ptr() % 64 == 0
        assert found.is_contiguous()


def test_a_matrix_is_written_where_it_is_used() -> None:
    array = values()
    stored = codec.encode(array, "Q8_0")
    stacks = {
        "F32": Stack("w", 1, 8, 64, "F32", lambda _, a, b: array[a:b]),
        "Q8_0": Stack("w", 1, 8, 64, "Q8_0", lambda *_: values(), lambda _, a, b: Blocks(stored[a:b], "Q8_0", 0.375)),
    }
    for type_name in ("F16", "BF16"):
        data = codec.encode(array, type_name)
        stacks[type_name] = Stack(
            "w", 1, 8, 64, type_name, lambda *_: values(), lambda _, a, b, d=data, t=type_name: Blocks(d[a:b], t)
        )  # fmt: skip
    expected = {
        name: codec.decode(codec.encode(array, name), name) * (np.float32(0.375) if name == "Q8_0" else 1)
        for name in stacks
    }
    for name, stack in stacks.items():
        np.testing.assert_array_equal(CPU.rows(stack, 0, 2, 7), expected[name][2:7])


@pytest.mark.usefixtures("settings")
def test_so_many_compute_side_by_side_each_alone_and_in_order() -> None:
    torch.set_num_threads(3)
    there, three = Place(threads=3), threading.Barrier(3)

    def compute(item: int) -> tuple[int, int, list[int]]:
        if item < 3:
            three.wait(10)  # it breaks where they are fewer
        return item, torch.get_num_threads(), list(there.side_by_side(lambda x: x + item, range(2)))

    assert list(there.side_by_side(compute, range(9))) == [(item, 1, [item, item + 1]) for item in range(9)]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("settings")
def test_what_one_of_them_raises_is_raised() -> None:
    torch.set_num_threads(2)

    def compute(item: int) -> int:
        if item == 4:
            raise MachineError("the fourth")
        return item

    found = Place(threads=2).side_by_side(compute, range(9))
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MachineError, match="the fourth"):
        next(found)


class Decoder:
    """A GPU's decoders, on the CPU."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def decode_there(self, tensor_type: Any, data: np.ndarray, out: torch.Tensor) -> None:
        self.types.append(tensor_type.name)
        out.copy_(torch.from_numpy(codec.decode(data, tensor_type.name)))


def test_blocks_are_decoded_where_they_are_used(tmp_path: Path) -> None:
    convert(hub.BUNDLED, tmp_path / "a.gguf", "Q4_K_M")
    names = ("output.weight", "blk.1.ffn_down_exps.weight", "blk.1.attn_k_b.weight", "blk.0.attn_norm.weight")
    for weights in (gguf_weights(tmp_path / "a.gguf"), checkpoint_weights(hub.BUNDLED)):
        decoder: Any = Decoder()
        there = Place(decoder=decoder)
        for name in names:
            stack = weights.stack(name)
            np.testing.assert_array_equal(there.all(stack), CPU.all(stack))
        # norms are F32; of the checkpoint, FP8 and what is transposed come decoded
        assert set(decoder.types) == ({"Q4_K", "Q5_0", "Q6_K"} if hasattr(weights, "file") else {"BF16"})


def test_a_scale_beside_the_weight_is_multiplied_there() -> None:
    data, decoder = codec.encode(values(), "Q8_0"), Decoder()
    place_ = Place(decoder=decoder)  # type: ignore[arg-type]
    stack = Stack("w", 1, 8, 64, "Q8_0", lambda *_: values(), lambda _i, a, b: Blocks(data[a:b], "Q8_0", 0.375))
    np.testing.assert_array_equal(place_.rows(stack, 0, 0, 8), codec.decode(data, "Q8_0") * np.float32(0.375))


class OnGpu:
    """What is known of a tensor on a GPU."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {"data": (1 << 40, False)}

    def contiguous(self) -> OnGpu:
        return self


def test_a_tensor_that_is_on_the_gpu_is_used_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver.cuda, "as_cuda_array", lambda x: ("the same memory", x))
    tensor = OnGpu()
    assert sent(tensor) == ("the same memory", tensor)


@pytest.fixture
def settings() -> Iterator[None]:
    threads, exact = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(exact)


@pytest.mark.usefixtures("settings")
def test_torch_is_bound_to_the_threads_and_to_the_same_bits() -> None:
    assert on_device.place_on("cpu", 3) == Place(threads=3)
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("settings")
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")
def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "open_device", lambda name: SimpleNamespace(name=name))
    with pytest.raises(MachineError, match=r"torch .* cannot use this machine's GPU.*build of torch for CUDA"):
        on_device.place_on("cuda", 1)


def test_memory_that_torch_does_not_get_is_said_as_others_say_it() -> None:
    with pytest.raises(MemoryError), enough_memory():
        torch.empty(1 << 60)
    with pytest.raises(MachineError, match=r"the GPU does not have enough memory.*--device cpu"), enough_memory():
        raise torch.cuda.OutOfMemoryError
    with pytest.raises(RuntimeError, match="other"), enough_memory():
        raise RuntimeError("other")
