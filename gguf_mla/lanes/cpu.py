"""CPU lanes: 16 values in one SIMD register. The operations that `lanes.plain` lists, for numba kernels.

Arrays of values are C-contiguous float32 [n, 16], blocks uint8 [16, bytes]. numba's intrinsics ask for the argument
types first and then for a function that emits LLVM code; each operation below is one such pair.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from gguf_mla.lanes.memory import (
    gather_group4,
    gather_group8,
    get8,
    get16,
    get32,
    item,
    load,
    lookup,
    put8,
    put16,
    put32,
    run8,
    run32,
    scatter,
    set_item,
    splat8,
    splat16,
    splat32,
    store,
    write,
)
from gguf_mla.lanes.pairs import HALF, odd8, pair_first_least, pair_item, pair_least, pair_run32
from gguf_mla.lanes.simd import INT32, WIDTH, F, I, LaneType, M, halves, splat
from gguf_mla.lanes.tables import pick4, pick8, transpose_table

__all__ = [
    "HALF",
    "WIDTH",
    "any_lane",
    "bits",
    "fabs",
    "first_least",
    "from_bits",
    "full",
    "full_int",
    "gather_group4",
    "gather_group8",
    "get8",
    "get16",
    "get32",
    "item",
    "least_lane",
    "load",
    "lookup",
    "numbers",
    "odd8",
    "pair_first_least",
    "pair_item",
    "pair_least",
    "pair_run32",
    "pick4",
    "pick8",
    "put8",
    "put16",
    "put32",
    "run8",
    "run32",
    "scatter",
    "set_item",
    "splat8",
    "splat16",
    "splat32",
    "sqrt",
    "store",
    "to_float",
    "to_int",
    "transpose_table",
    "where",
    "write",
]  # fmt: skip


def _expect(operation: str, wanted: LaneType, found: Any) -> None:
    """Explain a wrong operand in the formula's own terms."""
    if found is not wanted:
        raise errors.TypingError(f"lanes.{operation} takes {wanted}, not {found}")


@intrinsic
def full(typing: Any, number: Any) -> Any:  # noqa: ARG001  # numba's interface
    """F with `number` in every lane."""
    return F(types.float32), lambda _context, builder, _sig, args: splat(builder, args[0], F)


@intrinsic
def full_int(typing: Any, number: Any) -> Any:  # noqa: ARG001
    """I with `number` in every lane."""
    return I(types.int32), lambda _context, builder, _sig, args: splat(builder, args[0], I)


@intrinsic
def numbers(typing: Any) -> Any:  # noqa: ARG001
    """I: 0, 1, … 15."""
    return I(), lambda _context, _builder, _sig, _args: ir.Constant(I.vector, list(range(WIDTH)))


@intrinsic
def where(typing: Any, mask: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    """Return `a` where the mask holds, else `b`."""
    _expect("where", M, mask)
    kind = a if isinstance(a, LaneType) else b
    if not isinstance(kind, LaneType) or any(isinstance(arg, LaneType) and arg is not kind for arg in (a, b)):
        raise errors.TypingError(
            f"lanes.where takes two lane values of one kind (or one and a number), not {a} and {b}"
        )
    return kind(M, kind, kind), lambda _context, builder, _sig, args: builder.select(*args)


@intrinsic
def any_lane(typing: Any, mask: Any) -> Any:  # noqa: ARG001
    """Tell whether the mask holds in any lane."""
    _expect("any_lane", M, mask)

    def emit(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", word, ir.IntType(WIDTH)(0))

    return types.boolean(M), emit


@intrinsic
def to_float(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """I → F."""
    _expect("to_float", I, value)
    return F(I), lambda _context, builder, _sig, args: builder.sitofp(args[0], F.vector)


@intrinsic
def to_int(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """F → I towards zero; NaN and what does not fit give -2**31: LLVM leaves that open, so it is said explicitly."""
    _expect("to_int", F, value)

    def emit(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        features = context.codegen().magic_tuple()[2].split(",")
        if "+avx" in features and "+avx512f" not in features:  # whose instruction does just that
            return halves(builder, "llvm.x86.avx.cvtt.ps2dq.256", args, I)
        limit = splat(builder, ir.FloatType()(2.0**31), F)
        fits = builder.fcmp_ordered("<", _call_unary(builder, "fabs", args[0]), limit)
        return builder.select(fits, builder.fptosi(args[0], I.vector), splat(builder, INT32(-(2**31)), I))

    return I(F), emit


@intrinsic
def bits(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Return the bit pattern of F as I."""
    _expect("bits", F, value)
    return I(F), lambda _context, builder, _sig, args: builder.bitcast(args[0], I.vector)


@intrinsic
def from_bits(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Return the F whose bit pattern is I."""
    _expect("from_bits", I, value)
    return F(I), lambda _context, builder, _sig, args: builder.bitcast(args[0], F.vector)


def _call_unary(builder: Any, name: str, value: Any) -> Any:
    kind = ir.FunctionType(F.vector, [F.vector])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
    return builder.call(function, [value])


@intrinsic
def sqrt(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Square root, correctly rounded."""
    _expect("sqrt", F, value)
    return F(F), lambda _context, builder, _sig, args: _call_unary(builder, "sqrt", args[0])


@intrinsic
def fabs(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Magnitude."""
    _expect("fabs", F, value)
    return F(F), lambda _context, builder, _sig, args: _call_unary(builder, "fabs", args[0])


@intrinsic
def least_lane(typing: Any, value: Any) -> Any:  # noqa: ARG001
    """Return the first lane (an int) whose value, F and not negative, is least."""
    _expect("least_lane", F, value)

    def emit(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        word = builder.bitcast(_is_least(builder, args[0]), ir.IntType(WIDTH))
        return builder.cttz(builder.zext(word, INT32), ir.IntType(1)(1))

    return types.int32(F), emit


@intrinsic
def first_least(typing: Any, value: Any, position: Any) -> Any:  # noqa: ARG001
    """Return the lowest position (an int) among the lanes whose value, F and not negative, is least."""
    _expect("first_least", F, value)
    _expect("first_least", I, position)

    def emit(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        last = splat(builder, INT32(2**31 - 1), I)
        return _reduce_min(builder, builder.select(_is_least(builder, args[0]), args[1], last))

    return types.int32(F, I), emit


def _is_least(builder: Any, value: Any) -> Any:
    """Mask of the lanes that hold the least value; bit patterns order like the numbers do, if none is negative."""
    pattern = builder.bitcast(value, I.vector)
    return builder.icmp_signed("==", pattern, splat(builder, _reduce_min(builder, pattern), I))


def _reduce_min(builder: Any, value: Any) -> Any:
    kind = ir.FunctionType(INT32, [I.vector])
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.smin.v{WIDTH}i32"), [value]
    )
