"""The executor: right bytes in the right place whatever the threads and chunks, nothing left behind on failure."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla import codec, ggtypes
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import string
from gguf_mla.errors import InputError, MachineError, RangeError
from gguf_mla.files import platform
from gguf_mla.plan import outputs
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from gguf_mla.stream import chunks
from gguf_mla.stream import execute as executor
from tests.support.sources import Encoded, Memory, Weights

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def execute(plan: Plan, sources: dict[str, Any], out: Path, **options: Any) -> executor.Result:
    return executor.execute([outputs.single(plan, out)], sources, overwrite=True, **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_VALUES", 1000)  # no multiple of the rows below


def weights(rows: int, cols: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def job(name: str, kind: str, shape: tuple[int, ...], *parts: Part) -> TensorJob:
    return TensorJob(name, shape, kind, parts, "F32", "test")


def plan_of(*jobs: TensorJob) -> Plan:
    return Plan({"general.architecture": string("deepseek2")}, jobs)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_any_number_of_threads_writes_the_same_right_bytes(tmp_path: Path, kind: str, threads: int) -> None:
    a, b = weights(37, 96), weights(64, 96, 1)
    jobs = (
        job("stack.weight", kind, (2, 37, 96), Part("a", 0, 37), Part("b", 3, 40)),
        job("turned.weight", kind, (2, 96, 32), Part("b", 0, 32, columns=96), Part("b", 32, 64, columns=96)),
        job("vector", "F32", (96,), Part("a", 5, 6)),
    )
    result = execute(plan_of(*jobs), {"a": Memory(a), "b": Memory(b)}, tmp_path / "out.gguf", threads=threads)
    file = open_gguf(tmp_path / "out.gguf")
    stack = np.concatenate([a, b[3:40]])
    turned = np.concatenate([b[:32].T, b[32:].T])
    assert file.tensors["stack.weight"].read().tobytes() == codec.encode(stack, kind).tobytes()
    assert file.tensors["turned.weight"].read().tobytes() == codec.encode(np.ascontiguousarray(turned), kind).tobytes()
    assert file.tensors["vector"].read().tobytes() == a[5].tobytes()
    assert result.nbytes == file.size == (tmp_path / "out.gguf").stat().st_size


def test_chunks_tile_every_tensor_of_every_file_without_gap_or_overlap() -> None:
    def tensors(kind: str) -> list[TensorJob]:
        stack = job("s", kind, (3, 50, 64), Part("a", 0, 50), Part("b", 0, 50), Part("c", 0, 50))
        return [stack, job("v", "F32", (7,), Part("d", 0, 1))]

    small, large = tensors("Q8_0"), tensors("F32")
    starts = [(1024, 4096), (1024 + small[0].spec.nbytes, 4096 + large[0].spec.nbytes)]
    placed = [
        [chunks.PlacedTensor(0, pair[0], at[0]), chunks.PlacedTensor(1, pair[1], at[1])]
        for pair, at in zip(zip(small, large, strict=True), starts, strict=True)
    ]
    position = list(starts[0])
    for number, task in enumerate(chunks.tasks(placed)):
        assert task.number == number
        assert [target.offset for target in task.targets] == position
        assert (task.stop - task.start) * task.shape[-1] <= 1000
        for i, target in enumerate(task.targets):
            assert target.file == i
            row_bytes = ggtypes.by_name(target.type).row_bytes(task.shape[-1])
            assert target.nbytes == (task.stop - task.start) * row_bytes
            position[i] += target.nbytes
    assert position == [starts[1][0] + 28, starts[1][1] + 28]


def test_several_outputs_of_one_reading_equal_single_runs(tmp_path: Path) -> None:
    source = Memory(weights(90, 96))

    def plan(kind: str) -> Plan:
        return plan_of(job("t.weight", kind, (3, 30, 96), *(Part("w", 30 * i, 30 * i + 30) for i in range(3))))

    kinds = ["F32", "Q8_0", "BF16"]
    result = executor.execute([outputs.single(plan(kind), tmp_path / f"{kind}.gguf") for kind in kinds], {"w": source})
    assert source.rows_read == 90
    for kind in kinds:
        execute(plan(kind), {"w": source}, tmp_path / "alone.gguf")
        assert (tmp_path / f"{kind}.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    assert result.nbytes == sum(path.stat().st_size for path in result.paths)


def test_an_output_may_be_several_files(tmp_path: Path) -> None:
    a, b = weights(10, 96), weights(12, 96, 1)
    jobs = [job("a.weight", "Q8_0", (10, 96), Part("a", 0, 10)), job("b.weight", "F16", (12, 96), Part("b", 0, 12))]
    parts = [outputs.PlannedFile(tmp_path / f"{j.name}.gguf", {"part": string(j.name)}, (j,)) for j in jobs]
    executor.execute([parts], {"a": Memory(a), "b": Memory(b)})
    for planned, array, kind in zip(parts, (a, b), ("Q8_0", "F16"), strict=True):
        file = open_gguf(planned.path)
        assert file.metadata["part"] == planned.tensors[0].name
        assert file.tensors[planned.tensors[0].name].read().tobytes() == codec.encode(array, kind).tobytes()


def test_each_part_is_encoded_with_its_own_importance(tmp_path: Path) -> None:
    array = weights(60, 256)
    rows = np.random.default_rng(2).random((3, 256)).astype(np.float32)
    parts = [Part("w", 20 * i, 20 * i + 20) for i in range(3)]
    plan = plan_of(job("t.weight", "Q4_K", (3, 20, 256), *parts), job("u.weight", "Q4_K", (60, 256), Part("w", 0, 60)))
    execute(plan, {"w": Memory(array)}, tmp_path / "out.gguf", importance=Weights({"t.weight": rows}))
    file = open_gguf(tmp_path / "out.gguf")
    expected = b"".join(
        codec.encode(array[20 * i : 20 * i + 20], "Q4_K", importance=rows[i]).tobytes() for i in range(3)
    )
    assert file.tensors["t.weight"].read().tobytes() == expected
    assert file.tensors["u.weight"].read().tobytes() == codec.encode(array, "Q4_K").tobytes() != expected


def test_rows_whose_type_does_not_change_are_copied(tmp_path: Path) -> None:
    encoded = codec.encode(weights(40, 96), "Q8_0")
    encoded[0, :2] = 0xFF  # a scale that decodes to NaN: a copy does not look at it
    source = Encoded(encoded, "Q8_0")
    execute(plan_of(job("t.weight", "Q8_0", (40, 96), Part("w", 0, 40))), {"w": source}, tmp_path / "out.gguf")
    assert open_gguf(tmp_path / "out.gguf").tensors["t.weight"].read().tobytes() == encoded.tobytes()
    with pytest.raises(InputError, match="not a finite number"):
        execute(plan_of(job("t.weight", "F16", (40, 96), Part("w", 0, 40))), {"w": source}, tmp_path / "out.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named_with_its_place(tmp_path: Path, bad: float) -> None:
    array = weights(40, 96)
    array[33, 7] = bad
    with pytest.raises(InputError, match=r"w: has a weight that is not a finite number.*row 33, column 7"):
        execute(
            plan_of(job("t.weight", "BF16", (40, 96), Part("w", 0, 40))), {"w": Memory(array)}, tmp_path / "out.gguf"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("columns", [None, 96])
def test_a_weight_that_is_no_number_is_found_on_every_way(tmp_path: Path, kind: str, columns: int | None) -> None:
    array = weights(64, 96)
    array[33, 7] = np.nan
    shape = (64, 96) if columns is None else (96, 64)
    turned = job("t.weight", kind, shape, Part("w", 0, 64, columns=columns))
    with pytest.raises(InputError, match=r"w: has a weight that is not a finite number.*row 33, column 7"):
        execute(plan_of(turned), {"w": Memory(array)}, tmp_path / "out.gguf")


TOO_LARGE = [("F16", 65520.0), ("F16", -1e30), ("BF16", 3.4e38), ("Q8_0", 9e6), ("Q8_0", 1e30), ("Q8_0", -3e38)]


@pytest.mark.parametrize(("kind", "value"), TOO_LARGE)
@pytest.mark.parametrize("columns", [None, 96])
def test_a_weight_that_the_type_cannot_hold_is_named_with_its_place(
    tmp_path: Path, kind: str, value: float, columns: int | None
) -> None:
    array = weights(64, 96)
    array[33, 7], array[12, 70] = value, 1e4  # which every type holds
    turned = job("t.weight", kind, (64, 96) if columns is None else (96, 64), Part("w", 0, 64, columns=columns))
    with pytest.raises(RangeError, match=rf"w: the value in row 33, column 7 is too large for {kind}") as refused:
        execute(plan_of(turned), {"w": Memory(array)}, tmp_path / "out.gguf")
    assert f"found {value:.6g}" in str(refused.value)
    assert ("Choose F32" if kind == "BF16" else "Choose BF16") in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "value"), [("F16", 65519.0), ("BF16", 3.38e38), ("Q8_0", 8.3e6), ("F32", 3.4e38)])
def test_a_large_weight_that_the_type_holds_is_written(tmp_path: Path, kind: str, value: float) -> None:
    array = weights(64, 96)
    array[33, 7] = value
    execute(plan_of(job("t.weight", kind, (64, 96), Part("w", 0, 64))), {"w": Memory(array)}, tmp_path / "out.gguf")
    expected = codec.encode(array, kind, check=False)
    assert open_gguf(tmp_path / "out.gguf").tensors["t.weight"].read().tobytes() == expected.tobytes()
    assert np.isfinite(codec.decode(expected, kind)).all()


@pytest.mark.parametrize("error", [MachineError("reading failed"), KeyboardInterrupt(), RuntimeError("a defect")])
def test_whatever_stops_a_run_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    before = threading.active_count()
    source = Memory(weights(500, 96), fail=error, fail_at=450)
    with pytest.raises(type(error)):
        execute(plan_of(job("t.weight", "Q8_0", (500, 96), Part("w", 0, 500))), {"w": source}, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


def test_an_interrupt_while_reporting_stops_the_threads(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(
            plan_of(job("t.weight", "F32", (500, 96), Part("w", 0, 500))),
            {"w": Memory(weights(500, 96))},
            tmp_path / "out.gguf",
            progress=interrupt,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_survives_a_failing_rerun(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    source = Memory(weights(5, 96), fail=MachineError("reading failed"), fail_at=0)
    with pytest.raises(MachineError):
        execute(plan_of(job("t.weight", "F32", (5, 96), Part("w", 0, 5))), {"w": source}, out)
    assert out.read_bytes() == b"precious"


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    huge = job("t.weight", "F32", (1 << 40, 1 << 10), Part("w", 0, 1 << 40))
    with pytest.raises(
        MachineError, match=r"not enough free disk space.*expected 4503874505.* bytes, found .* bytes free"
    ):
        execute(plan_of(huge), {"w": Memory(weights(1, 96))}, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("memory", "dropped"), [(1 << 40, 0), (1000, 500)])
def test_a_run_that_would_flood_the_page_cache_drops_what_it_has_read(
    memory: int, dropped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "physical_memory", lambda: memory)
    source = Memory(weights(500, 96))
    execute(plan_of(job("t.weight", "Q8_0", (500, 96), Part("w", 0, 500))), {"w": source}, tmp_path / "out.gguf")
    assert source.rows_dropped == dropped


def test_the_stages_of_a_run_are_counted(tmp_path: Path) -> None:
    plan = plan_of(job("t.weight", "Q4_K", (500, 256), Part("w", 0, 500)))
    result = execute(plan, {"w": Memory(weights(500, 256))}, tmp_path / "out.gguf", threads=2)
    assert all(result.stages[stage] > 0 for stage in ("decode", "encode", "write", "checksum"))
    assert sum(result.stages.values()) < 2 * result.seconds


def test_progress_adds_up_to_the_bytes_written(tmp_path: Path) -> None:
    seen: list[int] = []
    plan = plan_of(job("t.weight", "Q8_0", (500, 96), Part("w", 0, 500)))
    execute(plan, {"w": Memory(weights(500, 96))}, tmp_path / "out.gguf", progress=seen.append)
    assert sum(seen) == plan.nbytes
