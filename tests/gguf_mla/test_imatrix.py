"""Importance files: both formats, as independent writers make them; merged, filtered, damaged."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gguf_mla import codec
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, string, u32
from gguf_mla.errors import InputError
from gguf_mla.importance.matrix import Imatrix, read_imatrix
from tests.support.matrices import write_imatrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

IN_TMP_PATH = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
SUMS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(0, 2.0**20, width=32))
GATE, KV_B, K_B, V_B = (f"blk.3.{part}.weight" for part in ("ffn_gate_exps", "attn_kv_b", "attn_k_b", "attn_v_b"))


def entry(*sums: Sequence[float], counts: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.array(sums, np.float32), np.array(counts, np.float32)


def listed(matrix: Imatrix, name: str, shape: Sequence[int]) -> list[list[float]]:
    rows = matrix.rows(name, shape)
    assert rows is not None
    assert rows.dtype == np.float32
    return list(rows.tolist())


def gguf_file(path: Path, values: Mapping[str, tuple[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> Path:
    """A file of gguf's own writer; `values` are (writer method, value)."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, (method, value) in values.items():
        getattr(writer, method)(key, value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def peer_gguf(path: Path, entries: Mapping[str, tuple[Any, Any]], *, chunk_size: int = 512) -> Path:
    """What llama-imatrix writes: sums of inputs and statistics stand beside what we read."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, (sums, counts) in entries.items():
        tensors |= {f"{name}.in_sum2": sums, f"{name}.counts": counts.reshape(-1, 1)}
        tensors |= {f"{name}.in_sum": -sums, f"{name}.stats": np.full(12, np.nan, np.float32)}
    values: dict[str, tuple[str, Any]] = {
        "general.type": ("add_string", "imatrix"),
        "imatrix.datasets": ("add_array", ["/home/someone/texts/calibration.txt", "second.txt"]),
        "imatrix.chunk_count": ("add_uint32", 7),
        "imatrix.chunk_size": ("add_uint32", chunk_size),
    }
    return gguf_file(path, values, tensors)


def dat_entry(name: bytes, calls: int, values: Sequence[float]) -> bytes:
    return struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name, calls, len(values), *values)


def dat(path: Path, entries: Mapping[str, tuple[int, Sequence[float]]], trailer: bytes = b"") -> Path:
    parts = [dat_entry(name.encode(), *content) for name, content in entries.items()]
    path.write_bytes(struct.pack("<i", len(parts)) + b"".join(parts) + trailer)
    return path


@given(st.dictionaries(NAMES, SUMS, min_size=1, max_size=4), st.data())
@IN_TMP_PATH
def test_importance_is_sum_over_count_and_one_without_a_count(
    tmp_path: Path, sums: dict[str, NDArray[np.float32]], data: st.DataObject
) -> None:
    counts = {
        name: data.draw(hnp.arrays(np.float32, len(x), elements=st.integers(0, 9000))) for name, x in sums.items()
    }
    matrix = read_imatrix([peer_gguf(tmp_path / "m.gguf", {name: (x, counts[name]) for name, x in sums.items()})])
    assert sorted(matrix.names) == sorted(sums)
    for name, x in sums.items():
        expected = [row / count if count else row * 0 + 1 for row, count in zip(x, counts[name], strict=True)]
        assert listed(matrix, name, (len(x), 5, x.shape[1])) == np.array(expected).tolist()


@given(st.dictionaries(NAMES, SUMS, min_size=1, max_size=4), st.integers(0, 5000), st.booleans())
@IN_TMP_PATH
def test_dat_values_are_divided_by_the_calls(
    tmp_path: Path, sums: dict[str, NDArray[np.float32]], calls: int, trailer: bool
) -> None:
    end = struct.pack("<ii5s", 123, 5, b"d.txt") if trailer else b""
    path = dat(tmp_path / "m.dat", {name: (calls, x.reshape(-1).tolist()) for name, x in sums.items()}, end)
    matrix = read_imatrix([path])
    assert matrix.names == tuple(sums)
    assert (matrix.chunk_count, matrix.datasets) == ((123, ("d.txt",)) if trailer else (0, ()))
    for name, x in sums.items():
        assert listed(matrix, name, (len(x), 5, x.shape[1])) == (x / np.float32(calls or 1)).tolist()


@given(st.dictionaries(NAMES, SUMS, min_size=1, max_size=4))
@IN_TMP_PATH
def test_what_is_written_is_read_back_here_and_by_ggufs_reader(
    tmp_path: Path, sums: dict[str, NDArray[np.float32]]
) -> None:
    path = tmp_path / "w.gguf"
    entries = {name: (x, np.full(len(x), 2, np.float32)) for name, x in sums.items()}
    path.unlink(missing_ok=True)  # of the example before
    write_imatrix(path, entries, datasets=["a.txt", "b.txt"], chunk_count=3, chunk_size=256)
    matrix, reader = read_imatrix([path]), gguf.GGUFReader(path)
    assert (matrix.datasets, matrix.chunk_count) == (("a.txt", "b.txt"), 3)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 256
    judged = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, x in sums.items():
        assert listed(matrix, name, (len(x), 1, x.shape[1])) == (x / 2).tolist()
        assert np.array_equal(judged[f"{name}.in_sum2"].reshape(x.shape), x)
        assert judged[f"{name}.counts"].shape == (len(x), 1)


def test_one_count_serves_all_heads_as_llama_imatrix_stores_a_dense_3d_tensor(tmp_path: Path) -> None:
    sums = np.arange(12, dtype=np.float32)
    path = peer_gguf(tmp_path / "m.gguf", {V_B: (sums.reshape(1, 12), np.array([4], np.float32))})
    assert listed(read_imatrix([path]), V_B, (3, 128, 4)) == (sums.reshape(3, 4) / 4).tolist()


def test_counts_are_rounded_to_whole_numbers(tmp_path: Path) -> None:
    path = peer_gguf(tmp_path / "m.gguf", {GATE: entry([6, 6], [6, 6], [6, 6], counts=[1.5, 0.4, 3.4])})
    assert listed(read_imatrix([path]), GATE, (3, 8, 2)) == [[3, 3], [1, 1], [2, 2]]


def test_sums_and_counts_of_several_files_are_added(tmp_path: Path) -> None:
    one = peer_gguf(
        tmp_path / "1.gguf", {GATE: entry([2, 4], [8, 8], [5, 5], counts=[1, 4, 0]), "a": entry([6], counts=[2])}
    )
    two = peer_gguf(tmp_path / "2.gguf", {GATE: entry([4, 2], [0, 0], [9, 9], counts=[2, 0, 0])})
    matrix = read_imatrix([one, two])
    assert listed(matrix, GATE, (3, 8, 2)) == [[2, 2], [2, 2], [1, 1]]
    assert matrix.unseen([GATE, "a", "absent"]) == {GATE: 1}
    assert set(matrix.names) == {GATE, "a"}
    assert (matrix.chunk_count, len(matrix.datasets)) == (14, 4)


@pytest.mark.parametrize("turned", [False, True], ids=["gguf_first", "dat_first"])
def test_a_call_of_a_dat_file_counts_as_a_chunk_of_tokens(tmp_path: Path, turned: bool) -> None:
    new = peer_gguf(tmp_path / "1.gguf", {GATE: entry([300, 0], [0, 300], counts=[100, 50])}, chunk_size=100)
    old = dat(tmp_path / "2.dat", {GATE: (2, [10, 20, 30, 40]), "old": (5, [10])})
    matrix = read_imatrix([old, new] if turned else [new, old])
    assert np.allclose(
        listed(matrix, GATE, (2, 8, 2)), [[1300 / 300, 2000 / 300], [3000 / 250, 4300 / 250]], rtol=1e-6, atol=0
    )
    assert listed(matrix, "old", (8, 1)) == [[2]]


def test_dat_files_alone_are_merged_by_their_calls(tmp_path: Path) -> None:
    paths = [dat(tmp_path / f"{calls}.dat", {"t": (calls, [6 * calls, calls])}) for calls in (1, 2)]
    assert listed(read_imatrix(paths), "t", (8, 2)) == [[6, 1]]


def test_attn_kv_b_stands_in_for_attn_v_b_and_nothing_for_attn_k_b(tmp_path: Path) -> None:
    path = dat(tmp_path / "m.dat", {KV_B: (2, [2, 4, 6])})
    matrix = read_imatrix([path])
    assert listed(matrix, V_B, (4, 128, 3)) == [[1, 2, 3]] * 4
    assert matrix.rows(K_B, (4, 3, 128)) is None
    assert matrix.missing([KV_B, K_B, V_B]) == [K_B]
    assert read_imatrix([path], stand_ins={}).missing([KV_B, K_B, V_B]) == [K_B, V_B]
    with pytest.raises(InputError, match=r"attn_v_b.*importance of blk\.3\.attn_kv_b\.weight.*4 rows of 5.*3 values"):
        matrix.rows(V_B, (4, 128, 5))


def test_an_own_entry_goes_before_the_stand_in(tmp_path: Path) -> None:
    matrix = read_imatrix([dat(tmp_path / "m.dat", {KV_B: (1, [9]), V_B: (1, [1, 2])})])
    assert listed(matrix, V_B, (2, 128, 1)) == [[1], [2]]


@pytest.mark.parametrize(
    ("filters", "names", "missing"),
    [
        ({"include": ["ffn_", "blk.0"]}, [GATE], [KV_B, V_B]),
        ({"exclude": ["ffn_gate"]}, [KV_B], [GATE]),
        ({"exclude": ["attn_v_b"]}, [KV_B, GATE], [V_B]),
        ({"exclude": ["kv_b"]}, [GATE], [KV_B, V_B]),
        ({"include": ["nothing"]}, [], [KV_B, GATE, V_B]),
    ],
    ids=str,
)
def test_filters_match_parts_of_names(
    tmp_path: Path, filters: dict[str, Any], names: list[str], missing: list[str]
) -> None:
    path = dat(tmp_path / "m.dat", {KV_B: (1, [1]), GATE: (1, [1])})
    matrix = read_imatrix([path], **filters)
    assert list(matrix.names) == names
    assert matrix.missing([KV_B, GATE, V_B]) == missing


def test_metadata_has_llama_quantizes_keys_and_types_and_no_path(tmp_path: Path) -> None:
    path = peer_gguf(tmp_path / "matrix.gguf", {GATE: entry([1], counts=[1]), "a": entry([1], counts=[1])})
    assert list(read_imatrix([path], exclude=["ffn"]).metadata().items()) == [
        ("quantize.imatrix.file", string("matrix.gguf")),
        ("quantize.imatrix.dataset", string("calibration.txt")),
        ("quantize.imatrix.entries_count", u32(1)),
        ("quantize.imatrix.chunks_count", Value(Kind.U32, 7)),
    ]
    assert read_imatrix([path], include=["nothing"]).metadata() == {}
    bare = dat(tmp_path / "bare.dat", {"t": (1, [1])})
    assert list(read_imatrix([bare]).metadata()) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    assert read_imatrix([path, bare]).metadata()["quantize.imatrix.file"] == string("matrix.gguf, bare.dat")


def test_a_windows_path_loses_its_directories_too(tmp_path: Path) -> None:
    path = dat(tmp_path / "m.dat", {"t": (1, [1])}, struct.pack("<ii14s", 1, 14, rb"C:\texts\w.txt"))
    assert read_imatrix([path]).metadata()["quantize.imatrix.dataset"] == string("w.txt")


def test_only_the_tensor_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf_mla.files.input import InputFile

    big = np.ones((4, 50_000), np.float32)
    path = peer_gguf(tmp_path / "m.gguf", {"big": (big, np.ones(4, np.float32)), "t": entry([2], counts=[1])})
    start = min(tensor.offset for tensor in open_gguf(path).tensors.values())
    read, counted = InputFile.read, []

    def counting(self: InputFile, offset: int, count: int) -> NDArray[np.uint8]:
        counted.append(count if offset >= start else 0)
        return read(self, offset, count)

    monkeypatch.setattr(InputFile, "read", counting)
    assert read_imatrix([path]).rows("t", (1, 1)) is not None
    assert sum(counted) < 100


def test_threads_share_one_reading(tmp_path: Path) -> None:
    sums = np.arange(6 * 512, dtype=np.float32).reshape(6, 512)
    matrix = read_imatrix([peer_gguf(tmp_path / "m.gguf", {GATE: (sums, np.full(6, 2, np.float32))})])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: matrix.rows(GATE, (6, 4, 512)), range(40)))
    assert all(rows is not None and np.array_equal(rows, sums / 2) for rows in found)
    assert len({rows.__array_interface__["data"] for rows in found if rows is not None}) == 1


def test_rows_are_what_the_codec_takes(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    sums = generator.random((2, 256), np.float32)
    matrix = read_imatrix([peer_gguf(tmp_path / "m.gguf", {KV_B: (sums[:1], np.array([3], np.float32))})])
    weights = generator.standard_normal((2, 4, 256), np.float32)
    rows = matrix.rows(V_B, weights.shape)
    assert rows is not None
    encoded = codec.quantize(weights, "Q4_K", importance=rows, threads=1)
    assert np.array_equal(encoded[1], codec.encode(weights[1], "Q4_K", importance=sums[0] / np.float32(3)))


def test_the_identity_tells_everything_that_decides_the_weights(tmp_path: Path) -> None:
    path = dat(tmp_path / "m.dat", {"a": (1, [1, 2]), "b": (1, [3, 4])})

    def identity(**selection: Any) -> str:
        return json.dumps(read_imatrix([path], **selection).identity)

    assert identity() == identity()
    before = identity()
    several = {
        before,
        identity(include=["a"]),
        identity(include=["b"]),
        identity(exclude=["a"]),
        identity(stand_ins={}),
    }
    assert len(several) == 5
    dat(path, {"a": (1, [1, 2]), "b": (1, [3, 5])})
    assert identity() != before


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_importance_are_found_before_the_work(tmp_path: Path, value: float) -> None:
    bad_sum = peer_gguf(tmp_path / "sum.gguf", {GATE: entry([1, value], counts=[1]), "a": entry([1], counts=[1])})
    matrix = read_imatrix([bad_sum])
    matrix.check({"a": (1, 1)})
    with pytest.raises(InputError, match=rf"sum\.gguf: {GATE}: holds an invalid importance value.*at position 1"):
        matrix.check({"a": (1, 1), GATE: (8, 2)})
    with pytest.raises(InputError, match=r"t: holds an invalid importance value.*at position 2"):
        read_imatrix([dat(tmp_path / "m.dat", {"t": (1, [1, 2, value])})]).rows("t", (1, 3))
    with pytest.raises(InputError, match=rf"count\.gguf: {GATE}\.counts: holds an invalid count"):
        read_imatrix([peer_gguf(tmp_path / "count.gguf", {GATE: entry([1], counts=[value])})])


def test_sums_that_overflow_when_merged_are_refused(tmp_path: Path) -> None:
    paths = [dat(tmp_path / f"{i}.dat", {"t": (1, [3e38])}) for i in range(2)]
    with pytest.raises(InputError, match="merged importance"):
        read_imatrix(paths).rows("t", (1, 1))
    with pytest.raises(InputError, match="t: holds an invalid importance value"):
        read_imatrix([paths[0], peer_gguf(tmp_path / "m.gguf", {"a": entry([1], counts=[1])})]).rows("t", (1, 1))


def test_a_wrong_number_of_values_is_refused(tmp_path: Path) -> None:
    matrix = read_imatrix([dat(tmp_path / "m.dat", {GATE: (1, [1] * 8)})])
    with pytest.raises(InputError, match=rf"m\.dat: {GATE}: .*expected 4 rows of 3 values, found 8 values"):
        matrix.rows(GATE, (4, 2, 3))


@pytest.mark.parametrize(
    "second", [entry([1, 1, 1], counts=[1]), entry([1], [1], [1], [1], counts=[1] * 4)], ids=["values", "counts"]
)
def test_files_of_different_models_are_not_merged(tmp_path: Path, second: tuple[Any, Any]) -> None:
    paths = [
        peer_gguf(tmp_path / "1.gguf", {GATE: entry([1, 1], [1, 1], counts=[1, 1])}),
        peer_gguf(tmp_path / "2.gguf", {GATE: second}),
    ]
    for order in (paths, paths[::-1]):
        with pytest.raises(InputError, match=rf"{GATE}: .*merged differ in size.*2\.gguf"):
            read_imatrix(order)


def test_requests_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    path = dat(tmp_path / "m.dat", {"t": (1, [1])})
    with pytest.raises(InputError, match="not both"):
        read_imatrix([path], include=["a"], exclude=["b"])
    with pytest.raises(InputError, match="no importance file"):
        read_imatrix([])
    with pytest.raises(InputError, match="directory"):
        read_imatrix([tmp_path])
    with pytest.raises(InputError, match="No such file"):
        read_imatrix([tmp_path / "absent.dat"])


ONE_ENTRY = dat_entry(b"tensor", 1, [1, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends too early"),
        (b"\1\0", "ends too early"),
        (struct.pack("<i", 0) + ONE_ENTRY, "impossible number of entries"),
        (struct.pack("<i", -1) + ONE_ENTRY, "impossible number of entries"),
        (struct.pack("<i", 2**31 - 1) + ONE_ENTRY, "impossible number of entries"),
        (struct.pack("<i", 2) + ONE_ENTRY * 2, "tensor: occurs twice"),
        (struct.pack("<ii", 1, -5) + b"x" * 40, "entry 1: has an impossible length of a name"),
        (struct.pack("<ii", 1, 2**30) + b"x" * 40, "entry 1: has an impossible length of a name"),
        (struct.pack("<i", 1) + dat_entry(b"tensor", -1, [1]), "tensor: has an impossible number of calls"),
        (struct.pack("<ii6sii4s", 1, 6, b"tensor", 1, 2**31 - 1, b""), "tensor: has an impossible number of values"),
        (struct.pack("<ii6sii4s", 1, 6, b"tensor", 1, 0, b""), "tensor: has an impossible number of values"),
        (struct.pack("<i", 1) + ONE_ENTRY + struct.pack("<i", -3), "impossible number of chunks"),
        (struct.pack("<i", 1) + ONE_ENTRY + struct.pack("<ii", 3, 9), "impossible length of the dataset's name"),
        (b"This is a text and no matrix at all.", "impossible number of entries.*not an importance matrix"),
    ],
)
def test_a_damaged_dat_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"m\.dat: .*{words}"):
        read_imatrix([path])


def test_every_truncation_of_a_dat_file_is_refused(tmp_path: Path) -> None:
    whole = dat(tmp_path / "m.dat", {"a": (1, [1, 2]), "bc": (3, [4])}).read_bytes()
    cut = tmp_path / "cut.dat"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.dat"):
            read_imatrix([cut])


ONES = {"t.in_sum2": np.ones((1, 3), np.float32), "t.counts": np.ones((1, 1), np.float32)}


@pytest.mark.parametrize(
    ("values", "tensors", "words"),
    [
        ({}, {"t.in_sum2": ONES["t.in_sum2"]}, "t: has sums without counts"),
        ({}, {"t.counts": ONES["t.counts"]}, "is a GGUF file, but not an importance matrix"),
        ({"general.type": ("add_string", "model")}, ONES, "is a GGUF file, but not an importance matrix"),
        ({"imatrix.chunk_count": ("add_string", "x")}, ONES, "has no count under 'imatrix.chunk_count'"),
        ({"imatrix.chunk_size": ("add_int32", -1)}, ONES, "has no count under 'imatrix.chunk_size'"),
        ({"imatrix.chunk_size": ("add_uint64", 2**40)}, ONES, "has no count under 'imatrix.chunk_size'"),
        ({"imatrix.datasets": ("add_string", "x")}, ONES, "has no list of names under 'imatrix.datasets'"),
        ({"imatrix.datasets": ("add_array", [1, 2])}, ONES, "has no list of names under 'imatrix.datasets'"),
        (
            {},
            ONES | {"t.in_sum2": np.ones((1, 3), np.float16)},
            r"t\.in_sum2: has another type .*expected F32, found F16",
        ),
        ({}, ONES | {"t.counts": np.ones((2, 1), np.float32)}, "t: has sums that are not the same number for every"),
    ],
)
def test_a_damaged_gguf_matrix_is_refused_in_a_sentence(
    tmp_path: Path, values: dict[str, tuple[str, Any]], tensors: dict[str, NDArray[Any]], words: str
) -> None:
    with pytest.raises(InputError, match=rf"m\.gguf: {words}"):
        read_imatrix([gguf_file(tmp_path / "m.gguf", values, tensors)])


def test_a_gguf_matrix_needs_no_more_than_its_sums_and_counts(tmp_path: Path) -> None:
    matrix = read_imatrix([gguf_file(tmp_path / "m.gguf", {}, ONES)])
    assert (matrix.datasets, matrix.chunk_count, matrix.names) == ((), 0, ("t",))


@given(st.data())
@IN_TMP_PATH
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        path = peer_gguf(tmp_path / "m.gguf", {"t": entry([1, 2], counts=[1])})
    else:
        path = dat(tmp_path / "m.dat", {"t": (1, [1, 2]), "u": (1, [1])}, struct.pack("<ii1s", 1, 1, b"d"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        matrix = read_imatrix([path])
        matrix.check(dict.fromkeys(matrix.names, (1, 2)))
        matrix.metadata()
    except InputError as error:
        assert str(error).endswith(".")
