"""How CPU lanes reach memory: arrays of values, the bytes of blocks, tables.

An array of values is C-contiguous float32 [n, 16]: row i is one register. Blocks are uint8 [16, bytes], C-contiguous,
lane k's block is row k; x86 and Arm store little-endian words unaligned.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import errors, types
from numba.extending import intrinsic

from gguf_mla.lanes.simd import INT32, WIDTH, F, I, splat

BYTE, INT64 = ir.IntType(8), ir.IntType(64)
VALUE_ALIGN = 64  # `codec` allocates arrays of values on cache lines


def index64(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Widen an index of any integer type."""
    return context.cast(builder, value, kind, types.int64)


def array_data(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, Any]:
    """Return data pointer and array structure of an array argument."""
    array = context.make_array(kind)(context, builder, value)
    return array.data, array


def row_pointer(context: Any, builder: Any, sig: Any, args: Any, pointee: Any) -> Any:
    """Pointer to row args[1] of the array of values args[0]."""
    data, _ = array_data(context, builder, sig.args[0], args[0])
    index = builder.mul(index64(context, builder, sig.args[1], args[1]), INT64(WIDTH))
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def _expect_values(operation: str, values: Any) -> None:
    if not (isinstance(values, types.Array) and values.ndim == 2 and values.dtype == types.float32):
        raise errors.TypingError(f"lanes.{operation} takes a float32 [n, lanes] array, not {values}")


@intrinsic
def load(typing: Any, values: Any, index: Any) -> Any:  # noqa: ARG001  # numba's interface
    """F: row `index`."""
    _expect_values("load", values)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(row_pointer(context, builder, sig, args, F.vector))
        loaded.align = VALUE_ALIGN
        return loaded

    return F(values, index), emit


@intrinsic
def store(typing: Any, values: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Write F to row `index`."""
    _expect_values("store", values)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        stored = builder.store(args[2], row_pointer(context, builder, sig, args, F.vector))
        stored.align = VALUE_ALIGN
        return context.get_dummy_value()

    return types.void(values, index, F), emit


def item_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Pointer to lane args[2] of row args[1]."""
    row = row_pointer(context, builder, sig, args, ir.FloatType())
    return builder.gep(row, [index64(context, builder, sig.args[2], args[2])])


@intrinsic
def item(typing: Any, values: Any, index: Any, lane: Any) -> Any:  # noqa: ARG001
    """One lane's float32 of row `index`."""
    _expect_values("item", values)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(item_pointer(context, builder, sig, args))

    return types.float32(values, index, lane), emit


@intrinsic
def set_item(typing: Any, values: Any, index: Any, lane: Any, number: Any) -> Any:  # noqa: ARG001
    """Write one lane's float32 of row `index`."""
    _expect_values("set_item", values)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[3], item_pointer(context, builder, sig, args))
        return context.get_dummy_value()

    return types.void(values, index, lane, types.float32), emit


def lane_by_lane(builder: Any, result: Any, element: Any) -> Any:
    """Build a vector from `element(lane)`."""
    vector = ir.Constant(result, ir.Undefined)
    for lane in range(WIDTH):
        vector = builder.insert_element(vector, element(lane), INT32(lane))
    return vector


@intrinsic
def scatter(typing: Any, values: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Write F, in each lane to the row that lane's I names."""
    _expect_values("scatter", values)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, _ = array_data(context, builder, sig.args[0], args[0])
        for lane in range(WIDTH):
            row = builder.sext(builder.extract_element(args[1], INT32(lane)), INT64)
            offset = builder.add(builder.mul(row, INT64(WIDTH)), INT64(lane))
            builder.store(builder.extract_element(args[2], INT32(lane)), builder.gep(data, [offset]))
        return context.get_dummy_value()

    return types.void(values, I, F), emit


@intrinsic
def lookup(typing: Any, table: Any, index: Any) -> Any:  # noqa: ARG001
    """F or I: `table[index]` in each lane, from a float32 or an integer table."""
    result = F if table.dtype == types.float32 else I

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data, _ = array_data(context, builder, sig.args[0], args[0])

        def element(lane: int) -> Any:
            number = builder.load(
                builder.gep(data, [builder.sext(builder.extract_element(args[1], INT32(lane)), INT64)])
            )
            return number if result is F else context.cast(builder, number, table.dtype, types.int32)

        return lane_by_lane(builder, result.vector, element)

    return result(table, I), emit


def _grouped(group: int) -> Any:
    """Make the operation that looks up the values of grid points, `group` lanes to a point."""
    run = ir.VectorType(ir.FloatType(), group)

    def values(typing: Any, table: Any, point: Any, number: Any) -> Any:  # noqa: ARG001
        """F: value number % group of each lane's point; the lanes of a group are neighbours and have the same point."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data, _ = array_data(context, builder, sig.args[0], args[0])
            parts = []
            for first in range(0, WIDTH, group):
                index = builder.sext(builder.extract_element(args[1], INT32(first)), INT64)
                pointer = builder.gep(data, [builder.mul(index, INT64(group))])
                parts.append(builder.load(builder.bitcast(pointer, run.as_pointer())))
                parts[-1].align = 4
            return _joined(builder, parts, group)

        return F(table, I, I), emit

    return intrinsic(values)


def _joined(builder: Any, parts: list[Any], size: int) -> Any:
    """Concatenate a power of two of vectors."""
    while len(parts) > 1:
        mask = ir.Constant(ir.VectorType(INT32, 2 * size), list(range(2 * size)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        size *= 2
    return parts[0]


gather_group4, gather_group8 = _grouped(4), _grouped(8)


def block_pointers(context: Any, builder: Any, sig: Any, args: Any, word: Any) -> list[Any]:
    """Pointers to the `word` at byte args[1] of each lane's block."""
    data, array = array_data(context, builder, sig.args[0], args[0])
    stride = builder.extract_value(array.strides, 0)
    start = builder.gep(data, [index64(context, builder, sig.args[1], args[1])])
    offsets = [builder.mul(stride, INT64(lane)) for lane in range(WIDTH)]
    return [builder.bitcast(builder.gep(start, [offset]), word.as_pointer()) for offset in offsets]


def _reader(width: int) -> Any:
    """Make the operation that reads `width` bits of each block."""
    word = ir.IntType(width)

    def read(typing: Any, data: Any, at: Any) -> Any:  # noqa: ARG001
        """I: the word at byte `at` of each lane's block."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointers = block_pointers(context, builder, sig, args, word)

            def element(lane: int) -> Any:
                loaded = builder.load(pointers[lane])
                loaded.align = 1
                return loaded if width == 32 else builder.zext(loaded, INT32)

            return lane_by_lane(builder, I.vector, element)

        return I(data, at), emit

    return intrinsic(read)


def _writer(width: int) -> Any:
    """Make the operation that writes the low `width` bits to each block."""
    word = ir.IntType(width)

    def write(typing: Any, data: Any, at: Any, value: Any) -> Any:  # noqa: ARG001
        """Write I's low bits to byte `at` of each lane's block."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            for lane, pointer in enumerate(block_pointers(context, builder, sig, args, word)):
                element = builder.extract_element(args[2], INT32(lane))
                stored = builder.store(element if width == 32 else builder.trunc(element, word), pointer)
                stored.align = 1
            return context.get_dummy_value()

        return types.void(data, at, I), emit

    return intrinsic(write)


@intrinsic
def run8(typing: Any, data: Any, at: Any) -> Any:  # noqa: ARG001
    """I: 16 consecutive bytes of one block, the first at byte `at`."""
    bytes16 = ir.VectorType(BYTE, WIDTH)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _byte_pointer(context, builder, sig, args)
        loaded = builder.load(builder.bitcast(pointer, bytes16.as_pointer()))
        loaded.align = 1
        return builder.zext(loaded, I.vector)

    return I(data, at), emit


def table_pointer(context: Any, builder: Any, sig: Any, args: Any, index: Any) -> Any:
    """Pointer to element `index`, 64 bits wide, of the one-dimensional array args[0]."""
    data, _ = array_data(context, builder, sig.args[0], args[0])
    return builder.gep(data, [index])


def _byte_pointer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return table_pointer(context, builder, sig, args, index64(context, builder, sig.args[1], args[1]))


def _splatter(width: int) -> Any:
    """Make the operation that reads one word of one block into every lane."""
    word = ir.IntType(width)

    def read(typing: Any, data: Any, at: Any) -> Any:  # noqa: ARG001
        """I: the word at byte `at` of one block, in every lane."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _byte_pointer(context, builder, sig, args)
            loaded = builder.load(builder.bitcast(pointer, word.as_pointer()))
            loaded.align = 1
            return splat(builder, loaded if width == 32 else builder.zext(loaded, INT32), I)

        return I(data, at), emit

    return intrinsic(read)


@intrinsic
def write(typing: Any, values: Any, at: Any, value: Any) -> Any:  # noqa: ARG001
    """Write F to 16 consecutive float32 of one block."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _byte_pointer(context, builder, sig, args)
        builder.store(args[2], builder.bitcast(pointer, F.vector.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(values, at, F), emit


@intrinsic
def run32(typing: Any, table: Any, at: Any) -> Any:  # noqa: ARG001
    """I: 16 consecutive entries of an int32 table."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _byte_pointer(context, builder, sig, args)
        loaded = builder.load(builder.bitcast(pointer, I.vector.as_pointer()))
        loaded.align = 4
        return loaded

    return I(table, at), emit


splat8, splat16, splat32 = _splatter(8), _splatter(16), _splatter(32)
get8, get16, get32 = _reader(8), _reader(16), _reader(32)
put8, put16, put32 = _writer(8), _writer(16), _writer(32)
