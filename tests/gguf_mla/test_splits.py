"""Split GGUF files: parts that belong together open as one model, others are refused; cut as gguf-split does it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_mla import units
from gguf_mla.container import splits
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.splits import open_gguf_parts, part_metadata, part_paths
from gguf_mla.container.values import Kind, Value, string, u32
from gguf_mla.container.writer import TensorSpec, lay_out
from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

METADATA = {"general.architecture": string("deepseek2"), "a": u32(1)}
SPECS = [TensorSpec(f"t{i}", (2, 8), "F32") for i in range(5)]
GROUPS = [slice(0, 2), slice(2, 4), slice(4, 5)]
SIZES = st.lists(st.integers(1, 40).map(lambda cols: TensorSpec("t", (1, cols), "F32")), max_size=30)


def write(path: Path, metadata: dict[str, Value], specs: Sequence[TensorSpec], fill: int = 0) -> Path:
    layout = lay_out(metadata, specs)
    path.write_bytes(layout.head.ljust(layout.size, bytes([fill])))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Five tensors of a model in three parts; the bytes of a tensor are its part's number."""
    paths = part_paths(tmp_path / "model.gguf", 3)
    for number, (path, group) in enumerate(zip(paths, GROUPS, strict=True)):
        write(path, part_metadata(METADATA, number, 3, 5), SPECS[group], number)
    return paths


def rewrite(path: Path, *, specs: Sequence[TensorSpec] | None = None, **changes: Value | None) -> None:
    """Change a part's metadata (None removes a key; dots are written __) or its tensors."""
    file = open_gguf(path)
    values = dict(file.values) | {key.replace("__", "."): value for key, value in changes.items() if value}
    values = {key: value for key, value in values.items() if changes.get(key.replace(".", "__"), value)}
    kept = [TensorSpec(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
    write(path, values, kept if specs is None else specs)


def test_the_parts_are_one_model(parts: list[Path]) -> None:
    model = open_gguf_parts(parts[0])
    assert dict(model.values) == METADATA
    assert list(model.tensors) == [spec.name for spec in SPECS]
    assert [int(tensor.read()[0, 0]) for tensor in model.tensors.values()] == [0, 0, 1, 1, 2]
    assert [file.path for file in model.files] == parts
    assert model.size == sum(path.stat().st_size for path in parts)


def test_a_file_that_is_whole_is_a_model_of_one_part(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.gguf", METADATA, SPECS)
    model = open_gguf_parts(str(path))
    assert (dict(model.values), list(model.tensors)) == (METADATA, [spec.name for spec in SPECS])
    assert [file.path for file in model.files] == [path]


def test_what_gguf_split_leaves_in_a_merged_file_is_ignored(tmp_path: Path) -> None:
    left = {"split.no": Value(Kind.U16, 0), "split.count": Value(Kind.U16, 0)}
    assert dict(open_gguf_parts(write(tmp_path / "merged.gguf", METADATA | left, SPECS)).values) == METADATA


def test_parts_of_ggufs_own_writer_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "deepseek2", split_max_tensors=2)
    for spec in SPECS:
        writer.add_tensor(spec.name, np.zeros(spec.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_gguf_parts(tmp_path / "theirs-00001-of-00003.gguf")
    assert dict(model.metadata) == {"general.architecture": "deepseek2"}
    assert list(model.tensors) == [spec.name for spec in SPECS]
    for number, file in enumerate(model.files):
        written = part_metadata({}, number, 3, len(SPECS))
        assert {key: file.values[key] for key in written} == written


def test_the_metadata_of_a_part_has_gguf_splits_types_and_order(parts: list[Path]) -> None:
    assert list(open_gguf(parts[0]).values) == [*METADATA, "split.no", "split.tensors.count", "split.count"]
    assert list(open_gguf(parts[1]).values.items()) == [
        ("split.no", Value(Kind.U16, 1)),
        ("split.tensors.count", Value(Kind.I32, 5)),
        ("split.count", Value(Kind.U16, 3)),
    ]
    again = part_metadata(open_gguf(parts[0]).values, 0, 4, 9)
    assert again["split.count"] == Value(Kind.U16, 4)
    with pytest.raises(InputError, match="too many parts"):
        part_metadata({}, 0, 70_000, 80_000)


@pytest.mark.parametrize("name", ["V3.1-Q4_K.gguf", "V3.1-Q4_K", "V3.1-Q4_K-00003-of-00007.gguf"])
def test_parts_are_named_after_the_output(tmp_path: Path, name: str) -> None:
    assert [path.name for path in part_paths(tmp_path / name, 2)] == [
        "V3.1-Q4_K-00001-of-00002.gguf",
        "V3.1-Q4_K-00002-of-00002.gguf",
    ]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda parts: parts[1].unlink(), r"parts.*missing: model-00002-of-00003\.gguf.*expected 3 parts, found 2"),
        (lambda parts: cut(parts[2]), r"model-00003-of-00003\.gguf: t4: the file ends too early"),
        (lambda parts: parts[2].write_bytes(parts[1].read_bytes()), r"00003\.gguf: .*expected split\.no 2, found 1"),
        (
            lambda parts: rewrite(parts[1], split__count=Value(Kind.U16, 4)),
            r"00002-of-00003\.gguf: is not the part of model-00001-of-00003\.gguf .*expected split\.count 3, found 4",
        ),
        (
            lambda parts: rewrite(parts[2], split__tensors__count=Value(Kind.I32, 6)),
            r"00003-of-00003\.gguf: .*expected split\.tensors\.count 5, found 6",
        ),
        (
            lambda parts: rewrite(parts[1], general__architecture=string("llama")),
            r"00002-of-00003\.gguf: .*expected architecture deepseek2, found llama",
        ),
        (lambda parts: rewrite(parts[1], split__no=None), r"00002-of-00003\.gguf: has no number under 'split\.no'"),
        (
            lambda parts: rewrite(parts[0], split__tensors__count=string("5")),
            r"00001-of-00003\.gguf: has no number under 'split\.tensors\.count'",
        ),
        (
            lambda parts: rewrite(parts[1], specs=[SPECS[2], TensorSpec("t0", (2, 8), "F32")]),
            r"00002-of-00003\.gguf: t0: occurs in model-00001-of-00003\.gguf too",
        ),
        (
            lambda parts: rewrite(parts[1], specs=SPECS[2:3]),
            "another model .*expected 5, found 4",
        ),
        (
            lambda parts: rewrite(parts[0], split__count=Value(Kind.U16, 2)),
            r"name does not say so .*ends in -00001-of-00002\.gguf",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    parts: list[Path], damage: Callable[[list[Path]], object], words: str
) -> None:
    damage(parts)
    with pytest.raises(InputError, match=words):
        open_gguf_parts(parts[0])


def test_another_part_than_the_first_says_which_to_name(parts: list[Path]) -> None:
    with pytest.raises(InputError, match=r"this is part 2 .*Name the first part, model-00001-of-00003\.gguf"):
        open_gguf_parts(parts[1])


def test_many_missing_parts_are_counted(tmp_path: Path) -> None:
    path = write(part_paths(tmp_path / "m", 9)[0], part_metadata(METADATA, 0, 9, 5), SPECS)
    with pytest.raises(InputError, match=r"m-00005-of-00009\.gguf and 4 more"):
        open_gguf_parts(path)


@given(SIZES, st.integers(1, 600))
def test_a_part_is_as_full_as_the_limit_allows(specs: list[TensorSpec], limit: int) -> None:
    groups = splits.groups_by_size(specs, limit)
    padded = [-(-spec.nbytes // 32) * 32 for spec in specs]
    sizes = [padded[group] for group in groups]
    assert list(itertools.chain(*sizes)) == padded
    assert all(sum(part) <= limit or len(part) == 1 for part in sizes)
    assert all(sum(part) + following[0] > limit for part, following in itertools.pairwise(sizes))
    assert len(groups) >= 1
    assert not specs or all(sizes)


@given(SIZES, st.integers(1, 40))
def test_a_part_has_as_many_tensors_as_asked(specs: list[TensorSpec], limit: int) -> None:
    counts = [len(specs[group]) for group in splits.groups_by_count(specs, limit)]
    assert sum(counts) == len(specs)
    assert all(count == limit for count in counts[:-1])
    assert counts[-1] <= limit


def test_a_part_holds_at_least_one_tensor() -> None:
    with pytest.raises(InputError, match="1 or more, found 0"):
        splits.groups_by_count(SPECS, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("48G", 48_000_000_000), ("500M", 500_000_000), ("64k", 64_000), ("4096", 4096), (" 1g ", 10**9),
     ("8GB", 8 * 10**9), ("8GiB", 8 << 30), ("1T", 10**12), ("2tib", 2 << 40), ("7.5G", 7_500_000_000),
     ("0.1k", 100), ("1 GB", 10**9), ("12B", 12)],
)  # fmt: skip
def test_sizes_are_decimal_unless_they_say_otherwise(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "0", "0G", "-1G", "1,5G", "1P", "1Gi", "1 G B", "0.1", "1e9", "٣G", "9" * 40]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a size"):
        units.parse_size(text)
