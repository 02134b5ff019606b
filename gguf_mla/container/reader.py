"""Open a GGUF file without trusting it.

Every count, length, offset and type is checked against the file's size, and against what any model has, before
anything is allocated. Long lists (a vocabulary) are only walked when the file is opened and decoded when somebody looks
at them. The head is read, not mapped: a file that is cut off meanwhile then fails with a sentence.
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gguf_mla import ggtypes, units
from gguf_mla.container.lists import Numbers, Strings, not_text
from gguf_mla.container.pieces import LFS, joined, not_whole
from gguf_mla.container.values import STRUCT_CODES, Kind, Value
from gguf_mla.container.view import Tensor
from gguf_mla.container.writer import MAGIC, MAX_ENTRIES, MAX_HEAD, MAX_ITEMS, Foreign, alignment_of
from gguf_mla.errors import InputError
from gguf_mla.files import bounds, impostors
from gguf_mla.files.input import open_input
from gguf_mla.files.readable import any_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import PurePath

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath, Readable
    from gguf_mla.ggtypes.tensor_type import TensorType

    _Info = tuple[str, tuple[int, ...], TensorType | int, int]

MAX_DIMS = 4
FOREIGN_TYPES = 1 << 10  # numbers above are damage
FIRST_READ = 1 << 16  # bytes; then twice as many each time
SHORT_LIST = 256  # items of a list of numbers that is decoded at once
_LENGTH = struct.Struct("<Q")
_SCALARS = {code: struct.Struct("<" + code) for code in {"I", "Q", *STRUCT_CODES.values()}}
_DIMS = [struct.Struct(f"<{count}QIQ") for count in range(MAX_DIMS + 1)]  # with type and offset
_SHORTEST_ENTRY = 8 + 4 + 1  # a metadata entry: name length, type, one byte of content
_SHORTEST_INFO = 8 + 4 + 8 + 4 + 8  # a tensor info: name length, dimension count, one dimension, type, offset


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of an open GGUF file; `shape` has the slowest dimension first, as numpy has it."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    file: Readable = field(repr=False, compare=False)
    foreign: Foreign | None = None

    @property
    def rows(self) -> int:
        """How many rows of `shape[-1]` values there are."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """How many bytes one encoded row takes; InputError for a foreign type."""
        if self.foreign is not None:
            raise self._undecodable()
        return ggtypes.by_name(self.type).row_bytes(self.shape[-1])

    def _undecodable(self) -> InputError:
        return InputError(
            f"is of {self.type}, which only the program that made it can decode",
            file=self.file.name,
            tensor=self.name,
            expected="a type of ggml",
            found=self.type,
            remedy="Copying, splitting and merging move its bytes; for anything else take the file it was made from",
        )

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the encoded rows `start:stop` as uint8 [rows, row_bytes]; all leading dimensions count as rows."""
        first, last, _ = slice(start, stop).indices(self.rows)
        count = max(0, last - first)
        data = self.file.read(self.offset + first * self.row_bytes, count * self.row_bytes)
        return data.reshape(count, self.row_bytes)

    def will_read(self, start: int, stop: int) -> None:
        """Ask the OS to fetch rows `start:stop` in the background."""
        self.file.will_read(self.offset + start * self.row_bytes, (stop - start) * self.row_bytes)

    def was_read(self, start: int, stop: int) -> None:
        """Let the OS forget rows `start:stop`."""
        self.file.was_read(self.offset + start * self.row_bytes, (stop - start) * self.row_bytes)

    def decoded(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return the values of rows `start:stop` as float32 [rows, cols]."""
        from gguf_mla import codec  # noqa: PLC0415 - reading metadata must not pay for kernels

        return codec.decode(self.read(start, stop), self.type)


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    `metadata` maps a key to its content, `values` a key to its typed value, `tensors` a name to its tensor.
    """

    path: AnyPath
    version: int
    size: int
    alignment: int
    values: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Content by key, without the type tags."""
        return {key: value.data for key, value in self.values.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor to read numbers or bytes of; KeyError if there is none of that name."""
        tensor = self.tensors[name]
        return Tensor(tensor.name, tensor.shape, tensor.type, tensor.decoded, tensor.read)

    def __repr__(self) -> str:
        kind = self.metadata.get("general.architecture")
        return f"<{type(self).__name__} {self.path.name}: {kind}, {len(self.tensors)} tensors, {units.size(self.size)}>"


def open_gguf(path: PurePath | str) -> GgufFile:
    """Read the head of a GGUF file; raises InputError with a sentence for anything that is not a sound one."""
    path = any_path(path)
    if path.is_dir():
        raise InputError("is a directory, not a GGUF file", file=path, remedy="Name the .gguf file itself")
    file = open_input(path)
    path = any_path(file.path)  # one of the hub may lie in the cache of this machine
    if file.size == 0:
        raise InputError("the file is empty", file=path)
    try:
        opened = _Parser(file).parse()
    except InputError:
        if explained := not_whole(path, file.read(0, min(len(LFS), file.size)).tobytes()):
            raise explained from None
        raise
    _check_end(opened, file)
    return opened


def _check_end(opened: GgufFile, file: Readable) -> None:
    """Raise InputError where another GGUF file begins after the data."""
    ends = [tensor.offset + tensor.nbytes for tensor in opened.tensors.values() if tensor.foreign is None]
    end = max(ends, default=file.size)
    for start in {end, -(-end // opened.alignment) * opened.alignment}:
        if start + 8 <= file.size and file.read(start, 4).tobytes() == MAGIC:
            raise joined(opened.path)


class CutOffError(InputError):
    """A file that is shorter than it says, in a way that a whole one might say it."""


class _Parser:
    """A cursor over the head of one file, of which as much is read as it comes to."""

    def __init__(self, file: Readable) -> None:
        self._file, self._path, self._head, self._at = file, any_path(file.path), bytearray(), 0
        self._size = min(file.size, MAX_HEAD)
        self._types: dict[int, TensorType | int] = {}
        self._items = self._text_bytes = self._slices = 0

    def parse(self) -> GgufFile:
        version = self._version()
        tensor_count, value_count = self._scalar("Q"), self._scalar("Q")
        self._plausible(value_count, _SHORTEST_ENTRY, MAX_ENTRIES, "metadata entries")
        values = self._values(value_count)
        self._plausible(tensor_count, _SHORTEST_INFO, bounds.TENSORS, "tensors")
        alignment = alignment_of(values, self._path)
        infos = [self._info() for _ in range(tensor_count)]
        start = -(-self._at // alignment) * alignment
        del self._head[self._at :]
        tensors = self._placed(infos, start, alignment)
        return GgufFile(self._path, version, self._file.size, alignment, values, tensors)

    def _version(self) -> int:
        magic = self._take(4)
        if magic != MAGIC:
            impostors.check(self._file)
            raise self._broken("is not a GGUF file", "it to begin with 'GGUF'", repr(magic))
        version = int(self._scalar("I"))
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            found = "a big-endian file" if swapped else version
            raise self._broken("has a GGUF version that is not supported", "2 or 3, little endian", found)
        return version

    def _values(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._name()
            if key in values:
                raise self._broken(f"has the metadata key {key!r} twice")
            values[key] = self._value(key)
        return values

    def _value(self, key: str) -> Value:
        kind = self._kind(key)
        if kind is Kind.STRING:
            return Value(kind, self._string())
        if kind is not Kind.ARRAY:
            return Value(kind, self._scalar(STRUCT_CODES[kind]))
        item, count = self._kind(key), self._scalar("Q")
        if item is Kind.ARRAY:
            raise self._broken(f"has an array of arrays under {key!r}, which no reader supports")
        return Value(kind, self._strings(count, key) if item is Kind.STRING else self._numbers(item, count, key), item)

    def _kind(self, key: str) -> Kind:
        tag = self._scalar("I")
        try:
            return Kind(tag)
        except ValueError:
            raise self._broken(f"has a value of unknown type under {key!r}", "a type from 0 to 12", tag) from None

    def _strings(self, count: int, key: str) -> Strings:
        self._plausible_items(count, 8, f"strings under {key!r}")
        head, begin, at, have = self._head, self._at, self._at, len(self._head)
        unpack = _LENGTH.unpack_from
        for _ in range(count):
            if at + 8 > have:
                have = self._reach(at + 8)
            at += 8 + unpack(head, at)[0]
        self._reach(at)
        self._at = at
        return Strings(head, begin, count, self._path)

    def _numbers(self, item: Kind, count: int, key: str) -> Sequence[Any]:
        dtype = np.dtype(STRUCT_CODES[item]).newbyteorder("<")
        self._plausible_items(count, dtype.itemsize, f"values under {key!r}")
        numbers = Numbers(self._head, self._skip(count * dtype.itemsize), count, dtype)
        return numbers[:] if count <= SHORT_LIST else numbers

    def _info(self) -> _Info:
        name = self._name()
        count = self._scalar("I")
        if not 1 <= count <= MAX_DIMS:
            raise self._broken("has a wrong number of dimensions", f"1 to {MAX_DIMS}", count, name)
        form = _DIMS[count]
        *dims, type_id, offset = form.unpack_from(self._head, self._skip(form.size))
        return name, tuple(dims[::-1]), self._type(type_id, name), offset

    def _type(self, type_id: int, tensor: str) -> TensorType | int:
        """Return a type, or the number of a foreign one."""
        if type_id > FOREIGN_TYPES:
            raise self._broken("has an unknown tensor type", f"a number up to {FOREIGN_TYPES}", type_id, tensor)
        if type_id not in self._types:
            foreign = ggtypes.foreign(type_id)
            self._types[type_id] = ggtypes.by_id(type_id) if foreign is None else type_id
        return self._types[type_id]

    def _placed(self, infos: Sequence[_Info], start: int, alignment: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        ends = self._ends(infos, start)
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise self._broken("occurs twice", tensor=name)
            if offset % alignment:
                raise self._broken("has an offset that is not aligned", f"a multiple of {alignment}", offset, name)
            foreign = None
            if isinstance(kind, int):
                foreign = Foreign(kind, self._foreign_bytes(name, shape, kind, start + offset, ends))
            nbytes = foreign.nbytes if foreign else self._data_bytes(name, shape, cast("TensorType", kind))
            if start + offset + nbytes > self._file.size:
                raise self._ended(start + offset + nbytes, name)
            self._check_sizes(name, shape)
            called = ggtypes.foreign(foreign.id) if foreign else cast("TensorType", kind).name
            tensors[name] = GgufTensor(name, shape, str(called), start + offset, nbytes, self._file, foreign)
        self._disjoint(tensors)
        return tensors

    def _ends(self, infos: Sequence[_Info], start: int) -> list[int]:
        """Return where data may end, in order; only looked at for foreign types."""
        if not any(isinstance(kind, int) for _, _, kind, _ in infos):
            return []
        return sorted({*(start + offset for *_, offset in infos), self._file.size})

    def _foreign_bytes(self, name: str, shape: tuple[int, ...], kind: int, begin: int, ends: Sequence[int]) -> int:
        """Return how many bytes there are up to the next tensor or the end; InputError where that cannot be right."""
        at = bisect.bisect_right(ends, begin)
        nbytes = ends[at] - begin if at < len(ends) else 0
        values = bounds.product(shape, 1 << 62)
        # From a bit for 2 values to 16 bytes for one: anything else is damage, not another program's type.
        if not nbytes or not values <= 16 * nbytes <= 256 * values + 16 * bounds.ALIGNMENT:
            called = ggtypes.foreign(kind)
            raise self._broken("has an unknown tensor type", "a ggml type id, or data of its size", called, name)
        return nbytes

    def _check_sizes(self, name: str, shape: tuple[int, ...]) -> None:
        file = self._path
        if shape[-1] > bounds.ROW_VALUES:
            bounds.bounded(shape[-1], bounds.ROW_VALUES, "the length of a row", file=file, tensor=name)
        if len(shape) > 2:
            self._slices += math.prod(shape[:-2])
            bounds.bounded(self._slices, bounds.SLICES, "the number of experts and heads", file=file, tensor=name)

    def _data_bytes(self, name: str, shape: tuple[int, ...], kind: TensorType) -> int:
        if 0 in shape or bounds.product(shape, 1 << 62) > 1 << 62:
            raise self._broken("has an impossible shape", "positive dimensions", shape, name)
        try:
            return math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
        except InputError as error:
            raise self._broken(error.what, error.expected, error.found, name) from None

    def _disjoint(self, tensors: Mapping[str, GgufTensor]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(ordered):
            if before.offset + before.nbytes > after.offset:
                raise self._broken(f"overlaps the data of {before.name}", tensor=after.name)

    def _name(self) -> str:
        length = self._scalar("Q")
        if length > bounds.NAME_BYTES:
            raise self._broken("has a name that is too long", f"at most {bounds.NAME_BYTES} bytes", length)
        return self._text(length)

    def _string(self) -> str:
        return self._text(self._scalar("Q"))

    def _text(self, length: int) -> str:
        start = self._skip(length)
        self._text_bytes += length
        if self._text_bytes > bounds.TEXT_BYTES:
            raise self._broken("has more text in its head than any model", f"at most {bounds.TEXT_BYTES} bytes")
        try:
            return self._head[start : start + length].decode()
        except UnicodeDecodeError:
            raise not_text(self._head[start : start + length], self._path) from None

    def _scalar(self, code: str) -> Any:
        form = _SCALARS[code]
        return form.unpack_from(self._head, self._skip(form.size))[0]

    def _take(self, count: int) -> bytes:
        start = self._skip(count)
        return bytes(self._head[start : self._at])

    def _skip(self, count: int) -> int:
        """Step over bytes that are there; return where they begin."""
        start = self._at
        if start + count > len(self._head):
            self._reach(start + count)
        self._at = start + count
        return start

    def _reach(self, end: int) -> int:
        """Have the head up to `end`, at least; return how much of it is there."""
        if end > self._size:
            raise self._ended(end)
        have = len(self._head)
        if end > have:
            stop = min(self._size, max(end, 2 * have, FIRST_READ))
            self._head += self._file.read(have, stop - have).data
        return len(self._head)

    def _plausible_items(self, count: int, least_bytes: int, what: str) -> None:
        self._plausible(count, least_bytes, MAX_ITEMS - self._items, what)
        self._items += count

    def _plausible(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        fitting = min((self._size - self._at) // least_bytes, limit)
        if count > fitting:
            what = f"claims more {what} than fit in it or any model has"
            kind = CutOffError if count <= limit else InputError
            raise kind(what, file=self._path, expected=f"at most {fitting}", found=count)

    def _ended(self, needed: int, tensor: str | None = None) -> InputError:
        if needed <= self._file.size:
            return self._broken("has a larger head than any model", f"at most {MAX_HEAD} bytes", f"at least {needed}")
        return CutOffError(
            "the file ends too early, it was cut off or is still being written",
            file=self._path,
            tensor=tensor,
            expected=f"at least {needed} bytes",
            found=f"{self._file.size} bytes",
            remedy="Download or copy it again",
        )

    def _broken(
        self, what: str, expected: object = None, found: object = None, tensor: str | None = None
    ) -> InputError:
        return InputError(what, file=self._path, tensor=tensor, expected=expected, found=found)
