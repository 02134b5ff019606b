"""Devices: found by name, refused in a sentence before anything is written, trusted only after a trial."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla import codec, ggtypes
from gguf_mla.codec import cuda_driver, device, on_cuda, trial
from gguf_mla.codec.encoding import encodings
from gguf_mla.codec.on_cpu import CPU, Cpu
from gguf_mla.container.values import string
from gguf_mla.errors import InputError, MachineError
from gguf_mla.plan import outputs
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from gguf_mla.stream import chunks, execute, uses
from gguf_mla.stream.journal import journal_path
from tests.support import crash, hub
from tests.support.command import gguf_mla
from tests.support.sources import Encoded, Memory

if TYPE_CHECKING:
    from pathlib import Path

TYPES = [name for name, tensor_type in ggtypes.types().items() if tensor_type.block > 1]


class Other(Cpu):
    """A device that is the CPU under another name; a lie flips a bit of the last byte of what it writes."""

    name, title, takes_blocks = "other", "Other 1", True

    def __init__(self, lies: str = "") -> None:
        self.lies, self.done = lies, list[str]()

    def encode(self, encoding: Any, x: Any, source: str, importance: Any, out: Any, *, check: bool) -> int:
        found = super().encode(encoding, x, source, importance, out, check=check)
        self.done.append(f"{source} to {encoding.type.name}")
        out[-1, -1] ^= self.lies == "encode"
        return found

    def decode(self, tensor_type: Any, data: Any, out: Any) -> None:
        super().decode(tensor_type, data, out)
        self.done.append(f"from {tensor_type.name}")
        if self.lies == "decode":
            out[-1, -1] = -out[-1, -1]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver finds no GPU, whatever this one has."""
    fake = SimpleNamespace(
        is_available=False, initialization_error="Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"
    )
    monkeypatch.setattr(cuda_driver.driver, "driver", fake)
    device.open_device.cache_clear()
    on_cuda.open_device.cache_clear()


def test_a_device_is_a_file() -> None:
    assert device.names() == ["cpu", "cuda"]
    assert device.open_device("cpu") is CPU


@pytest.mark.parametrize(
    "name", ["tpu", "", "cuda:", "cuda:x", "cuda:1:2", "cuda: 1", "cuda:-1", "lanes", "cuda:12345"]
)
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no device .* \(expected cpu, cuda or cuda:N"):
        device.open_device(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_no_gpu_is_a_sentence_and_status_3(name: str, tmp_path: Path) -> None:
    commands: list[tuple[object, ...]] = [
        ("convert", hub.BUNDLED, tmp_path / "out.gguf", "--type", "Q4_K_M", "--device", name),
        ("convert", tmp_path / "is read later", tmp_path / "out.gguf", "--device", name, "--dry-run"),
        ("quantize", tmp_path / "is read later", tmp_path / "out.gguf", "Q4_0", "--device", name),
        ("bench", "quantize", "--types", "Q8_0", "--device", name),
        ("bench", "dequantize", "--types", "Q8_0", "--device", name),
        ("bench", "gpu", "--device", name, "--dir", tmp_path),
        ("bench", "convert", "--device", name, "--dir", tmp_path),
        ("bench", "attention", "--device", name),
        ("verify", hub.BUNDLED, hub.BUNDLED, "--device", name),
    ]
    for line in commands:
        answer = gguf_mla(*line)
        assert answer.status == 3, line
        sentence = "no CUDA device can be used here: the driver finds no GPU. Use --device cpu: the bytes are the same."
        assert answer.output == f"gguf-mla: error: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


def test_numba_without_cuda_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf_mla.codec.on_cuda", None)
    with pytest.raises(MachineError, match=r"cuda cannot be used here: .*on_cuda.*\. Install it, or use --device cpu"):
        device.open_device("cuda:77")


def machine(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    """What numba would find: a driver's version, a toolkit's, GPUs with their capabilities."""
    gpus = [SimpleNamespace(name=b"Tesla", compute_capability=capability) for capability in facts.get("gpus", [(9, 0)])]
    driver = SimpleNamespace(
        is_available=True, initialization_error=None, get_version=lambda: facts.get("driver", (13, 0))
    )
    monkeypatch.setattr(cuda_driver.driver, "driver", driver)
    monkeypatch.setattr(cuda_driver.cuda, "gpus", gpus)
    monkeypatch.setattr(cuda_driver.cuda, "current_context", facts.get("context", lambda _: None))
    monkeypatch.setattr(cuda_driver, "_toolkit", lambda: facts.get("toolkit", (13, 0)))
    monkeypatch.setattr(cuda_driver, "_supported", lambda: facts.get("supported", [(7, 5), (8, 0), (9, 0)]))


@pytest.mark.parametrize(
    ("facts", "number", "sentence"),
    [
        ({"driver": (12, 4)}, None, r"driver is too old .*expected a driver for CUDA 13\.0 or newer, found .* 12\.4\)"),
        ({"toolkit": None}, None, r"the CUDA toolkit, whose compiler is needed, is not found\. .*CUDA_HOME"),
        ({"gpus": []}, None, r"no CUDA device can be used here: the driver finds no GPU"),
        ({}, 1, r"there is no GPU 1 \(expected cuda:0, found cuda:1\)"),
        ({"gpus": [(9, 0), (9, 0)]}, 2, r"there is no GPU 2 \(expected cuda:0 to cuda:1, found cuda:2\)"),
        ({"gpus": [(7, 0)]}, 0, r"Tesla is too old .*expected compute capability 7\.5 or higher, found 7\.0\)"),
    ],
)
def test_what_is_wrong_with_the_machine_is_said(
    facts: dict[str, Any], number: int | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **facts)
    with pytest.raises(MachineError, match=sentence):
        cuda_driver.usable(number)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)", "the driver finds no GPU"),
        ("Call to cuInit results in UNKNOWN_CUDA_ERROR (35)", "the driver is older than its own library"),
        ("Error at driver init: Call to cuInit results in UNKNOWN_CUDA_ERROR (803)", "have different versions"),
        ("Error at driver init: \nCall to cuInit results in UNKNOWN_CUDA_ERROR (804):", "does not support this GPU"),
        ("CUDA driver library cannot be found.\nIf you are sure …", "no NVIDIA driver is installed"),
        ("CUDA is disabled due to setting NUMBA_DISABLE_CUDA=1", "NUMBA_DISABLE_CUDA is set"),
        ("Call to cuInit results in UNKNOWN_CUDA_ERROR (1001)", r"here: Call to cuInit .*UNKNOWN_CUDA_ERROR \(1001\)"),
    ],
)
def test_what_the_driver_says_is_told_by_its_number(said: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(is_available=False, initialization_error=said)
    monkeypatch.setattr(cuda_driver.driver, "driver", fake)
    with pytest.raises(MachineError, match=sentence):
        cuda_driver.usable(None)


def test_what_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=[(8, 0), (12, 0)], driver=(13, 1))
    assert list(cuda_driver.usable(None)) == [0, 1]
    assert list(cuda_driver.usable(1)) == [1]
    assert cuda_driver.title(1) == "Tesla"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        ((2, "results in CUDA_ERROR_OUT_OF_MEMORY"), r"Tesla has no memory left\. End what else runs there, or use"),
        (
            (46, "results in CUDA_ERROR_DEVICE_UNAVAILABLE"),
            r"Tesla failed: .*CUDA_ERROR_DEVICE_UNAVAILABLE\. Try again",
        ),
    ],
)
def test_a_gpu_that_is_taken_is_said(failure: tuple[int, str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise cuda_driver.driver.CudaAPIError(*failure)

    machine(monkeypatch, context=refuse)
    with pytest.raises(MachineError, match=sentence):
        cuda_driver.usable(None)


def test_a_failing_gpu_is_a_sentence_without_a_trace() -> None:
    failure = cuda_driver.driver.CudaAPIError(700, "Call to cuStreamSynchronize results in CUDA_ERROR_ILLEGAL_ADDRESS")
    with pytest.raises(
        MachineError, match=r"Tesla failed: .*CUDA_ERROR_ILLEGAL_ADDRESS\. Try again, or use --device cpu"
    ):
        raise_inside(failure)
    with pytest.raises(cuda_driver.OutOfMemoryError):
        raise_inside(cuda_driver.driver.CudaAPIError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"))


def raise_inside(failure: Exception) -> None:
    with cuda_driver.explained("Tesla"):
        raise failure


@pytest.mark.parametrize("name", TYPES)
def test_the_known_rows_survive_every_type(name: str) -> None:
    """Overflow would make NaN, whose sign is a device's own choice, and then a trial could not be passed."""
    for encoding in encodings(ggtypes.by_name(name)):
        importance = trial.golden_importance() if encoding.weighted else None
        data = codec.encode(trial.golden_rows(), name, importance=importance)
        assert np.isfinite(codec.decode(data, name)).all()


def test_the_known_rows_hold_what_goes_wrong_first() -> None:
    x = trial.golden_rows()
    assert np.isfinite(x).all()
    assert (np.signbit(x) & (x == 0)).any()
    assert ((x != 0) & (np.abs(x) < 2.0**-126)).any()
    assert np.abs(x).max() > 60000
    assert any(len(np.unique(row)) == 1 and row[0] != 0 for row in x)
    assert any(np.count_nonzero(row) == 1 for row in x)
    assert (trial.golden_importance() == 0).any()


@pytest.mark.parametrize("action", ["encode", "decode"])
def test_a_device_that_errs_is_not_trusted(action: str) -> None:
    with pytest.raises(MachineError, match=rf"other \(Other 1\) does not {action} Q4_K as the CPU does \(expected 0x"):
        trial.check(Other(lies=action), trial.uses("Q4_K"))


def test_a_device_is_tried_once_for_each_use() -> None:
    other = Other()
    for _ in range(2):
        trial.check(other, [*trial.uses("Q4_0"), *trial.uses("Q4_0"), *trial.uses("BF16")])
    assert sorted(other.done) == ["F32 to Q4_0", "F32 to Q4_0", "from Q4_0"]
    assert trial.check(CPU, trial.uses("IQ2_XXS")) == [trial.Use("IQ2_XXS", a) for a in ("decode", "encode_weighted")]


def plan_of(*jobs: TensorJob) -> Plan:
    return Plan({"general.architecture": string("deepseek2")}, jobs)


def job(type_name: str, *parts: Part, via: str | None = None, rows: int = 6) -> TensorJob:
    return TensorJob(f"{type_name}.weight", (rows, 64), type_name, parts, "Q8_0", "test", via)


def test_what_a_run_needs_is_tried_and_no_more() -> None:
    rows = np.ones((6, 64), np.float32)
    sources = {"f": Memory(rows), "q": Encoded(codec.encode(rows, "Q8_0"), "Q8_0")}
    part, quantized, turned = Part("f", 0, 6), Part("q", 0, 6), Part("q", 0, 6, columns=64)
    plans = [plan_of(job("Q4_0", part), job("F16", part), job("Q8_0", quantized), job("Q5_1", quantized))]
    encoding = {trial.Use("Q4_0", "encode"), trial.Use("Q5_1", "encode")}
    assert uses.uses_in(plans, sources, Other(), weighted=False) == {*encoding, trial.Use("Q8_0", "decode")}
    assert uses.uses_in(plans, sources, CPU, weighted=False) == encoding
    weighted = {trial.Use(use.type, "encode_weighted") for use in encoding}
    assert uses.uses_in(plans, sources, CPU, weighted=True) == encoding | weighted
    assert uses.uses_in([plan_of(job("Q4_0", turned))], sources, Other(), weighted=False) == {
        trial.Use("Q4_0", "encode")
    }


def test_quantized_rows_are_handed_over_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_VALUES", 150)
    source = Encoded(codec.encode(np.random.default_rng(0).standard_normal((6, 64), np.float32), "Q8_0"), "Q8_0")
    other, plan = Other(), plan_of(job("Q4_0", Part("q", 0, 6)), job("F16", Part("q", 0, 6)))
    for name, where in (("cpu", CPU), ("other", other)):
        execute.execute([outputs.single(plan, tmp_path / name)], {"q": source}, device=where)
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "other").read_bytes()
    assert set(other.done) == {"from Q8_0", "Q8_0 to Q4_0", "F32 to F16"}


def test_a_special_value_in_handed_over_rows_names_the_tensor(tmp_path: Path) -> None:
    rows = codec.encode(np.ones((6, 64), np.float32), "Q8_0")
    rows[4, 34:36] = 0x00, 0x7E  # the scale of row 4's second block is NaN
    with pytest.raises(InputError, match=r"w: has a weight .*found NaN or Inf at row 4, column 32"):
        execute.execute(
            [outputs.single(plan_of(job("Q4_0", Part("q", 0, 6))), tmp_path / "out")],
            {"q": Encoded(rows, "Q8_0")},
            device=Other(),
        )
    assert list(tmp_path.iterdir()) == []


class Ending(Memory):
    """A source whose disk fails at row 2048, once something before it is noted in the journal of `out`."""

    out: Path

    def read(self, start: int, stop: int) -> Any:
        deadline = time.monotonic() + 30
        while start >= 2048 and time.monotonic() < deadline:
            if len(journal_path(self.out).read_text().splitlines()) > 2:
                raise MachineError("the disk is gone")
            time.sleep(0.01)
        return super().read(start, stop)


def test_a_run_that_one_device_began_another_ends(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4096, 64), np.float32)
    plan, other = plan_of(job("Q4_0", Part("w", 0, 4096), rows=4096)), Other()
    source = Ending(x)
    source.out = tmp_path / "out"

    def run(name: str, source: Memory, where: Cpu) -> execute.Result:
        kept = execute.Resumption([])
        return execute.execute(
            [outputs.single(plan, tmp_path / name)], {"w": source}, threads=1, device=where, resumption=kept
        )

    with crash.small_steps():
        run("whole", Memory(x), CPU)
        with pytest.raises(MachineError, match="the disk is gone"):
            run("out", source, CPU)
        result = run("out", Memory(x), other)
    assert 0 < result.taken_over < result.nbytes
    assert 0 < len(other.done) < 8
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
