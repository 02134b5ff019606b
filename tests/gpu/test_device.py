"""What the device does around its kernels: sources, importance, special values, memory, threads, whole files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_mla import codec, ggtypes
from gguf_mla.bench import gpu
from gguf_mla.codec import on_cuda, rows, trial
from gguf_mla.codec.on_cpu import CPU
from gguf_mla.container.values import string
from gguf_mla.errors import InputError, MachineError
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.on_device import form_on, place_on
from gguf_mla.forward.tensors import Blocks, Stack
from gguf_mla.plan import outputs
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from gguf_mla.stream import chunks, execute
from gguf_mla.stream.run import Job
from gguf_mla.stream.sharing.finish import finish
from gguf_mla.stream.sharing.ledger import Ledger
from gguf_mla.stream.sharing.plan import Order, SharedPlan, shared_out
from gguf_mla.stream.sharing.work import work
from tests.support.sources import Encoded, Memory, Weights
from tests.verify.cuda_cases import inputs
from verify.device import check_device
from verify.measures import agreement

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_mla.codec.on_cuda import Cuda
    from gguf_mla.sources.tensor import SourceTensor

# The simulator computes with numpy, which warns of the infinities and NaN that searches pass through.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("source", ["F16", "BF16", "Q8_0"])
def test_sources_are_widened_on_the_device(device: Cuda, source: str) -> None:
    stored = codec.encode(weights(3, 64), source)
    rows = stored if source == "Q8_0" else stored.view(np.float16 if source == "F16" else np.uint16)
    expected = codec.encode(codec.decode(stored, source), "Q4_0")
    assert np.array_equal(codec.encode(rows, "Q4_0", source=source, device=device), expected)


def test_every_float16_is_widened_exactly(device: Cuda, simulated: bool) -> None:
    step = 97 if simulated else 1
    patterns = np.arange(0, 1 << 16, step, dtype=np.uint16)
    finite = patterns[(patterns & 0x7C00) != 0x7C00]
    x = finite[: finite.size // 32 * 32].reshape(-1, 32).view(np.float16)
    assert np.array_equal(codec.encode(x, "Q8_0", device=device), codec.encode(x, "Q8_0"))


def test_importance_is_that_of_the_slice(device: Cuda) -> None:
    x, importance = weights(3, 2, 64), np.random.default_rng(1).random((3, 64), np.float32)
    data = codec.quantize(x, "Q4_1", importance, device=device.name)
    assert np.array_equal(data, codec.quantize(x, "Q4_1", importance))
    assert not np.array_equal(data, codec.quantize(x, "Q4_1", importance[::-1].copy()))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("position", [(0, 0), (2, 63)])
def test_special_values_are_found_where_they_are(device: Cuda, bad: float, position: tuple[int, int]) -> None:
    x = np.ones((3, 64), np.float32)
    x[position] = bad
    with pytest.raises(InputError, match=rf"row {position[0]}, column {position[1]} is {bad}"):
        codec.encode(x, "Q4_0", device=device)
    codec.encode(x, "Q4_0", check=False, device=device)


@pytest.mark.usefixtures("small_memory")
def test_pieces_are_halved_until_they_fit(simulated: bool) -> None:
    x = weights(8, 64) if simulated else weights(4096, 4096)
    device = on_cuda.Cuda("cuda:0", [0])
    expected = codec.encode(x, "Q4_0")
    assert np.array_equal(codec.encode(x, "Q4_0", device=device), expected)
    (stream,) = device._idle
    assert stream.limit <= x.size // 2
    assert np.array_equal(codec.decode(expected, "Q4_0", device=device), codec.decode(expected, "Q4_0"))


@pytest.mark.usefixtures("small_memory")
def test_a_row_that_does_not_fit_is_said(simulated: bool) -> None:
    x = np.ones((1, 256 if simulated else 1 << 24), np.float32)
    with pytest.raises(MachineError, match=r"does not have enough memory for one row of \d+ values\. .*--device cpu"):
        codec.encode(x, "Q4_0", device=on_cuda.Cuda("cuda:0", [0]))


def test_threads_share_the_device(device: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_VALUES", 64)
    x = weights(12, 64)
    assert np.array_equal(codec.quantize(x, "Q8_0", device=device.name, threads=4), codec.quantize(x, "Q8_0"))
    assert 1 <= len(device._idle) <= 4


def test_gpus_take_turns_and_each_computes(device: Cuda) -> None:
    fresh = on_cuda.Cuda(device.name, device.gpus)
    with fresh.stream() as first, fresh.stream() as second:
        assert first is not second
        assert [first.gpu, second.gpu] == [device.gpus[0], device.gpus[1 % len(device.gpus)]]
    x = weights(2, 64)
    for member in device.members():
        assert np.array_equal(codec.encode(x, "Q8_0", device=member), codec.encode(x, "Q8_0"))


def test_known_rows_agree(device: Cuda, simulated: bool) -> None:
    names = (
        ("Q8_0", "TQ2_0")
        if simulated
        else [name for name, tensor_type in ggtypes.types().items() if tensor_type.block > 1]
    )
    tried = trial.check(device, [use for name in names for use in trial.uses(name)])
    assert {use.type for use in tried} == set(names)


def test_the_types_of_files_to_verify_are_tried(device: Cuda, tmp_path: Path) -> None:
    job = TensorJob("w.weight", (6, 64), "Q8_0", (Part("w", 0, 6),), "F32", "test")
    plan = Plan({"general.architecture": string("deepseek2")}, (job,))
    execute.execute([outputs.single(plan, tmp_path / "a.gguf")], {"w": Memory(weights(6, 64))})
    said = check_device(device.name, tmp_path, tmp_path / "a.gguf")
    assert said == f"cuda ({device.title}): Q8_0 like the CPU, byte for byte"


@pytest.mark.parametrize("name", ["vanilla", "absorbed", "paged"])
def test_a_proof_attends_on_the_device(device: Cuda, name: str) -> None:
    found, expected = (form_on(where, name)(inputs(2, 3)) for where in (device.name, "cpu"))
    assert agreement(found, expected).wmape < 1e-5  # 36 products and their sums in float32, in another order


def test_a_form_without_a_kernel_is_torchs(device: Cuda) -> None:
    assert form_on(device.name, "gathered") is FORMS["gathered"]
    assert form_on(device.name, "absorbed") is not FORMS["absorbed"]


@pytest.mark.parametrize("stored", ["Q8_0", "BF16"])
def test_matrices_are_decoded_into_torchs_memory(device: Cuda, stored: str) -> None:
    data = codec.encode(weights(6, 64), stored)
    place = place_on(device.name, 1)

    def read(*_: int) -> np.ndarray:
        raise AssertionError("the CPU was asked")

    stack = Stack("w", 2, 3, 64, stored, read, lambda index, start, stop: Blocks(data[3 * index :][start:stop], stored))
    found = place.rows(stack, 1, 1, 3)
    assert found.device == place.device
    np.testing.assert_array_equal(found.numpy(force=True), codec.decode(data[4:6], stored))


def test_a_file_is_the_same_from_any_device(device: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_VALUES", 200)  # no multiple of the rows below
    experts = {f"w{n}": Memory(weights(5, 64, seed=n), name=f"w{n}") for n in range(2)}
    quantized = {"q": Encoded(codec.encode(weights(6, 64), "Q8_0"), "Q8_0")}
    parts = (Part("w0", 0, 5), Part("w1", 0, 5))
    jobs = (
        TensorJob("experts.weight", (2, 5, 64), "Q4_1", parts, "F32", "test"),
        TensorJob("transposed.weight", (64, 4), "F16", (Part("w0", 1, 5, columns=64),), "F32", "test"),
        TensorJob("again.weight", (6, 64), "Q4_0", (Part("q", 0, 6),), "Q8_0", "test"),
        TensorJob("rounded.weight", (5, 64), "Q5_1", (Part("w1", 0, 5),), "F32", "test", via="BF16"),
        TensorJob("same.weight", (6, 64), "Q8_0", (Part("q", 0, 6),), "Q8_0", "test"),
    )
    plan = Plan({"general.architecture": string("deepseek2")}, jobs)
    importance = Weights({"experts.weight": np.random.default_rng(2).random((2, 64), np.float32)})

    files = []
    for name, where, threads in (("cpu", CPU, 1), ("one", device, 1), ("three", device, 3)):
        output = outputs.single(plan, tmp_path / f"{name}.gguf")
        sources = {**experts, **quantized}
        execute.execute([output], sources, importance=importance, threads=threads, device=where)
        files.append((tmp_path / f"{name}.gguf").read_bytes())
    assert files[1] == files[0]
    assert files[2] == files[0]
    assert shared(plan, {**experts, **quantized}, importance, device, tmp_path / "shared.gguf") == files[0]


def shared(plan: Plan, sources: dict[str, SourceTensor], importance: Weights, device: Cuda, out: Path) -> bytes:
    """The file that two workers make, one on the device and one on the CPU."""
    job = Job([(plan, outputs.single(plan, out))], sources, (), importance)
    made = SharedPlan.of(Order("convert", {}, str(out.parent)), job, 400)
    ledger = Ledger(out, made)
    ledger.open()
    for share, where in zip(shared_out(made.jobs, 2), (device, CPU), strict=True):
        assert work(job, share, ledger, threads=2, device=where).jobs
    finish(job, made, ledger, importance=importance)
    return out.read_bytes()


def test_the_bench_measures_every_kernel(device: Cuda, simulated: bool) -> None:
    tensor_types = [ggtypes.by_name("Q8_0"), ggtypes.by_name("Q4_0")]
    with device.stream() as stream:
        rates = gpu.copies(stream, 1 << 12, 0.0)
    assert set(rates) == {"in its memory", "up", "down"}
    assert all(rate > 0 for rate in rates.values())
    found = gpu.kernels(device, tensor_types, 1 if simulated else 64, 0.0, rates["in its memory"])
    lines = [(kernel.type, kernel.action) for kernel in found]
    assert lines == [(use.type, use.action) for tensor_type in tensor_types for use in trial.uses(tensor_type.name)]
    assert all(kernel.gb_per_s > 0 and kernel.traffic > kernel.gb_per_s for kernel in found)
