"""numba types for 16 lanes in one SIMD register, and their operators.

LLVM splits the vectors where the CPU has narrower registers (AVX2, NEON). The operators are lowered in place, without
the small functions `numba.extending.overload` would compile for each: that halves the compile time of a kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, lower_cast, models, register_model

WIDTH = 16
INT32 = ir.IntType(32)
Builder = Any
Emit = Callable[[Builder, Any, Any], Any]


class LaneType(types.Type):
    """Values of one kind: 16 in a register, or one (`lanes.thread`)."""

    def __init__(self, name: str, element: ir.Type, scalar: Any, width: int = WIDTH) -> None:
        self.vector = element if width == 1 else ir.VectorType(element, width)
        self.scalar, self.width = scalar, width
        super().__init__(name=name)


F = LaneType("float32 lanes", ir.FloatType(), types.float32)
I = LaneType("int32 lanes", INT32, types.int32)  # noqa: E741  # F, I and M are the three kinds of value, here and in the formulas
M = LaneType("lane mask", ir.IntType(1), types.boolean)


@register_model(LaneType)
class LaneModel(models.PrimitiveModel):  # type: ignore[misc]
    """A lane value is one LLVM vector."""

    def __init__(self, manager: Any, lane_type: LaneType) -> None:
        super().__init__(manager, lane_type, lane_type.vector)


def splat(builder: Builder, number: Any, kind: LaneType) -> Any:
    """Return the vector with `number` in every lane."""
    if kind.width == 1:
        return number
    undefined = ir.Constant(kind.vector, ir.Undefined)
    first = builder.insert_element(undefined, number, INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, WIDTH), [0] * WIDTH))


def halves(builder: Builder, name: str, args: Any, result: LaneType) -> Any:
    """Call an LLVM function that takes and returns 8 lanes for both halves of 16."""
    joined = ir.Constant(ir.VectorType(INT32, WIDTH), list(range(WIDTH)))
    parts = []
    for first in (0, WIDTH // 2):
        mask = ir.Constant(ir.VectorType(INT32, WIDTH // 2), list(range(first, first + WIDTH // 2)))
        lanes = [builder.shuffle_vector(arg, ir.Constant(arg.type, ir.Undefined), mask) for arg in args]
        kind = ir.FunctionType(ir.VectorType(result.vector.element, WIDTH // 2), [lane.type for lane in lanes])
        parts.append(builder.call(cgutils.get_or_insert_function(builder.module, kind, name), lanes))
    return builder.shuffle_vector(*parts, joined)


@lower_cast(types.Number, F)
@lower_cast(types.Number, I)
@lower_cast(types.Boolean, F)
def number_to_lanes(context: Any, builder: Builder, source: Any, target: LaneType, number: Any) -> Any:
    """Let Python numbers mix with lane values: rounded to the lane's kind, then repeated."""
    return splat(builder, context.cast(builder, number, source, target.scalar), target)


def operand_kind(symbol: str, args: tuple[Any, ...], kinds: tuple[LaneType, ...]) -> LaneType | None:
    """Return the kind two operands meet in, or None when neither is a lane value: then the operator is not ours."""
    found = {arg for arg in args if isinstance(arg, LaneType)}
    if not found or (len(found) == 1 and not found <= set(kinds)):
        return None
    numbers = [arg for arg in args if not isinstance(arg, LaneType)]
    if len(found) == 1 and all(isinstance(arg, types.Number) for arg in numbers):
        return found.pop()
    wanted = " or ".join(kind.name for kind in kinds)
    raise errors.TypingError(
        f"{symbol} takes two {wanted} (or one and a number), not {' and '.join(str(arg) for arg in args)}; "
        "lanes.to_float and lanes.to_int convert"
    )


def operator_type(function: Callable[..., Any], kinds: tuple[LaneType, ...], result: LaneType | None) -> None:
    """Teach numba which lane values `function` takes; `result` None: the operands' own kind."""

    @infer_global(function)
    class LaneOperator(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: tuple[Any, ...], kws: Any) -> Any:  # noqa: ARG002  # numba's interface
            kind = operand_kind(function.__name__, args, kinds)
            return None if kind is None else signature(result or kind, *[kind] * len(args))


def binary(function: Callable[..., Any], emits: dict[LaneType, Emit], result: LaneType | None = None) -> None:
    """Define one operator for the kinds that have an emitter."""
    operator_type(function, tuple(emits), result)
    for kind, emit in emits.items():

        def lower(_context: Any, builder: Builder, _sig: Any, args: Any, emit: Emit = emit) -> Any:
            return emit(builder, *args)

        lower_builtin(function, kind, kind)(lower)


def compare(function: Callable[..., Any], symbol: str, floats: LaneType, integers: LaneType, mask: LaneType) -> None:
    """Define a comparison; with a NaN all but != are false."""
    ordered = "fcmp_unordered" if symbol == "!=" else "fcmp_ordered"
    emits: dict[LaneType, Emit] = {
        floats: lambda builder, a, b: getattr(builder, ordered)(symbol, a, b),
        integers: lambda builder, a, b: builder.icmp_signed(symbol, a, b),
    }
    binary(function, emits, mask)


def unary(function: Callable[..., Any], kind: LaneType, emit: Callable[[Builder, Any], Any]) -> None:
    """Define a one-operand operator."""
    operator_type(function, (kind,), None)
    lower_builtin(function, kind)(lambda _context, builder, _sig, args: emit(builder, args[0]))


def define_integers(integers: LaneType, mask: LaneType) -> None:
    """Define the operators of int32 lanes and of masks."""
    binary(operator.add, {integers: lambda b, x, y: b.add(x, y)})
    binary(operator.sub, {integers: lambda b, x, y: b.sub(x, y)})
    binary(operator.mul, {integers: lambda b, x, y: b.mul(x, y)})
    binary(operator.and_, {integers: lambda b, x, y: b.and_(x, y), mask: lambda b, x, y: b.and_(x, y)})
    binary(operator.or_, {integers: lambda b, x, y: b.or_(x, y), mask: lambda b, x, y: b.or_(x, y)})
    binary(operator.xor, {integers: lambda b, x, y: b.xor(x, y), mask: lambda b, x, y: b.xor(x, y)})
    binary(operator.lshift, {integers: lambda b, x, y: b.shl(x, y)})
    binary(operator.rshift, {integers: lambda b, x, y: b.ashr(x, y)})
    unary(operator.invert, mask, lambda b, x: b.not_(x))


def define_comparisons(floats: LaneType, integers: LaneType, mask: LaneType) -> None:
    """Define < <= > >= == !=."""
    for name, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
        compare(getattr(operator, name), sign, floats, integers, mask)


binary(operator.add, {F: lambda b, x, y: b.fadd(x, y)})
binary(operator.sub, {F: lambda b, x, y: b.fsub(x, y)})
binary(operator.mul, {F: lambda b, x, y: b.fmul(x, y)})
binary(operator.truediv, {F: lambda b, x, y: b.fdiv(x, y)})
unary(operator.neg, F, lambda b, x: b.fneg(x))
define_integers(I, M)
define_comparisons(F, I, M)
