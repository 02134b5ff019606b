"""The CUDA kernels: equal to the CPU's in numba's simulator, and on a GPU where there is one; real sizes as PTX.

Tolerances. A sum of n products in float32 strays by about √n · 2^-24 of the size of its terms, whatever the order; here
the CPU adds in another order than the kernels, or in float64. Attention has two such sums, of the score and of the
values, and an exponential between them that multiplies the score's error by at most the score, a few: 4√n · 2^-24.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gguf_mla.errors import InputError, MachineError
from gguf_mla.forward import attention, kernels
from gguf_mla.forward import indexer as cpu_indexer
from gguf_mla.forward.attention import RowLayout
from gguf_mla.forward.cuda import attend, forms, indexer, pointwise, selection
from gguf_mla.forward.cuda.attend import EXPANDED, LATENT, MICRO, NARROW, SHARED, Row, Tile, tile_for
from gguf_mla.forward.cuda.device import explained
from tests.support import ptx
from tests.support.close import STEP as EPS
from tests.support.close import close_together as close
from tests.support.hub import REPOSITORY
from tests.support.nvvm import nvvm
from tests.verify import cuda_cases as cases
from verify.bench import gpu as bench_gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEEPSEEK, PE_FIRST = Row(576, 576, 0, 512), Row(576, 576, 64, 512)
HEADS = Row(320, 192, 192, 128)
GLM = Row(512, 256, 256, 256)  # GLM-4.7-Flash's heads: 192 + 64 and 256
REAL = [(DEEPSEEK, LATENT), (PE_FIRST, LATENT), (DEEPSEEK, NARROW), (HEADS, EXPANDED)]


def gpu() -> bool:
    from numba import cuda

    return bool(cuda.is_available())


@pytest.fixture(
    scope="module",
    params=[pytest.param("simulator", marks=pytest.mark.cuda), pytest.param("gpu", marks=pytest.mark.gpu)],
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the kernels computed, by the name of the case."""
    path = tmp_path_factory.mktemp("cuda") / "found.npz"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1" if request.param == "simulator" else "0"}
    subprocess.run([sys.executable, "-m", cases.__name__, path], env=environment, cwd=REPOSITORY, check=True)
    return dict(np.load(path))


def definition(
    queries: np.ndarray, rows: np.ndarray, values: np.ndarray, scale: float = cases.SCALE
) -> tuple[np.ndarray, np.ndarray]:
    """Attention in float64: queries [H, d] over rows [S, d] and values [S, v]; [H, v] and log-sum-exp [H]."""
    scores = queries.astype(np.float64) @ rows.T.astype(np.float64) * scale
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    total = weights.sum(axis=1, keepdims=True)
    return weights @ values / total, scores.max(axis=1) + np.log(total[:, 0])


@pytest.mark.parametrize("shape", cases.SHAPES, ids=lambda shape: f"T{shape[0]}-S{shape[1]}")
@pytest.mark.parametrize("name", cases.FORMS)
def test_forms_are_those_of_the_cpu(name: str, shape: tuple[int, int], found: dict[str, np.ndarray]) -> None:
    expected = attention.FORMS[name](cases.inputs(*shape))
    close(found[f"{name} {shape[0]} {shape[1]}"], expected, cases.RANK + cases.ROPE + shape[1])


@pytest.mark.parametrize("shape", cases.SHAPES[1:], ids=lambda shape: f"T{shape[0]}-S{shape[1]}")
@pytest.mark.parametrize("name", cases.FORMS)
def test_sparse_forms_are_those_of_the_cpu(name: str, shape: tuple[int, int], found: dict[str, np.ndarray]) -> None:
    expected = attention.FORMS[name](cases.sparse_inputs(*shape))
    close(found[f"{name} sparse {shape[0]} {shape[1]}"], expected, cases.RANK + cases.ROPE + 4)


@pytest.mark.parametrize("page_size", [page_size for page_size, _ in cases.DECODES])
def test_paged_decoding_of_a_ragged_batch_in_parts(page_size: int, found: dict[str, np.ndarray]) -> None:
    layout = RowLayout(cases.RANK, cases.ROPE, pe_first=page_size == 3)
    b = cases.batch(page_size, layout)
    queries = layout.join(b.q_latent, b.q_pe).numpy()
    for number, rows in enumerate(b.rows):
        out, lse = found[f"decode {page_size}"][number], found[f"lse {page_size}"][number]
        if not len(rows):
            assert not out.any()
            assert (lse == -np.inf).all()
            continue
        expected, expected_lse = definition(queries[number], rows, rows[:, layout.latent])
        close(out, expected, layout.rank + layout.rope + len(rows))
        close(lse, expected_lse, layout.rank + layout.rope + len(rows))


def test_paged_decoding_is_the_cpus(found: dict[str, np.ndarray]) -> None:
    b = cases.batch(16, RowLayout(cases.RANK, cases.ROPE))
    out, lse = attention.decode_paged(b.q_latent, b.q_pe, b.pages, cases.SCALE)
    full = (b.pages.lengths > 0).numpy()
    close(found["decode 16"][full], out[full], cases.RANK + cases.ROPE + max(cases.LENGTHS))
    close(found["lse 16"][full], lse[full], cases.RANK + cases.ROPE + max(cases.LENGTHS))


def test_some_queries_see_nothing_of_later_parts(found: dict[str, np.ndarray]) -> None:
    layout, x = RowLayout(cases.RANK, cases.ROPE, pe_first=True), cases.inputs(6, 21)
    rows, queries = layout.join(x.latent, x.k_pe), cases.drawn(17, 6, 3, cases.RANK + cases.ROPE)
    expected = attention.attend(queries, rows, layout, cases.SCALE)
    close(found["attend in parts"], expected, cases.RANK + cases.ROPE + 21)


def test_nan_shows_where_it_is_seen(found: dict[str, np.ndarray]) -> None:
    # row 13 of 21 holds one: of 6 queries, the last 6 tokens, all see it
    assert np.isnan(found["with NaN"]).all()


def test_sparse_attention_sees_the_chosen_rows_only(found: dict[str, np.ndarray]) -> None:
    layout, x = RowLayout(cases.RANK, cases.ROPE, pe_first=True), cases.inputs(6, 21)
    rows, queries = layout.join(x.latent, x.k_pe).numpy(), cases.bell(17, 6, 3, cases.RANK + cases.ROPE)
    for query, chosen in enumerate(cases.chosen_rows().numpy()):
        own = rows[chosen[chosen >= 0]]
        expected, lse = definition(queries[query], own, own[:, layout.latent])
        close(found["chosen"][query], expected, rows.shape[1] + len(own))
        close(found["chosen lse"][query], lse, rows.shape[1] + len(own))


@pytest.mark.parametrize(("name", "heads"), [("LATENT", 33), ("NARROW", 9)])
def test_tiles_of_a_gpu_share_rows(name: str, heads: int, found: dict[str, np.ndarray]) -> None:
    layout = RowLayout(cases.RANK, cases.ROPE)
    b = cases.batch(4, layout, heads, [10])
    expected, _ = definition(layout.join(b.q_latent, b.q_pe)[0].numpy(), b.rows[0], b.rows[0][:, layout.latent])
    close(found[name][0], expected, cases.RANK + cases.ROPE + 10)


def test_tile_of_a_gpu_for_expanded_heads(found: dict[str, np.ndarray]) -> None:
    close(found["EXPANDED"], attention.vanilla(cases.inputs(5, 21, 1)), cases.NOPE + cases.ROPE + 21)


@pytest.mark.parametrize("halves", [False, True])
def test_rope_turns_pairs_or_halves_and_nothing_else(halves: bool, found: dict[str, np.ndarray]) -> None:
    x, cos, sin = cases.bell(20, 5, 3, 12), cases.bell(18, 5, 4), cases.bell(19, 5, 4)
    turned = np.ascontiguousarray(x[..., :8])
    if halves:
        turned = np.ascontiguousarray(turned.reshape(5, 3, 2, 4).swapaxes(2, 3).reshape(5, 3, 8))
    kernels.rotate(turned, cos, sin)
    if halves:
        turned = turned.reshape(5, 3, 4, 2).swapaxes(2, 3).reshape(5, 3, 8)
    result = found[f"rope {halves}"]
    np.testing.assert_array_equal(found["rope leaves"], x)
    # A GPU may round a·b - c·d once where the CPU rounds twice: half a step of each product.
    limit = EPS * np.abs(x).max() * max(np.abs(cos).max(), np.abs(sin).max()) * 2
    np.testing.assert_allclose(result, turned, rtol=0, atol=limit)


@pytest.mark.parametrize("name", cases.ROUTINGS)
def test_routing_is_the_cpus_with_ties(name: str, found: dict[str, np.ndarray]) -> None:
    expected = np.full((6, 5), -1)
    kernels.choose(cases.experts(), *cases.ROUTINGS[name], expected)
    np.testing.assert_array_equal(found[f"routing {name}"], expected)


@pytest.mark.parametrize("size", [2, 8, 128])
def test_hadamard_transform_is_orthonormal_in_sylvesters_order(size: int, found: dict[str, np.ndarray]) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    x = cases.bell(21, 2, 1, size)
    # log2(size) additions and a multiplication, each rounded to 2^-24 of at most the row's largest sum
    np.testing.assert_allclose(
        found[f"hadamard {size}"], x @ matrix / size**0.5, rtol=0, atol=8 * EPS * np.abs(x).sum() / size**0.5
    )


@pytest.mark.parametrize("size", [0, 1, 6, 4096])
def test_hadamard_transform_needs_a_power_of_two(size: int) -> None:
    with pytest.raises(InputError, match=f"a power of two up to 2048, found {size}"):
        indexer.hadamard(torch.ones(2, size))


@pytest.mark.parametrize("name", cases.PIECES)
def test_indexer_scores(name: str, found: dict[str, np.ndarray]) -> None:
    q, k, weights = (x.double().numpy() for x in cases.indexed(name))
    expected = np.einsum("ths,th->ts", np.maximum(np.einsum("thd,sd->ths", q, k), 0), weights)
    seen = np.arange(len(k)) <= np.arange(len(q))[:, None] + len(k) - len(q)
    result = found[f"scores {name}"]
    assert (result[~seen] == -np.inf).all()
    # terms of both signs cancel: what rounding is measured against is the sum of their sizes
    sizes = np.einsum("ths,th->ts", np.einsum("thd,sd->ths", np.abs(q), np.abs(k)), np.abs(weights))
    assert (np.abs(result - expected)[seen] <= (q.shape[1] * q.shape[2]) ** 0.5 * EPS * sizes[seen]).all()


@pytest.mark.parametrize("count", cases.WANTED)
def test_the_best_are_chosen_exactly_and_the_first_of_equals(count: int, found: dict[str, np.ndarray]) -> None:
    chosen = found[f"best {count}"]
    assert chosen.shape == (10, min(count, 45))
    for query, row in enumerate(cases.scored()):
        seen = 45 - 10 + query + 1
        best = np.sort(np.argsort(-np.where(np.isnan(row), np.inf, row)[:seen], kind="stable")[:count])
        np.testing.assert_array_equal(chosen[query, : len(best)], best)
        assert (chosen[query, len(best) :] == -1).all()


def test_tokens_are_chosen_from_scores_on_the_device(found: dict[str, np.ndarray]) -> None:
    scores = found["scores many heads"]
    best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :4], axis=1)
    hidden = np.take_along_axis(scores, best, axis=1) == -np.inf
    np.testing.assert_array_equal(found["chosen tokens"], np.where(hidden, -1, best))


def test_indexer_is_the_cpus(found: dict[str, np.ndarray]) -> None:
    index = cpu_indexer.Index(*cases.indexed("many heads"))
    np.testing.assert_array_equal(found["chosen tokens"], cpu_indexer.choose(index, 4))
    scores = cpu_indexer.scores(index, 0, len(index.queries))
    np.testing.assert_array_equal(found["scores many heads"] == -np.inf, scores == -torch.inf)
    x = cases.bell(21, 2, 1, 128)
    limit = 8 * EPS * np.abs(x).sum() / 128**0.5  # as above; the CPU may add in another order
    np.testing.assert_allclose(found["hadamard 128"], cpu_indexer.hadamard(torch.from_numpy(x)), rtol=0, atol=limit)


def test_benchmark_counts_what_has_to_be_done(found: dict[str, np.ndarray]) -> None:
    assert found["bench names"].tolist() == ["copy", "paged decode", "prefill, vanilla", "prefill, absorbed"]
    assert " ".join(found["bench table"]).endswith("slow 500.000 4 25% 6.00 100%")
    heads, key, value, nope, v = 2, 8, 6, 6, 3
    seen = 1 + 2 + 3  # by the queries of the prefill, together
    decode = 2 * 2 * heads * 5 * (key + value), 4 * (2 * heads * (key + value) + 2 * 5 * key)
    vanilla = 2 * heads * seen * (nope + v), 4 * (heads * 3 * (nope + v) + heads * 3 * (nope + v))
    absorbed = 2 * heads * seen * (key + value), 4 * (heads * 3 * (key + value) + 3 * key)
    np.testing.assert_array_equal(found["bench costs"], [(0, 2048), decode, vanilla, absorbed])


def test_bounds_of_an_h100_are_its_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"CLOCK_RATE": 1_980_000, "MEMORY_CLOCK_RATE": 2_619_000}  # kHz
    sizes = {"MULTIPROCESSOR_COUNT": 132, "GLOBAL_MEMORY_BUS_WIDTH": 5120, "compute_capability": (9, 0)}
    monkeypatch.setattr(bench_gpu.cuda, "get_current_device", lambda: SimpleNamespace(**clocks, **sizes))
    assert bench_gpu.peak().nbytes == pytest.approx(3.35e12, rel=0.01)
    assert bench_gpu.peak().operations == pytest.approx(67e12, rel=0.01)


@pytest.mark.parametrize("tile", [LATENT, NARROW, EXPANDED, cases.small_tile()], ids=repr)
def test_a_tile_uses_all_its_threads(tile: Tile) -> None:
    for size in (tile.queries, tile.tokens):
        assert size % MICRO == 0
    for share in (tile.tokens, tile.columns, tile.queries * tile.tokens // MICRO**2):
        assert tile.threads % share == 0
    assert tile.queries * tile.columns % tile.threads == 0
    assert tile.queries <= tile.threads  # one for every query row's softmax


@pytest.mark.parametrize(
    ("row", "count", "tile"),
    [
        (DEEPSEEK, 128, LATENT),
        (DEEPSEEK, 16, NARROW),
        (PE_FIRST, 64, LATENT),
        (HEADS, 1, EXPANDED),
        (GLM, 4096, LATENT),
    ],
)
def test_real_rows_fit_in_shared_memory(row: Row, count: int, tile: Tile) -> None:
    assert tile_for(row, count) is tile
    assert tile.shared_bytes(row) <= SHARED
    assert tile.padded(row) == row.width


def test_rows_that_fit_no_gpu_are_refused() -> None:
    with pytest.raises(InputError, match=r"a cached row does not fit a GPU's shared memory.*found 2048"):
        tile_for(Row(2048, 2048, 0, 2000), 128)


def kernels_of_a_gpu() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every kernel at DeepSeek's sizes: its function and the types of its arguments."""
    from numba import boolean, float32, int64, types, uint32

    def array(kind: Any, dimensions: int) -> Any:
        return types.Array(kind, dimensions, "C")

    f1, f2, f3, f4 = (array(float32, dimensions) for dimensions in (1, 2, 3, 4))
    i1, i2 = array(int64, 1), array(int64, 2)
    attention_types = (f1, f3, i1, i1, i1, int64, float32, f4, f3)
    attending = {f"{row} {tile}": (attend.function(row, tile), attention_types) for row, tile in REAL}
    return attending | {
        "combine": (attend.combine_function(), (f3, f2, f2, f1)),
        "rope": (pointwise.rotate_pairs, (f3, f2, f2, int64, int64)),
        "routing": (pointwise.choose_function(), (f2, int64, int64, boolean, f2, i2, f2, i2)),
        "hadamard": (indexer.transform_function(128), (f2,)),
        "scores": (indexer.score_function(indexer.PIECE), (f3, f2, f2, f2)),
        "top k": (selection.function(), (array(uint32, 2), int64, i2)),
    }


@pytest.mark.cuda
@pytest.mark.skipif(not nvvm(), reason="needs NVVM to compile for a GPU")
def test_real_sizes_compile_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As numba's input to NVVM, which serves all architectures, and from that for each."""
    from numba.cuda import dispatcher

    newest = SimpleNamespace(compute_capability=ptx.ARCHITECTURES[-1])
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: newest)
    expected = {f"{row} {tile}": tile.shared_bytes(row) for row, tile in REAL}
    twice = [f"{row} {tile}" for row, tile in REAL[1:3]]  # each takes seconds, and is another layout of the first
    for name, (function, signature) in kernels_of_a_gpu().items():
        library = ptx.compiled(function, signature)
        for capability in ptx.ARCHITECTURES if name not in twice else ptx.ARCHITECTURES[-1:]:
            text = library.get_asm_str(cc=capability)
            assert ".f64" not in text, name  # a constant in double precision would make a GPU compute in it
            shared = sum(int(size) for size in re.findall(r"\.shared .*\[(\d+)\]", text))
            assert shared <= SHARED, name
            if name in expected:
                assert shared == expected[name]
                assert "__local_depot" not in text, name  # sums that are not registers
            assemble(text, capability, tmp_path)


def assemble(text: str, capability: tuple[int, int], folder: Path) -> None:
    """Make machine code of PTX where the CUDA toolkit is there."""
    if assembler := shutil.which("ptxas"):
        source = folder / "kernel.ptx"
        source.write_text(text)
        options = [f"-arch=sm_{capability[0]}{capability[1]}", f"-maxrregcount={attend.REGISTERS}"]
        subprocess.run([assembler, *options, source, "-o", folder / "kernel.cubin"], check=True)


@pytest.mark.parametrize("size", [attend.WIDTH, indexer.SIZE, selection.THREADS], ids=repr)
def test_a_size_that_no_variant_gave_refuses_to_compute(size: Any) -> None:
    with pytest.raises(TypeError, match="has no value yet"):
        size // 2


@pytest.mark.parametrize("ask", [forms, lambda: list(bench_gpu.lines())])
@pytest.mark.skipif("gpu()", reason="there is a GPU")
def test_a_machine_without_gpu_says_so(ask: Callable[[], object]) -> None:
    with pytest.raises(MachineError, match=r"no CUDA device can be used here.*--device cpu"):
        ask()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(2, "the GPU does not have enough memory. .*shorter --context"), (719, "the GPU failed: .*719")],
)
def test_a_failing_gpu_is_a_sentence(code: int, sentence: str) -> None:
    from numba.cuda.cudadrv.driver import CudaAPIError

    with pytest.raises(MachineError, match=sentence), explained():
        raise CudaAPIError(code, "what the driver says")
