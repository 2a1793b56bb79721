"""The kernels over matrices in the layout of `ivl.kernels.triton.layout`.

All of them take the parts of a matrix first, as `matvec` names them. A tile of
(rows, strips, 16) weights is read and turned to float32 at a time; loads of what several tiles
share are merged by the compiler. Pointers to parts that a format lacks are not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

STRIP: tl.constexpr = tl.constexpr(128)
TILE: tl.constexpr = tl.constexpr(16)
TILES: tl.constexpr = tl.constexpr(8)


@triton.jit
def _levels(plane, rows, strips, num_strips, t, bits: tl.constexpr):
    """The bits of tile t in one plane, uint8 -> int32 (rows, strips, 16)."""
    per_byte: tl.constexpr = 8 // bits
    lane = tl.arange(0, TILE)
    place = (rows * bits + t // per_byte) * num_strips
    place = (place[:, None] + strips[None, :])[:, :, None] * TILE + lane[None, None, :]
    packed = tl.load(plane + place).to(tl.int32)
    if bits == 8:
        return packed
    return (packed >> (bits * (t % per_byte))) & ((1 << bits) - 1)


@triton.jit
def _grouped(part, rows, strips, num_strips, t, group: tl.constexpr):
    """What is stored for each row and strip, of the group of tile t: (rows, strips)."""
    per_strip: tl.constexpr = STRIP // group
    place = (rows * per_strip + t * TILE // group) * num_strips
    return tl.load(part + place[:, None] + strips[None, :])


@triton.jit
def _of_block(part, rows, strips, num_strips):
    """A nested format's number for each row and block of two strips: float32 (rows, strips)."""
    place = rows * (num_strips // 2)
    return tl.load(part + place[:, None] + strips[None, :] // 2).to(tl.float32)


@triton.jit
def _weights(
    low, top, scales, offsets, d, dmin, table, rows, strips, num_strips, t,
    low_bits: tl.constexpr, top_bits: tl.constexpr, group: tl.constexpr, nested: tl.constexpr,
    offset: tl.constexpr, zero: tl.constexpr, has_table: tl.constexpr,
):  # fmt: skip
    """Tile t of `rows` int64 (n,) and `strips` (m,), all of which exist: float32 (n, m, 16)."""
    level = _levels(low, rows, strips, num_strips, t, low_bits)
    if top_bits > 0:
        level = level | (_levels(top, rows, strips, num_strips, t, top_bits) << low_bits)
    stored = _grouped(scales, rows, strips, num_strips, t, group)
    if offset == "paired":
        least = ((stored >> 4) & 15).to(tl.float32)
        stored = stored & 15
    elif offset != "zero":
        least = _grouped(offsets, rows, strips, num_strips, t, group).to(tl.float32)
    scale = stored.to(tl.float32)
    if nested:
        scale = _of_block(d, rows, strips, num_strips) * scale
    if has_table:
        value = tl.load(table + level)
    elif offset == "points":
        value = level.to(tl.float32) - least[:, :, None]
    else:
        value = (level - zero).to(tl.float32)
    value = scale[:, :, None] * value
    if offset == "minima" or offset == "paired":
        if nested:
            least = _of_block(dmin, rows, strips, num_strips) * least
        value = value - least[:, :, None]
    return value


@triton.jit
def matvec(
    low, top, scales, offsets, d, dmin, table, x, bias, out, num_rows, columns, num_strips, num_x,
    low_bits: tl.constexpr, top_bits: tl.constexpr, group: tl.constexpr, nested: tl.constexpr,
    offset: tl.constexpr, zero: tl.constexpr, has_table: tl.constexpr, has_bias: tl.constexpr,
    block_n: tl.constexpr, block_s: tl.constexpr, block_x: tl.constexpr,
):  # fmt: skip
    """out (num_x, num_rows) = x (num_x, columns) W^T + bias, num_x at most block_x: a few rows.

    A program has block_n rows of the matrix and goes through its columns, block_s strips at once;
    sums are float32. The weights are read once, whatever num_x is.
    """
    n = tl.program_id(0).to(tl.int64) * block_n + tl.arange(0, block_n)
    rows = tl.minimum(n, num_rows - 1)
    lane = tl.arange(0, TILE)
    # A tile of sums for each row of x, all shaped as the weights: x is read as they are, so that
    # nothing changes its place among the threads before the sums at the end.
    totals = ()
    for _ in tl.static_range(block_x):
        totals = totals + (tl.zeros((block_n, block_s, TILE), tl.float32),)  # noqa: RUF005
    for first in range(0, num_strips, block_s):
        wanted = first + tl.arange(0, block_s)
        strips = tl.minimum(wanted, num_strips - 1)
        for t in tl.static_range(TILES):
            w = _weights(
                low, top, scales, offsets, d, dmin, table, rows, strips, num_strips, t,
                low_bits, top_bits, group, nested, offset, zero, has_table,
            )  # fmt: skip
            k = wanted[None, :, None] * STRIP + t * TILE + lane[None, None, :]
            k = tl.broadcast_to(k, (block_n, block_s, TILE))
            sums = ()
            for m in tl.static_range(block_x):
                a = tl.load(x + m * columns + k, mask=(k < columns) & (m < num_x), other=0.0)
                sums = sums + (totals[m] + w * a.to(tl.float32),)  # noqa: RUF005
            totals = sums
    for m in tl.static_range(block_x):
        result = tl.sum(tl.sum(totals[m], axis=2), axis=1)
        if has_bias:
            result += tl.load(bias + rows).to(tl.float32)
        result = result.to(out.dtype.element_ty)
        tl.store(out + m * num_rows + n, result, mask=(n < num_rows) & (m < num_x))


@triton.jit
def matmul(
    low, top, scales, offsets, d, dmin, table, x, bias, out, num_rows, columns, num_strips, num_x,
    low_bits: tl.constexpr, top_bits: tl.constexpr, group: tl.constexpr, nested: tl.constexpr,
    offset: tl.constexpr, zero: tl.constexpr, has_table: tl.constexpr, has_bias: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_s: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    """As `matvec`, for any number of rows of x: (block_m, block_n) of out in a program, on tensor
    cores. Weights become numbers of x's type in registers; float32 is not rounded to TF32. `tiles`
    is that of a strip."""
    m = tl.program_id(0).to(tl.int64) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1).to(tl.int64) * block_n + tl.arange(0, block_n)
    x_rows, rows = tl.minimum(m, num_x - 1), tl.minimum(n, num_rows - 1)
    lane = tl.arange(0, TILE)
    total = tl.zeros((block_m, block_n), tl.float32)
    # One loop over strips and tiles, not unrolled: the compiler keeps some of its steps in flight,
    # and of eight products at once the operands would not find room.
    for step in range(0, tl.cdiv(num_strips, block_s) * tiles):
        t = step % tiles
        wanted = step // tiles * block_s + tl.arange(0, block_s)
        strips = tl.minimum(wanted, num_strips - 1)
        w = _weights(
            low, top, scales, offsets, d, dmin, table, rows, strips, num_strips, t,
            low_bits, top_bits, group, nested, offset, zero, has_table,
        )  # fmt: skip
        k = wanted[:, None] * STRIP + t * TILE + lane[None, :]
        place = x_rows[:, None, None] * columns + k[None, :, :]
        a = tl.load(x + place, mask=(k < columns)[None, :, :], other=0.0)
        a = tl.reshape(a, (block_m, block_s * TILE))
        w = tl.reshape(w.to(a.dtype), (block_n, block_s * TILE))
        total = tl.dot(a, tl.trans(w), total, input_precision="ieee")
    if has_bias:
        total += tl.load(bias + rows).to(tl.float32)[None, :]
    stored = (m < num_x)[:, None] & (n < num_rows)[None, :]
    place = m[:, None] * num_rows + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=stored)


@triton.jit
def take_rows(
    low, top, scales, offsets, d, dmin, table, ids, out, columns, num_strips,
    low_bits: tl.constexpr, top_bits: tl.constexpr, group: tl.constexpr, nested: tl.constexpr,
    offset: tl.constexpr, zero: tl.constexpr, has_table: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    """out (num_ids, columns) float32 = the rows `ids` int64 (num_ids,), which must exist."""
    number = tl.program_id(0).to(tl.int64)
    rows = tl.load(ids + number + tl.arange(0, 1))
    wanted = tl.program_id(1) * block_s + tl.arange(0, block_s)
    strips = tl.minimum(wanted, num_strips - 1)
    lane = tl.arange(0, TILE)
    for t in tl.static_range(TILES):
        w = _weights(
            low, top, scales, offsets, d, dmin, table, rows, strips, num_strips, t,
            low_bits, top_bits, group, nested, offset, zero, has_table,
        )  # fmt: skip
        k = wanted[None, :, None] * STRIP + t * TILE + lane[None, None, :]
        tl.store(out + number * columns + k, w, mask=k < columns)
