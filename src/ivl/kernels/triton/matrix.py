"""Quantized matrices on a GPU, multiplied by without being unpacked in memory."""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from ivl.kernels.mapped import release_pages
from ivl.kernels.matrix import Matrix
from ivl.kernels.triton import Kernel, products
from ivl.kernels.triton.layout import LAYOUTS, TILES, num_strips, repack
from ivl.quant.formats import find_format

# To a type checker they are the functions that Triton compiles.
matvec: Kernel = products.matvec
matmul: Kernel = products.matmul
take_rows: Kernel = products.take_rows

MATVEC_ROWS = 8
"""Up to so many rows of activations go to the kernel that reads every weight once; beyond that,
tensor cores are worth their tiles."""


class TritonMatrix(Matrix):
    """Keeps the weights as `ivl.kernels.triton.layout` says; multiplies in float32 or, with many
    rows of 16-bit activations, by weights rounded to their type.

    A row of activations gives the same up to rounding alone and among others.
    """

    def __init__(self, blocks: np.ndarray, format: str, device: torch.device | str) -> None:
        """blocks: uint8 (rows, row_bytes) of a format in `LAYOUTS`; not kept."""
        found = find_format(format)
        self.format = found.name
        self.rows = len(blocks)
        self.columns = blocks.shape[1] // found.block_bytes * found.block_size
        self.planes = repack(blocks, found.name, device)
        release_pages(blocks)
        layout = LAYOUTS[found.name]
        self._table = (
            torch.tensor(layout.table, dtype=torch.float32, device=device) if layout.table else None
        )
        self._properties = {
            "low_bits": layout.low_bits,
            "top_bits": layout.top_bits,
            "group": layout.group,
            "nested": layout.nested,
            "offset": layout.offset,
            "zero": layout.zero,
            "has_table": layout.table is not None,
        }

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.planes.tensors())

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.columns:
            raise ValueError(f"x must be (..., {self.columns}), not {tuple(x.shape)}")
        flat = x.detach().reshape(-1, self.columns).contiguous()
        out = torch.empty((len(flat), self.rows), dtype=x.dtype, device=x.device)
        if out.numel():
            launch = self._matvec if len(flat) <= MATVEC_ROWS else self._matmul
            # Triton launches on the current device, which need not be that of the matrix.
            with torch.cuda.device_of(out):
                launch(flat, bias, out)
        return out.reshape(*x.shape[:-1], self.rows)

    def rows_at(self, ids: Tensor) -> Tensor:
        """`ids` that lie on the processor are checked; IndexError. A GPU is not waited for."""
        flat = ids.flatten().to(torch.int64)
        if flat.device.type == "cpu" and flat.numel():
            if not 0 <= int(flat.min()) <= int(flat.max()) < self.rows:
                raise IndexError(f"ids must be in [0, {self.rows})")
        flat = flat.to(self.planes.low.device).contiguous()
        out = torch.empty((len(flat), self.columns), device=flat.device)
        if out.numel():
            strips = num_strips(self.columns)
            block_s = min(16, triton.next_power_of_2(strips))
            grid = (len(flat), triton.cdiv(strips, block_s))
            with torch.cuda.device_of(out):
                take_rows[grid](
                    *self._parts(), flat, out, self.columns, strips, block_s=block_s, num_warps=4,
                    **self._properties,
                )  # fmt: skip
        return out.reshape(*ids.shape, self.columns)

    def dequantize(self) -> Tensor:
        return self.rows_at(torch.arange(self.rows))

    def _matvec(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        strips = num_strips(self.columns)
        sizes = matvec_tiles(strips, len(x))
        grid = (triton.cdiv(self.rows, sizes["block_n"]),)
        matvec[grid](
            *self._parts(), x, x if bias is None else bias, out,
            self.rows, self.columns, strips, len(x), has_bias=bias is not None,
            **self._properties, **sizes,
        )  # fmt: skip

    def _matmul(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        sizes = matmul_tiles(len(x), x.dtype)
        grid = (triton.cdiv(len(x), sizes["block_m"]), triton.cdiv(self.rows, sizes["block_n"]))
        matmul[grid](
            *self._parts(), x, x if bias is None else bias, out,
            self.rows, self.columns, num_strips(self.columns), len(x), has_bias=bias is not None,
            tiles=TILES, **self._properties, **sizes,
        )  # fmt: skip

    def _parts(self) -> tuple[Tensor, ...]:
        """What every kernel begins with; the low bits stand in for a part that is not there."""
        planes = self.planes
        parts = (planes.low, planes.top, planes.scales, planes.offsets, planes.d, planes.dmin)
        return tuple(planes.low if p is None else p for p in (*parts, self._table))


def matvec_tiles(strips: int, num_x: int) -> dict[str, int]:
    """Rows and strips of a program such that a thread reads 16 neighbouring bytes, and registers
    hold the sums of all rows of x."""
    block_s = min(16, 1 << (strips - 1).bit_length())
    block_x = 1 << (num_x - 1).bit_length()
    warps = 4 if block_x <= 2 else 8
    return {"block_n": 128 // block_s, "block_s": block_s, "block_x": block_x, "num_warps": warps}


def matmul_tiles(num_x: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles of out and of the columns. float32 products run without tensor cores: smaller ones."""
    if dtype == torch.float32:
        return {"block_m": 32, "block_n": 32, "block_s": 2, "num_warps": 4}
    block_m = 16 if num_x <= 16 else 64 if num_x <= 64 else 128
    return {"block_m": block_m, "block_n": 64, "block_s": 4, "num_warps": 4 if block_m < 128 else 8}
