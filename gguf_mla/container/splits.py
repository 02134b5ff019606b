"""GGUF files split into parts NAME-00001-of-00005.gguf: one view of all of them, and how a model is cut into parts.

Every part is a GGUF file of its own. The first carries the model's metadata, the others only three keys: `split.no`
(u16, from 0), `split.count` (u16) and `split.tensors.count` (i32, tensors of all parts together). Source: llama.cpp's
gguf-split, whose output is the same byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeVar

from gguf_mla.container.reader import GgufFile, GgufTensor, open_gguf
from gguf_mla.container.values import Kind, Value
from gguf_mla.container.writer import ALIGNMENT
from gguf_mla.errors import InputError
from gguf_mla.files.bounds import bounded, named
from gguf_mla.files.readable import any_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gguf_mla.container.writer import TensorSpec
    from gguf_mla.files.readable import AnyPath

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})
MAX_PARTS = 2**16 - 1  # split.count is a u16
MAX_TENSORS = 2**31 - 1  # split.tensors.count is an i32
P = TypeVar("P", bound=PurePath)
_PART_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class GgufParts(GgufFile):
    """All parts of a model as one file.

    `path` and `version` are the first part's, `size` is the sum; `values` is the first part's metadata without the
    split keys, `tensors` those of all parts in order; `files` are the parts themselves, one for a file that is whole.
    """

    files: tuple[GgufFile, ...]


def open_gguf_parts(path: PurePath | str) -> GgufParts:
    """Open a GGUF file together with its other parts; `path` names a whole file or the first part.

    Raises InputError, naming the part, when one is missing, belongs to another model or is not where its name says.
    """
    path = any_path(path)
    return with_others(open_gguf(path), path)


def with_others(first: GgufFile, path: AnyPath) -> GgufParts:
    """Open the other parts of a file that is open; `path` is where it was found. The same errors."""
    files = (first, *_others(first, path)) if is_split(first) else (first,)
    values = {key: value for key, value in first.values.items() if key not in SPLIT_KEYS}
    size = sum(file.size for file in files)
    return GgufParts(first.path, first.version, size, first.alignment, values, _united(files), files)


def part_paths(path: P, count: int) -> list[P]:
    """Return the names of `count` parts of an output; `path` is NAME.gguf, NAME or the name of such a part."""
    return [path.with_name(f"{model_name(path)}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def model_name(path: PurePath) -> str:
    """Return what the model in a file is called: the file's name without .gguf and the number of a part."""
    named = _PART_NAME.fullmatch(path.name)
    return named["prefix"] if named else path.name.removesuffix(".gguf")


def part_metadata(metadata: Mapping[str, Value], number: int, count: int, tensors: int) -> dict[str, Value]:
    """Return what part `number` (from 0) of `count` carries; `tensors` counts those of all parts."""
    if count > MAX_PARTS:
        raise InputError(
            "the model would be cut into too many parts",
            expected=f"at most {MAX_PARTS}",
            found=count,
            remedy="Allow larger parts",
        )
    kept = {key: value for key, value in metadata.items() if key not in SPLIT_KEYS} if number == 0 else {}
    return kept | {
        SPLIT_NO: Value(Kind.U16, number),
        SPLIT_TENSORS: Value(Kind.I32, tensors),
        SPLIT_COUNT: Value(Kind.U16, count),
    }


def groups_by_size(specs: Sequence[TensorSpec], max_bytes: int) -> list[slice]:
    """Cut a list of tensors, in order, into parts of at most `max_bytes` of padded data; metadata is not counted.

    A tensor that is larger by itself gets a part of its own (gguf-split refuses that only for the very first).
    """
    starts, filled = [0], 0
    for index, spec in enumerate(specs):
        nbytes = -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        if index and filled + nbytes > max_bytes:
            starts.append(index)
            filled = 0
        filled += nbytes
    return _slices(starts, len(specs))


def groups_by_count(specs: Sequence[TensorSpec], max_tensors: int) -> list[slice]:
    """Cut a list of tensors, in order, into parts of `max_tensors` tensors."""
    if max_tensors < 1:
        raise InputError("a part cannot hold so few tensors", expected="1 or more", found=max_tensors)
    return _slices(list(range(0, len(specs), max_tensors)) or [0], len(specs))


def _slices(starts: Sequence[int], end: int) -> list[slice]:
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def is_split(file: GgufFile) -> bool:
    """Whether a file says that it is a part of a split model."""
    # gguf-split leaves a count of 0 in the file that it merges.
    return SPLIT_COUNT in file.values and _number(file, SPLIT_COUNT) > 1


def _others(first: GgufFile, path: AnyPath) -> list[GgufFile]:
    """Open parts 2 and up, and check that they and the first belong together."""
    count = _number(first, SPLIT_COUNT)
    paths = _expected_paths(first, path, count)
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise InputError(
            f"parts of this model are missing: {named(missing, 4)}",
            file=path,
            expected=f"{count} parts",
            found=count - len(missing),
            remedy="Put all parts into one directory",
        )
    others = [_part(first, part, number) for number, part in enumerate(paths[1:], 1)]
    _check_total(first, [first, *others])
    return others


def _expected_paths(first: GgufFile, path: AnyPath, count: int) -> list[AnyPath]:
    paths = part_paths(path, count)
    number = _number(first, SPLIT_NO)
    if number != 0:
        raise InputError(
            f"this is part {number + 1} of a split model",
            file=path,
            remedy=f"Name the first part, {paths[0].name}",
        )
    if path.name != paths[0].name:
        raise InputError(
            "is the first part of a split model, but its name does not say so",
            file=path,
            expected=f"a name that ends in -00001-of-{count:05}.gguf",
            found=path.name,
            remedy="Rename all parts as they were named when the model was split",
        )
    return paths


def _part(first: GgufFile, path: AnyPath, number: int) -> GgufFile:
    part = open_gguf(path)
    for key, expected in ((SPLIT_NO, number), *((key, _number(first, key)) for key in (SPLIT_COUNT, SPLIT_TENSORS))):
        found = _number(part, key)
        if found != expected:
            raise _foreign(part, first, f"{key} {expected}", found)
    architectures = [file.metadata.get("general.architecture") for file in (first, part)]
    if architectures[1] not in (None, architectures[0]):
        raise _foreign(part, first, f"architecture {architectures[0]}", architectures[1])
    return part


def _foreign(part: GgufFile, first: GgufFile, expected: str, found: object) -> InputError:
    return InputError(
        f"is not the part of {first.path.name} that its name says",
        file=part.path,
        expected=expected,
        found=found,
        remedy="Parts of two models lie in one place: put those of one model together",
    )


def _check_total(first: GgufFile, files: Sequence[GgufFile]) -> None:
    expected, found = _number(first, SPLIT_TENSORS), sum(len(file.tensors) for file in files)
    if found != expected:
        raise InputError(
            "the parts do not hold as many tensors as the first says, one of them belongs to another model",
            file=first.path,
            expected=expected,
            found=found,
        )


def _number(file: GgufFile, key: str) -> int:
    value = file.values.get(key)
    data = None if value is None else value.data
    if isinstance(data, bool) or not isinstance(data, int):
        raise InputError(f"has no number under {key!r}, which every part of a split model has", file=file.path)
    return bounded(data, MAX_TENSORS if key == SPLIT_TENSORS else MAX_PARTS, key, file=file.path)


def _united(files: Sequence[GgufFile]) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise InputError(f"occurs in {tensors[name].file.path.name} too", file=file.path, tensor=name)
            tensors[name] = tensor
    return tensors
