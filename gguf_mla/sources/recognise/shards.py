"""Which files of a folder hold the weights: those that the index names, a single one, or a complete numbered set.

Tools leave more than one: a model that was saved again in one file or in fewer shards, an index of files that are gone,
shards without an index. What the names prove is read; of two readings neither is, until the user says which.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.files.bounds import SHARDS, named
from gguf_mla.sources.recognise.other_forms import no_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.folder import Folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ENDING = ".safetensors"
FOLDERS = 256  # that shards lie in; each is listed
_NUMBER = re.compile(r"\d+")
_NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})\.safetensors")


class Found(NamedTuple):
    """The files that hold the weights: `files` by name, `placed` what an index says, tensor to shard, and notes.

    A shard in `placed` that is not among `files` is missing.
    """

    files: tuple[str, ...]
    placed: Mapping[str, str]
    notes: tuple[str, ...] = ()


def find(folder: Folder, names: list[str], pattern: str | None = None) -> Found:
    """Return the files of the weights; `pattern` is what the user has chosen. InputError where nothing decides."""
    weights = [name for name in names if name.endswith(ENDING) and not name.startswith("adapter_")]
    if pattern is not None:
        return _chosen(folder, weights, pattern)
    if INDEX in names:
        return _indexed(folder, names, weights)
    return _proven(folder, names, weights)


def _chosen(folder: Folder, weights: list[str], pattern: str) -> Found:
    found = [name for name in weights if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        there = named(weights) or "none"
        raise InputError(f"--weights {pattern!r:.80} names no .safetensors file", file=folder.path, found=there)
    if incomplete := _incomplete(found):
        raise _missing(folder, incomplete)
    return Found(tuple(found), {}, (f"weights: read from {named(found)}, as --weights says.",))


def _indexed(folder: Folder, names: list[str], weights: list[str]) -> Found:
    placed = _weight_map(folder)
    shards = sorted(set(placed.values()))
    present = _present(folder, names, shards)
    others = _complete(folder, weights, set(shards))
    if len(others) > 1:
        raise _two_readings(folder, others)
    if others and not present:
        _check_alone(folder, weights, others[0])
    if not others or (present and others != [(SINGLE,)]):
        return Found(tuple(present), placed)  # a numbered set beside the index is older: saving writes the index last
    [other] = others
    if present:
        raise _two_readings(folder, [tuple(present), other])
    note = (
        f"index: {INDEX} names {len(shards)} files, none of which is there; the weights are read from {named(other)}."
    )
    return Found(other, {}, (note,))


def _weight_map(folder: Folder) -> dict[str, str]:
    index = folder.path / INDEX
    weight_map = folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = type(weight_map).__name__
        raise InputError("has no weight_map", file=index, expected="an object from tensor to shard", found=found)
    known: set[str] = set()
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or (shard not in known and not _is_inside(shard)):
            raise InputError(
                "names a shard outside the directory",
                file=index,
                tensor=name,
                expected="a file in it",
                found=repr(shard),
            )
        known.add(shard)
        if len(known) > SHARDS:
            raise InputError("names more shards than any model has", file=index, expected=f"at most {SHARDS}")
    return weight_map


def _is_inside(shard: str) -> bool:
    """Whether a name is that of a file in the directory, or in a directory in it; "" is one that cannot be there."""
    return "\\" not in shard and (not shard or not {"", ".", ".."} & set(shard.split("/")))


def _present(folder: Folder, names: list[str], shards: list[str]) -> list[str]:
    there = set(names)
    folders = dict.fromkeys(shard.rpartition("/")[0] for shard in shards)
    if len(folders) > FOLDERS:
        what = "names more directories than any model has"
        raise InputError(what, file=folder.path / INDEX, expected=f"at most {FOLDERS}", found=len(folders))
    for under in folders:
        if under and "\0" not in under:
            there.update(folder.names(under))
    return [shard for shard in shards if shard in there]


def _proven(folder: Folder, names: list[str], weights: list[str]) -> Found:
    sets = _complete(folder, weights, set())
    if len(sets) > 1:
        raise _two_readings(folder, sets)
    if sets:
        _check_alone(folder, weights, sets[0])
    if sets == [(SINGLE,)]:
        return Found((SINGLE,), {})
    if sets:
        what = f"{named(sets[0], 2)} are read, a complete set by their numbers"
        return Found(sets[0], {}, (f"index: {INDEX} is missing; {what}.",))
    if incomplete := _incomplete(weights):
        raise _missing(folder, incomplete)
    if len(weights) == 1:
        return Found(tuple(weights), {}, (f"weights: read from {weights[0]}, the only .safetensors file there is.",))
    if weights:
        raise InputError(
            "the index of the shards is missing, and their names do not show that they are complete",
            file=folder.path / INDEX,
            found=f"{len(weights)} .safetensors files and no index: {named(weights, 5)}",
            expected=f"{INDEX}, {SINGLE}, or NAME-00001-of-00009.safetensors and so on",
            remedy="If all of them are there and belong together, name them: --weights 'PATTERN'",
        )
    raise no_weights(folder, names)


def _check_alone(folder: Folder, weights: list[str], files: tuple[str, ...]) -> None:
    """Refuse other files with weights beside a complete set: they may be newer, a part of a set that is not there."""
    if others := [name for name in weights if name not in files]:
        raise _two_readings(folder, [files, tuple(others)])


def _complete(folder: Folder, weights: list[str], known: set[str]) -> list[tuple[str, ...]]:
    """Return every set of files that its names prove to be complete, without those that `known` has a file of."""
    found: list[tuple[str, ...]] = [(SINGLE,)] if SINGLE in weights else []
    for (stem, total), numbers in _sets(folder, weights).items():
        if total == len(numbers) and stem is not None:
            found.append(tuple(numbers[number] for number in sorted(numbers)))
    return [files for files in found if not known.intersection(files)]


def _sets(folder: Folder | None, weights: list[str]) -> dict[tuple[str, int], dict[int, str]]:
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for name in weights:
        if found := _NUMBERED.fullmatch(name):
            number, total = int(found[2]), int(found[3])
            if 1 <= number <= total <= SHARDS:
                numbers = sets.setdefault((found[1], total), {})
                if folder is not None and number in numbers:
                    both = f"{numbers[number]} and {name}"
                    raise InputError("two shards have the same number", file=folder.path, found=both)
                numbers[number] = name
    return sets


def _incomplete(weights: list[str]) -> list[str]:
    """Return what the first incomplete set of numbered files lacks, named as its other files are."""
    for (_, total), numbers in _sets(None, weights).items():
        if len(numbers) < total:
            like = next(iter(numbers.values()))
            return [_numbered_like(like, number) for number in range(1, total + 1) if number not in numbers]
    return []


def _numbered_like(name: str, number: int) -> str:
    found = _NUMBERED.fullmatch(name)
    assert found is not None  # noqa: S101 - only such names are among the sets
    return f"{found[1]}-{number:0{len(found[2])}d}-of-{found[3]}{ENDING}"


def _missing(folder: Folder, missing: list[str]) -> InputError:
    what = f"shards are missing: {named(missing)}"
    return InputError(what, file=folder.path, remedy="Download them")


def _two_readings(folder: Folder, sets: list[tuple[str, ...]]) -> InputError:
    [one, other] = [named(files, 2) for files in sets[:2]]
    patterns = " or ".join(f"--weights '{_pattern(files)}'" for files in sets[:2])
    return InputError(
        f"the weights are there twice, or a part of others is: {one}, and {other}",
        file=folder.path,
        remedy=f"Remove the older ones, or say which are meant: {patterns}",
    )


def _pattern(files: tuple[str, ...]) -> str:
    """Return a pattern for some files: a numbered set with its total, else the first name with any number."""
    found = _NUMBERED.fullmatch(files[0])
    if found is not None:
        return f"{found[1]}-*-of-{found[3]}{ENDING}"
    return files[0] if len(files) == 1 else _NUMBER.sub("*", files[0])
