"""How CPU kernels feed the formulas: 16 blocks at a time, turned so that one register holds value i of all 16.

`encode_blocks` and its siblings are compiled once per tensor type and formula, bound over the globals below.
"""

from __future__ import annotations

from typing import Any

from gguf_mla import lanes
from gguf_mla.lanes import Lanes, simd, transpose
from gguf_mla.lanes.binding import unbound

WIDTH = simd.WIDTH
F32, F16 = 0, 1  # any other source is bfloat16
MAGNITUDE, CERTAIN = 0x7FFFFFFF, 0x44800000  # float32 without its sign; `floats.CERTAIN`

# The type's own, in each kernel: its numbers, and the function of its file that encodes or decodes.
BLOCK, BYTES, SCRATCH, ROW_SPREAD, formula = map(unbound, ("BLOCK", "BYTES", "SCRATCH", "ROW_SPREAD", "formula"))


def fill(x: Lanes, source: Any, source_code: int, starts: Any, first: int) -> None:
    """x[i] = value first + i of the 16 blocks that begin at source[starts], as float32."""
    for row in range(0, x.shape[0], WIDTH):
        if source_code == F32:
            transpose.transpose_f32(source, starts, first + row, x, row)
        elif source_code == F16:  # as fast as at once, and a fifth less for LLVM to do
            for lane in range(WIDTH):
                lanes.store(x, row + lane, transpose.run_f16(source, starts[lane] + first + row))
            lanes.transpose_table(x, row)
        else:
            transpose.transpose_bf16(source, starts, first + row, x, row)


def store_spread(scratch: Lanes, spread: Any, first: int, per_row: int) -> None:
    """scratch[0] = the mean square of each lane's row, for a type that asks."""
    for lane in range(WIDTH):
        lanes.set_item(scratch, 0, lane, spread[(first + lane) // per_row])


def block_starts(starts: Any, first: int, period: int, blocks: int, block: int) -> None:
    """Where lane k's block begins: block first + k of a cycle of `period`; past the end the last block again."""
    for lane in range(WIDTH):
        number = first + lane if first + lane < blocks else blocks - 1
        starts[lane] = number % period * block


def certain(x: Lanes) -> bool:
    """Tell whether an array holds numbers that every type can hold: neither NaN nor infinity, nor any above CERTAIN."""
    joined = lanes.bits(lanes.load(x, 0))
    for i in range(1, x.shape[0]):
        joined = joined | lanes.bits(lanes.load(x, i))
    if not lanes.any_lane(joined & MAGNITUDE > CERTAIN):  # no number is larger than all their bits together
        return True
    large = lanes.bits(lanes.load(x, 0)) & MAGNITUDE > CERTAIN
    for i in range(1, x.shape[0]):
        large = large | (lanes.bits(lanes.load(x, i)) & MAGNITUDE > CERTAIN)
    return not lanes.any_lane(large)


def encode_blocks(source: Any, source_code: int, check: bool, tables: Any, room: Any, out: Any) -> int:
    """Encode out.shape[0] blocks; return -1, or a block at or just before what `check` found not to be `certain`.

    `room` is what `cpu_kernels` makes: to do so here would be a second of code for numba to compile.
    """
    blocks = out.shape[0]
    starts, spare, x, scratch = room
    for first in range(0, blocks, WIDTH):
        block_starts(starts, first, blocks, blocks, BLOCK)
        fill(x, source, source_code, starts, 0)
        if check and not certain(x):
            return first
        whole = first + WIDTH <= blocks
        formula(x, scratch, tables, out[first : first + WIDTH] if whole else spare)
        if not whole:
            transpose.copy_blocks(spare, 0, out, first, blocks - first)
    return -1


def encode_blocks_weighted(
    source: Any, source_code: int, check: bool, weights: Any, tables: Any, room: Any, out: Any
) -> int:
    """Like `encode_blocks`, for whole rows; `weights`, bytes of float32 [cols], weigh every row's columns."""
    blocks, per_row = out.shape[0], weights.size // (4 * BLOCK)
    starts, spare, x, scratch, w, spread = room
    if ROW_SPREAD:
        mean_squares(x, starts, source, source_code, blocks // per_row, per_row * BLOCK, spread)
    for first in range(0, blocks, WIDTH):
        block_starts(starts, first, blocks, blocks, BLOCK)
        fill(x, source, source_code, starts, 0)
        if check and not certain(x):
            return first
        if ROW_SPREAD:
            store_spread(scratch, spread, first, per_row)
        block_starts(starts, first, per_row, blocks, BLOCK)
        fill(w, weights, F32, starts, 0)
        whole = first + WIDTH <= blocks
        formula(x, w, scratch, tables, out[first : first + WIDTH] if whole else spare)
        if not whole:
            transpose.copy_blocks(spare, 0, out, first, blocks - first)
    return -1


def mean_squares(x: Lanes, starts: Any, source: Any, source_code: int, rows: int, cols: int, spread: Any) -> None:
    """Spread = mean of the squares of each row, summed in order, and what follows the last up to a register's end."""
    for first in range(0, rows, WIDTH):
        block_starts(starts, first, rows, rows, cols)
        total = lanes.full(0.0)
        for column in range(0, cols, WIDTH):
            fill(x, source, source_code, starts, column)
            for i in range(WIDTH):
                total = total + lanes.load(x, i) * lanes.load(x, i)
        lanes.write(spread, first, total / lanes.full(cols))


def decode_blocks(data: Any, tables: Any, room: Any, out: Any) -> None:
    """Decode data uint8 [blocks, bytes] to out float32 [blocks * values]."""
    blocks = data.shape[0]
    starts, spare, y = room
    for first in range(0, blocks, WIDTH):
        whole = first + WIDTH <= blocks
        if not whole:
            transpose.copy_blocks(data, first, spare, 0, blocks - first)
        formula(data[first : first + WIDTH] if whole else spare, tables, y)
        block_starts(starts, first, blocks, blocks, BLOCK)
        for row in range(0, BLOCK, WIDTH):
            transpose.untranspose(y, row, out, starts, row)


def decode_each_block(data: Any, tables: Any, _room: Any, out: Any) -> None:
    """Like `decode_blocks`, one block after the other."""
    for block in range(data.shape[0]):
        formula(data[block], tables, out[block * BLOCK : block * BLOCK + BLOCK])


def encode_values(source: Any, source_code: int, check: bool, out: Any) -> int:
    """Encode to a type with one value per block, 16 at a time; what is left over is the caller's.

    Return -1, or where `check` found what is not `certain`: a position just before it.
    """
    for at in range(0, out.size // BYTES // WIDTH * WIDTH, WIDTH):
        value = read_run(source, source_code, at)
        if check and lanes.any_lane(lanes.bits(value) & MAGNITUDE > CERTAIN):
            return at
        if BYTES == 2:
            transpose.write_words16(out, at, formula(value))
        else:
            transpose.write_words32(out, at, formula(value))
    return -1


def read_run(source: Any, source_code: int, at: int) -> Lanes:
    """F: values at … at + 16 of a source, as float32."""
    if source_code == F32:
        return transpose.run_f32(source, at)
    if source_code == F16:
        return transpose.run_f16(source, at)
    return transpose.run_bf16(source, at)
