"""Lists in the metadata of a file: they stay as they lie in it until somebody looks at them."""

from __future__ import annotations

import itertools
import struct
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from gguf_mla.errors import InputError

if TYPE_CHECKING:
    from pathlib import PurePath

Item = TypeVar("Item")
_LENGTH = struct.Struct("<Q")


class _List(Sequence[Item]):
    """`count` items that begin at `start` of the head of a file, decoded together once more than a few are wanted."""

    def __init__(self, head: bytearray, start: int, count: int) -> None:
        self._head, self._start, self._count = head, start, count
        self._items: list[Item] | None = None

    @abstractmethod
    def _decode(self, count: int) -> list[Item]:
        """Return the first `count` items."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice) and index.start is None and index.step is None and self._items is None:
            return self._decode(len(range(self._count)[index]))
        return self._decoded()[index]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._decoded())

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # a sequence with value equality

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, itertools.islice(self[:6], 6)))
        return f"[{shown}{', ...' if self._count > 6 else ''}]"

    def _decoded(self) -> list[Item]:
        if self._items is None:
            self._items = self._decode(self._count)
        return self._items


class Strings(_List[str]):
    """A list of texts; the file is named where one is not UTF-8."""

    def __init__(self, head: bytearray, start: int, count: int, path: PurePath) -> None:
        super().__init__(head, start, count)
        self._path = path

    def _decode(self, count: int) -> list[str]:
        head, at, items, unpack = self._head, self._start, [], _LENGTH.unpack_from
        for _ in range(count):
            begin = at + 8
            at = begin + unpack(head, at)[0]
            try:
                items.append(head[begin:at].decode())
            except UnicodeDecodeError:
                raise not_text(head[begin:at], self._path) from None
        return items


class Numbers(_List[Any]):
    """A list of numbers or truth values, all of the numpy type `dtype`."""

    def __init__(self, head: bytearray, start: int, count: int, dtype: np.dtype[Any]) -> None:
        super().__init__(head, start, count)
        self._dtype = dtype

    def _decode(self, count: int) -> list[Any]:
        stop = self._start + count * self._dtype.itemsize
        items: list[Any] = np.frombuffer(self._head[self._start : stop], self._dtype).tolist()
        return items


def not_text(data: bytes | bytearray, path: PurePath) -> InputError:
    """Return the error for a string that is not text."""
    return InputError(f"holds a string that is not UTF-8: {bytes(data[:40])!r}", file=path)
