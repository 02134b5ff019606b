"""Two blocks in one register: 8 lanes are candidates of one, 8 of another, where lists are too short for 16.

On AVX2, whose registers have 8 lanes, each block has its own; so nothing here mixes the halves.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.containers import UniTuple
from numba.extending import intrinsic

from gguf_mla.lanes.memory import index64, item_pointer, table_pointer
from gguf_mla.lanes.simd import INT32, WIDTH, F, I

HALF = WIDTH // 2
PAIR = UniTuple(types.int32, 2)
BOTH = ir.Constant(ir.VectorType(INT32, WIDTH), list(range(WIDTH)))
FLOATS, INTEGERS, BITS = ir.VectorType(ir.FloatType(), HALF), ir.VectorType(INT32, HALF), ir.IntType(HALF)


@intrinsic
def pair_item(typing: Any, values: Any, index: Any, lane: Any) -> Any:  # noqa: ARG001  # numba's interface
    """F: of row `index` lane `lane`'s number in the first half, the next lane's in the second."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = item_pointer(context, builder, sig, args)
        numbers = [builder.load(builder.gep(pointer, [INT32(half)])) for half in range(2)]
        return builder.shuffle_vector(*[_repeated(builder, number, FLOATS) for number in numbers], BOTH)

    return F(values, index, lane), emit


def _repeated(builder: Any, number: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTEGERS, [0] * HALF))


def _half(builder: Any, value: Any, half: int) -> Any:
    lanes = ir.Constant(INTEGERS, list(range(half * HALF, half * HALF + HALF)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)


@intrinsic
def pair_run32(typing: Any, table: Any, first: Any, second: Any) -> Any:  # noqa: ARG001
    """I: 8 consecutive entries of an int32 table in each half."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = []
        for kind, at in zip(sig.args[1:], args[1:], strict=True):
            pointer = table_pointer(context, builder, sig, args, index64(context, builder, kind, at))
            halves.append(builder.load(builder.bitcast(pointer, INTEGERS.as_pointer())))
            halves[-1].align = 4
        return builder.shuffle_vector(*halves, BOTH)

    return I(table, first, second), emit


@intrinsic
def odd8(typing: Any, level: Any) -> Any:  # noqa: ARG001
    """F: 2 l + 1 of I's low 3 bits."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        features = context.codegen().magic_tuple()[2].split(",")
        if "+avx2" not in features:
            low = builder.and_(args[0], ir.Constant(I.vector, [7] * WIDTH))
            return builder.sitofp(builder.or_(builder.add(low, low), ir.Constant(I.vector, [1] * WIDTH)), F.vector)
        odd = ir.Constant(FLOATS, [2.0 * lane + 1.0 for lane in range(HALF)])
        kind = ir.FunctionType(FLOATS, [FLOATS, INTEGERS])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.permps")
        return builder.shuffle_vector(
            *[builder.call(permute, [odd, _half(builder, args[0], half)]) for half in range(2)], BOTH
        )

    return F(I), emit


def _reduce_min(builder: Any, value: Any) -> Any:
    kind = ir.FunctionType(INT32, [INTEGERS])
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.smin.v{HALF}i32"), [value]
    )


def _is_least(builder: Any, value: Any) -> Any:
    """Mask of the lanes of a half that hold its least value: bit patterns order like numbers that are not negative."""
    least = _repeated(builder, _reduce_min(builder, value), INTEGERS)
    return builder.icmp_signed("==", value, least)


@intrinsic
def pair_least(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Return, for each half, the first place whose value, F and not negative, is least."""

    def emit(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        patterns, places = builder.bitcast(args[0], I.vector), []
        for half in range(2):
            word = builder.bitcast(_is_least(builder, _half(builder, patterns, half)), BITS)
            places.append(builder.cttz(builder.zext(word, INT32), ir.IntType(1)(1)))
        return context.make_tuple(builder, PAIR, places)

    return PAIR(F), emit


@intrinsic
def pair_first_least(typing: Any, value: Any, position: Any) -> Any:  # noqa: ARG001
    """Return, for each half, the lowest position among the lanes whose value, F and not negative, is least."""

    def emit(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        patterns, places = builder.bitcast(args[0], I.vector), []
        for half in range(2):
            least = _is_least(builder, _half(builder, patterns, half))
            last = ir.Constant(INTEGERS, [2**31 - 1] * HALF)
            places.append(_reduce_min(builder, builder.select(least, _half(builder, args[1], half), last)))
        return context.make_tuple(builder, PAIR, places)

    return PAIR(F, I), emit
