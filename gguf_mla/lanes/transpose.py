"""Turning blocks into registers: transposes of 16 x 16, from memory to arrays of values and back.

A transpose is four rounds of shuffles of pairs of registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gguf_mla.lanes.memory import INT64, VALUE_ALIGN, array_data, index64, row_pointer
from gguf_mla.lanes.simd import INT32, WIDTH, F, I


def _raw_pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any, pointee: Any) -> Any:
    """Pointer `offset` elements of `pointee` into the bytes of an array."""
    data, _ = array_data(context, builder, kind, array)
    return builder.gep(builder.bitcast(data, pointee.as_pointer()), [offset])


def turned(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose 16 vectors of 16 in four rounds.

    The first two exchange within quarters of 4 lanes, for which x86 has single instructions; the others exchange whole
    quarters, for which narrow registers are at most renamed.
    """
    quads = [quad for first in range(0, WIDTH, 4) for quad in _turned_quarters(builder, rows[first : first + 4])]
    for half in (1, 2):
        low, high = _quarters(half)
        for i in range(WIDTH):
            if not i & 4 * half:
                a, b = quads[i], quads[i | 4 * half]
                quads[i] = builder.shuffle_vector(a, b, low)
                quads[i | 4 * half] = builder.shuffle_vector(a, b, high)
    return quads


def _turned_quarters(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose, in each quarter of 4 vectors, its 4 x 4."""
    interleaved = [
        builder.shuffle_vector(rows[first], rows[first + 1], _in_quarters(0 + low, 16 + low, 1 + low, 17 + low))
        for first in (0, 2)
        for low in (0, 2)
    ]
    return [
        builder.shuffle_vector(interleaved[k], interleaved[k + 2], _in_quarters(0 + low, 1 + low, 16 + low, 17 + low))
        for k in (0, 1)
        for low in (0, 2)
    ]


def _in_quarters(*lanes: int) -> Any:
    """Mask that does in every quarter of 4 lanes the same."""
    return ir.Constant(ir.VectorType(INT32, WIDTH), [4 * quarter + lane for quarter in range(4) for lane in lanes])


def _quarters(half: int) -> tuple[Any, Any]:
    """Masks: of every 2 * half quarters keep a's low part then b's low part; likewise the high parts."""
    low = [q if not q & half else 4 + (q ^ half) for q in range(4)]
    high = [(q | half) if not q & half else 4 + q for q in range(4)]
    kind = ir.VectorType(INT32, WIDTH)
    lanes = [[4 * quarter + lane for quarter in quarters for lane in range(4)] for quarters in (low, high)]
    return ir.Constant(kind, lanes[0]), ir.Constant(kind, lanes[1])


def _widen_f32(builder: Any, row: Any) -> Any:
    """float32 rows need no widening."""
    del builder
    return row


def _int_splat(number: int) -> Any:
    return ir.Constant(ir.VectorType(INT32, WIDTH), [number] * WIDTH)


def _widen_bf16(builder: Any, row: Any) -> Any:
    """bfloat16 bit patterns are the upper halves of float32."""
    return builder.bitcast(builder.shl(builder.zext(row, I.vector), _int_splat(16)), F.vector)


def _widen_f16(builder: Any, row: Any) -> Any:
    """float16 bit patterns: move exponent and fraction and rebias; subnormals and inf or NaN need an adjustment."""
    word = builder.zext(row, I.vector)
    rest = builder.shl(builder.and_(word, _int_splat(0x7FFF)), _int_splat(13))
    normal = builder.add(rest, _int_splat(112 << 23))
    shifted = builder.bitcast(builder.add(rest, _int_splat(113 << 23)), F.vector)
    smallest = builder.bitcast(_int_splat(113 << 23), F.vector)
    small = builder.bitcast(builder.fsub(shifted, smallest), I.vector)
    special = builder.add(normal, _int_splat(112 << 23))
    value = builder.select(builder.icmp_unsigned("<", rest, _int_splat(1 << 23)), small, normal)
    value = builder.select(builder.icmp_unsigned(">=", rest, _int_splat(31 << 23)), special, value)
    sign = builder.shl(builder.and_(word, _int_splat(0x8000)), _int_splat(16))
    return builder.bitcast(builder.or_(value, sign), F.vector)


def _transposer(element: Any, widen: Any) -> Any:
    """Make the kernel operation that turns 16 rows of 16 `element`s into 16 registers, as float32."""
    vector = ir.VectorType(element, WIDTH)

    def move(typing: Any, source: Any, starts: Any, column: Any, target: Any, row: Any) -> Any:  # noqa: ARG001
        """Lane k's 16 values begin `column` elements after source[starts[k]]; they fill target[row : row + 16]."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            begin, _ = array_data(context, builder, sig.args[1], args[1])
            rows = []
            for lane in range(WIDTH):
                offset = builder.add(builder.load(builder.gep(begin, [INT64(lane)])), args[2])
                pointer = _raw_pointer(context, builder, sig.args[0], args[0], offset, element)
                loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
                loaded.align = 1
                rows.append(widen(builder, loaded))
            first = row_pointer(context, builder, types.void(target, types.int64), (args[3], args[4]), F.vector)
            for lane, value in enumerate(turned(builder, rows)):
                builder.store(value, builder.gep(first, [INT64(lane)])).align = VALUE_ALIGN
            return context.get_dummy_value()

        return types.void(source, starts, types.int64, target, types.int64), emit

    return intrinsic(move)


def _runner(element: Any, widen: Any) -> Any:
    """Make the kernel operation that reads 16 consecutive `element`s as float32."""
    vector = ir.VectorType(element, WIDTH)

    def read(typing: Any, source: Any, at: Any) -> Any:  # noqa: ARG001
        """F: elements at … at + 16 of an array of bytes."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _raw_pointer(context, builder, sig.args[0], args[0], args[1], element)
            loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            loaded.align = 1
            return widen(builder, loaded)

        return F(source, types.int64), emit

    return intrinsic(read)


def _word_writer(width: int) -> Any:
    """Make the kernel operation that writes I to 16 consecutive words of `width` bits."""
    word = ir.IntType(width)
    vector = ir.VectorType(word, WIDTH)

    def write(typing: Any, target: Any, at: Any, value: Any) -> Any:  # noqa: ARG001
        """Write the low bits of I to words at … at + 16 of an array of bytes."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _raw_pointer(context, builder, sig.args[0], args[0], args[1], word)
            words = args[2] if width == 32 else builder.trunc(args[2], vector)
            builder.store(words, builder.bitcast(pointer, vector.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.void(target, types.int64, I), emit

    return intrinsic(write)


run_f32, run_f16, run_bf16 = (
    _runner(ir.FloatType(), _widen_f32),
    _runner(ir.IntType(16), _widen_f16),
    _runner(ir.IntType(16), _widen_bf16),
)
write_words16, write_words32 = _word_writer(16), _word_writer(32)
transpose_f32 = _transposer(ir.FloatType(), _widen_f32)
transpose_bf16 = _transposer(ir.IntType(16), _widen_bf16)


@intrinsic
def untranspose(typing: Any, values: Any, row: Any, target: Any, starts: Any, column: Any) -> Any:  # noqa: ARG001
    """Write values[row : row + 16] so that lane k's 16 begin `column` floats after target[starts[k]]."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = row_pointer(context, builder, sig, args, F.vector)
        loads = [builder.load(builder.gep(first, [INT64(lane)])) for lane in range(WIDTH)]
        begin, _ = array_data(context, builder, sig.args[3], args[3])
        for lane, value in enumerate(turned(builder, loads)):
            offset = builder.add(builder.load(builder.gep(begin, [INT64(lane)])), args[4])
            pointer = _raw_pointer(context, builder, sig.args[2], args[2], offset, ir.FloatType())
            builder.store(value, builder.bitcast(pointer, F.vector.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(values, types.int64, target, starts, types.int64), emit


@intrinsic
def copy_blocks(typing: Any, source: Any, first: Any, target: Any, to: Any, count: Any) -> Any:  # noqa: ARG001
    """Copy blocks first … first + count of one array of blocks to place `to` in another."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        places = []
        for array, place in ((2, 3), (0, 1)):
            data, whole = array_data(context, builder, sig.args[array], args[array])
            stride = builder.extract_value(whole.strides, 0)
            places.append(builder.gep(data, [builder.mul(stride, _wide(context, builder, sig, args, place))]))
        cgutils.raw_memcpy(builder, *places, _wide(context, builder, sig, args, 4), stride)
        return context.get_dummy_value()

    return types.void(source, first, target, to, count), emit


def _wide(context: Any, builder: Any, sig: Any, args: Any, number: int) -> Any:
    return index64(context, builder, sig.args[number], args[number])
