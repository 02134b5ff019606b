"""Small tables that each lane has filled in an array of values: one lane's table, looked up by all 16 lanes at once.

A lane's table lies scattered, an entry in each row; `transpose_table` puts it side by side, so that one instruction
looks up all lanes where the CPU has one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gguf_mla.lanes.memory import INT64, VALUE_ALIGN, array_data, index64, lane_by_lane, row_pointer
from gguf_mla.lanes.simd import INT32, WIDTH, F, I, splat
from gguf_mla.lanes.transpose import turned

# x86's instructions that pick from 4 or 8 float32 of a register by the low bits of an index: feature, name, lanes.
PICKERS = {
    4: (("avx512f", "avx512.vpermilvar.ps.512", 16), ("avx", "avx.vpermilvar.ps.256", 8)),
    8: (("avx512f", "avx512.permvar.sf.512", 16), ("avx2", "avx2.permps", 8)),
}


@intrinsic
def transpose_table(typing: Any, values: Any, row: Any) -> Any:  # noqa: ARG001  # numba's interface
    """Transpose rows row … row + 16 in place, for `pick4` and `pick8`; row is a multiple of 16."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = row_pointer(context, builder, sig, args, F.vector)
        pointers = [builder.gep(first, [INT64(lane)]) for lane in range(WIDTH)]
        for pointer, value in zip(pointers, turned(builder, [builder.load(p) for p in pointers]), strict=True):
            builder.store(value, pointer).align = VALUE_ALIGN
        return context.get_dummy_value()

    return types.void(values, row), emit


def _entries(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Pointer to the entry in row args[1] of lane args[2]'s table, after the transpose of its 16 rows."""
    data, _ = array_data(context, builder, sig.args[0], args[0])
    row, lane = (index64(context, builder, sig.args[k], args[k]) for k in (1, 2))
    turned_row = builder.add(builder.and_(row, INT64(-WIDTH)), lane)
    offset = builder.add(builder.mul(turned_row, INT64(WIDTH)), builder.and_(row, INT64(WIDTH - 1)))
    return builder.gep(data, [offset])


def _picker(size: int) -> Any:
    """Make the operation that looks up tables of `size` entries."""

    def pick(typing: Any, values: Any, row: Any, lane: Any, index: Any) -> Any:  # noqa: ARG001
        """F: entry index % size of the table that lane `lane` has in rows row … row + size, transposed beforehand."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            entries = _entries(context, builder, sig, args)
            features = context.codegen().magic_tuple()[2].split(",")
            for feature, name, lanes in PICKERS[size]:
                if f"+{feature}" in features:
                    return _permuted(builder, entries, args[3], f"llvm.x86.{name}", size, lanes)
            return _one_by_one(builder, entries, args[3], size)

        return F(values, row, lane, I), emit

    return intrinsic(pick)


def _permuted(builder: Any, entries: Any, index: Any, name: str, size: int, lanes: int) -> Any:
    """Return the entries by an instruction for `lanes` lanes, whose register holds the table as often as it fits."""
    table = builder.load(builder.bitcast(entries, ir.VectorType(ir.FloatType(), size).as_pointer()))
    table.align = 4 * size
    repeated = _shuffled(builder, table, [lane % size for lane in range(lanes)])
    kinds = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(INT32, lanes)
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kinds[0], kinds), name)
    parts = [
        builder.call(function, [repeated, _shuffled(builder, index, list(range(first, first + lanes)))])
        for first in range(0, WIDTH, lanes)
    ]
    return parts[0] if len(parts) == 1 else builder.shuffle_vector(*parts, _mask(list(range(WIDTH))))


def _one_by_one(builder: Any, entries: Any, index: Any, size: int) -> Any:
    within = builder.and_(index, splat(builder, INT32(size - 1), I))

    def entry(lane: int) -> Any:
        at = builder.sext(builder.extract_element(within, INT32(lane)), INT64)
        return builder.load(builder.gep(entries, [at]))

    return lane_by_lane(builder, F.vector, entry)


def _shuffled(builder: Any, vector: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), _mask(lanes))


def _mask(lanes: list[int]) -> Any:
    return ir.Constant(ir.VectorType(INT32, len(lanes)), lanes)


pick4, pick8 = _picker(4), _picker(8)
