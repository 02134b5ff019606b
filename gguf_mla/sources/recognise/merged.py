"""The tensors of all shards under one roof: what lies in two of them, and what the index places where it is not.

Merging tools copy a tensor into two shards; casting scripts write shards and keep the old index, which then lists
scales that are gone. The index decides which copy counts; a copy without an index must be the same.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from gguf_mla.errors import InputError
from gguf_mla.sources.recognise.compare import same
from gguf_mla.sources.recognise.leftovers import reason_of
from gguf_mla.sources.recognise.quantization import scale_of
from gguf_mla.sources.recognise.reading import examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gguf_mla.sources.safetensors import StoredTensor

    Shards = Mapping[str, Mapping[str, StoredTensor]]


class Merged(NamedTuple):
    """The tensors of all shards by name, those that an index places in a shard that is missing, and notes."""

    stored: dict[str, StoredTensor]
    absent: dict[str, str]
    notes: tuple[str, ...]


def merge(shards: Shards, placed: Mapping[str, str]) -> Merged:
    """Merge the tensors of the shards, by file name, under the index; InputError for copies that nothing decides."""
    stored: dict[str, StoredTensor] = {}
    equal: list[str] = []
    others: list[str] = []
    for shard, found in shards.items():
        for name, tensor in found.items():
            held = stored.get(name)
            if held is None:
                stored[name] = tensor
                continue
            is_equal = same(held, tensor)
            if placed.get(name) == shard:
                stored[name] = tensor
            elif not is_equal and placed.get(name) not in shards:
                raise _differing(held, tensor)
            (equal if is_equal else others).append(name)
    lost = [name for name, shard in placed.items() if shard in shards and name not in shards[shard]]
    gone, left = _sorted_out(lost, stored, placed)
    absent = {name: shard for name, shard in placed.items() if shard not in shards}
    return Merged(stored, absent | gone, (*_copies(equal, others), *left))


def _sorted_out(
    lost: list[str], stored: Mapping[str, StoredTensor], placed: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what the index promises in vain, but for what nobody needs, and a note on the latter."""
    gone, needless = {}, []
    for name in lost:
        if name not in stored and (scale_of(name, stored) is not None or reason_of(name) is not None):
            needless.append(name)
        else:
            gone[name] = placed[name]
    if not needless:
        return gone, ()
    note = (
        f"index: it lists {len(needless)} tensors that are in no shard and that nothing needs, such as scales of "
        f"weights that are plain floats: {examples(needless)}."
    )
    return gone, (note,)


def _copies(equal: list[str], others: list[str]) -> tuple[str, ...]:
    notes = []
    if equal:
        notes.append(f"copies: {len(equal)} tensors are in two shards, with the same bytes: {examples(equal)}.")
    if others:
        notes.append(
            f"copies: {len(others)} tensors are in two shards with different bytes; those that the index names are "
            f"read: {examples(others)}."
        )
    return tuple(notes)


def _differing(held: StoredTensor, other: StoredTensor) -> InputError:
    return InputError(
        f"is also in {PurePath(held.file.name).name}, with other bytes, and no index says which counts",
        file=other.file.name,
        tensor=other.name,
        expected="one copy",
        found="two",
        remedy="Remove the shard that is not meant, or name the right ones with --weights",
    )
