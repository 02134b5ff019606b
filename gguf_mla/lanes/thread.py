"""One lane per CUDA thread, compiled: every float32 operation is rounded on its own.

NVVM would fuse a multiplication with an addition, which rounds once instead of twice and gives other bytes than a CPU.
So F is a type of its own whose operators are libdevice's `__nv_fmul_rn` and its kin.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.containers import UniTuple
from numba.cuda.extending import intrinsic
from numba.extending import lower_cast, models, register_model

from gguf_mla.lanes.simd import INT32, LaneType, binary, define_comparisons, define_integers, number_to_lanes, unary

WIDTH = HALF = 1
FLOAT, INT64 = ir.FloatType(), ir.IntType(64)


class ThreadType(LaneType):
    """A value of one thread."""

    def __init__(self, name: str, element: ir.Type, scalar: Any) -> None:
        super().__init__(name, element, scalar, WIDTH)


F = ThreadType("CUDA float32", FLOAT, types.float32)
I = ThreadType("CUDA int32", INT32, types.int32)  # noqa: E741  # as in `lanes.simd`
M = ThreadType("CUDA mask", ir.IntType(1), types.boolean)


@register_model(ThreadType)
class ThreadModel(models.PrimitiveModel):  # type: ignore[misc]
    """A thread's value is one LLVM scalar."""

    def __init__(self, manager: Any, lane_type: ThreadType) -> None:
        super().__init__(manager, lane_type, lane_type.vector)


for kind in (F, I):
    lower_cast(types.Number, kind)(number_to_lanes)


def _device(name: str, count: int) -> Any:
    """Make an emitter that calls a libdevice function of `count` floats."""

    def emit(builder: Any, *values: Any) -> Any:
        signature = ir.FunctionType(FLOAT, [FLOAT] * count)
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"__nv_{name}"), values)

    return emit


def _negated(builder: Any, value: Any) -> Any:
    """Flip the sign bit; NVVM's LLVM is too old for `fneg`."""
    return builder.bitcast(builder.xor(builder.bitcast(value, INT32), INT32(-(2**31))), FLOAT)


binary(operator.add, {F: _device("fadd_rn", 2)})
binary(operator.sub, {F: _device("fsub_rn", 2)})
binary(operator.mul, {F: _device("fmul_rn", 2)})
binary(operator.truediv, {F: _device("fdiv_rn", 2)})
unary(operator.neg, F, _negated)
define_integers(I, M)
define_comparisons(F, I, M)


def _operation(result: Any, param: Any, emit: Any) -> Any:
    """Make an operation on one `param`; a number is converted."""

    def typed(typing: Any, value: Any) -> Any:  # noqa: ARG001  # numba's interface
        return result(param), lambda _context, builder, _sig, args: emit(builder, *args)

    return intrinsic(typed)


def _select(_typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Return `a` where the mask holds, else `b`."""
    kind = a if isinstance(a, ThreadType) else b
    return kind(mask, kind, kind), lambda _context, builder, _sig, args: builder.select(*args)


def _same(builder: Any, value: Any) -> Any:
    del builder
    return value


def _fits(builder: Any, value: Any) -> Any:
    limit = FLOAT(2.0**31)
    small = builder.fcmp_ordered("<", _device("fabsf", 1)(builder, value), limit)
    return builder.select(small, builder.fptosi(value, INT32), INT32(-(2**31)))


full = _operation(F, types.float32, _same)
full_int = _operation(I, types.int32, _same)
any_lane = _operation(types.boolean, M, _same)
to_float = _operation(F, I, lambda b, x: b.sitofp(x, FLOAT))
to_int = _operation(I, F, _fits)
bits = _operation(I, F, lambda b, x: b.bitcast(x, INT32))
from_bits = _operation(F, I, lambda b, x: b.bitcast(x, FLOAT))
sqrt = _operation(F, F, _device("fsqrt_rn", 1))
fabs = _operation(F, F, _device("fabsf", 1))
where = intrinsic(_select)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index_kind: Any, index: Any) -> Any:
    """Pointer to an element of a one-dimensional contiguous array; the index is I or an integer."""
    wide = builder.sext(index, INT64) if index_kind is I else context.cast(builder, index, index_kind, types.int64)
    return builder.gep(context.make_array(kind)(context, builder, array).data, [wide])


@intrinsic
def load(typing: Any, values: Any, index: Any) -> Any:  # noqa: ARG001
    """F: value `index`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))

    return F(values, index), emit


@intrinsic
def store(typing: Any, values: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Write F to value `index`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))
        return context.get_dummy_value()

    return types.void(values, index, F), emit


@intrinsic
def item(typing: Any, values: Any, index: Any, lane: Any) -> Any:  # noqa: ARG001
    """Return value `index`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))

    return types.float32(values, index, lane), emit


@intrinsic
def set_item(typing: Any, values: Any, index: Any, lane: Any, number: Any) -> Any:  # noqa: ARG001
    """Write value `index`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[3], _pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))
        return context.get_dummy_value()

    return types.void(values, index, lane, types.float32), emit


@intrinsic
def lookup(typing: Any, table: Any, index: Any) -> Any:  # noqa: ARG001
    """F or I: `table[index]`, from a float32 or an integer table."""
    result = F if table.dtype == types.float32 else I

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = builder.load(_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))
        return number if result is F else context.cast(builder, number, table.dtype, types.int32)

    return result(table, index), emit


def _grouped(group: int) -> Any:
    """Make the operation that looks up value number % group of a grid point."""

    def values(typing: Any, table: Any, point: Any, number: Any) -> Any:  # noqa: ARG001
        """F: value number % group of a point."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            within = builder.and_(args[2], INT32(group - 1))
            index = builder.add(builder.mul(args[1], INT32(group)), within)
            return builder.load(_pointer(context, builder, sig.args[0], args[0], I, index))

        return F(table, I, I), emit

    return intrinsic(values)


def _byte_pointers(context: Any, builder: Any, sig: Any, args: Any, count: int) -> list[Any]:
    first = _pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1])
    return [builder.gep(first, [INT64(k)]) for k in range(count)]


def _reader(count: int) -> Any:
    """Make the operation that reads `count` bytes as one little-endian word: blocks are not aligned."""

    def read(typing: Any, data: Any, at: Any) -> Any:  # noqa: ARG001
        """I: the word at byte `at` of the block."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            word = INT32(0)
            for k, pointer in enumerate(_byte_pointers(context, builder, sig, args, count)):
                word = builder.or_(word, builder.shl(builder.zext(builder.load(pointer), INT32), INT32(8 * k)))
            return word

        return I(data, at), emit

    return intrinsic(read)


def _writer(count: int) -> Any:
    """Make the operation that writes the low `count` bytes of a word."""

    def write_bytes(typing: Any, data: Any, at: Any, value: Any) -> Any:  # noqa: ARG001
        """Write the low bits of I to byte `at` of the block."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            for k, pointer in enumerate(_byte_pointers(context, builder, sig, args, count)):
                builder.store(builder.trunc(builder.lshr(args[2], INT32(8 * k)), ir.IntType(8)), pointer)
            return context.get_dummy_value()

        return types.void(data, at, I), emit

    return intrinsic(write_bytes)


@intrinsic
def numbers(typing: Any) -> Any:  # noqa: ARG001
    """I: 0, the only lane's number."""
    return I(), lambda _context, _builder, _sig, _args: INT32(0)


@intrinsic
def transpose_table(typing: Any, values: Any, row: Any) -> Any:  # noqa: ARG001
    """Prepare tables for `pick4` and `pick8`; nothing to do for one lane."""
    return types.void(values, row), lambda context, _builder, _sig, _args: context.get_dummy_value()


def _picker(size: int) -> Any:
    """Make the operation that looks up tables of `size` entries."""

    def pick(typing: Any, values: Any, row: Any, lane: Any, index: Any) -> Any:  # noqa: ARG001
        """F: entry index % size of the table at value `row`."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start = context.cast(builder, args[1], sig.args[1], types.int64)
            offset = builder.add(start, builder.sext(builder.and_(args[3], INT32(size - 1)), INT64))
            return builder.load(_pointer(context, builder, sig.args[0], args[0], types.int64, offset))

        return F(values, row, lane, I), emit

    return intrinsic(pick)


@intrinsic
def first_least(typing: Any, value: Any, position: Any) -> Any:  # noqa: ARG001
    """Return the only lane's position."""
    return types.int32(F, I), lambda _context, _builder, _sig, args: args[1]


@intrinsic
def pair_run32(typing: Any, table: Any, first: Any, second: Any) -> Any:  # noqa: ARG001
    """I: entry `first` of an int32 table."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], args[0], sig.args[1], args[1]))

    return I(table, first, second), emit


@intrinsic
def pair_least(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Return the only place, twice."""
    pair = UniTuple(types.int32, 2)
    return pair(F), lambda context, builder, _sig, _args: context.make_tuple(builder, pair, [INT32(0)] * 2)


@intrinsic
def pair_first_least(typing: Any, value: Any, position: Any) -> Any:  # noqa: ARG001
    """Return the only position, twice."""
    pair = UniTuple(types.int32, 2)
    return pair(F, I), lambda context, builder, _sig, args: context.make_tuple(builder, pair, [args[1]] * 2)


def _odd(builder: Any, level: Any) -> Any:
    low = builder.and_(level, INT32(7))
    return builder.sitofp(builder.add(builder.add(low, low), INT32(1)), FLOAT)


odd8 = _operation(F, I, _odd)
least_lane = _operation(types.int32, F, lambda b, x: INT32(0))  # noqa: ARG005  # the only lane
scatter, write, run32, pair_item = store, store, lookup, item
pick4, pick8 = _picker(4), _picker(8)
gather_group4, gather_group8 = _grouped(4), _grouped(8)
get8, get16, get32 = _reader(1), _reader(2), _reader(4)
put8, put16, put32 = _writer(1), _writer(2), _writer(4)
run8, splat8, splat16, splat32 = get8, get8, get16, get32
