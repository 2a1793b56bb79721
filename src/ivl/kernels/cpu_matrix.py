"""Matrices on CPUs, in the C++ extension (`csrc/matmul.hpp`, `csrc/float_matmul.hpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from ivl.kernels.float_linear import float_linear
from ivl.kernels.mapped import release_pages
from ivl.kernels.matrix import Matrix
from ivl.quant.formats import find_format

FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CpuMatrix(Matrix):
    """Keeps the weights with 16 rows interleaved; multiplies by int8 activations.

    Activations are rounded to 8 bits with a scale for each 32 of them. What is computed depends on
    neither the number of threads nor how many activations are multiplied at once.
    """

    def __init__(
        self, blocks: np.ndarray, format: str, extension: ModuleType, *more: np.ndarray
    ) -> None:
        """blocks: uint8 (rows, row_bytes); not kept. `extension`: of `ivl.kernels.cpu`.

        more: further rows. Where some follow, `can_join` must hold for those before.
        """
        parts = (blocks, *more)
        found = find_format(format)
        self.format = found.name
        self.rows = sum(len(part) for part in parts)
        self.columns = blocks.shape[1] // found.block_bytes * found.block_size
        contiguous = [np.ascontiguousarray(part) for part in parts]
        self.packed = extension.PackedMatrix(contiguous, found.type_id, self.columns)
        for part in parts:
            release_pages(part)
        self._bias: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def can_join(parts: Sequence[np.ndarray], extension: ModuleType) -> bool:
        """Whether rows in several arrays can be packed without bringing them together first."""
        return all(len(part) % extension.PackedMatrix.part_rows == 0 for part in parts[:-1])

    @property
    def num_bytes(self) -> int:
        return self.packed.num_bytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.columns:
            raise ValueError(f"x must be (..., {self.columns}), not {tuple(x.shape)}")
        x = x.detach().contiguous()
        out = torch.empty((*x.shape[:-1], self.rows), dtype=x.dtype)
        added = None if bias is None else to_dlpack(self._float_bias(bias))
        self.packed.matmul(to_dlpack(x), added, to_dlpack(out))
        return out

    def rows_at(self, ids: Tensor) -> Tensor:
        flat = ids.flatten().to(torch.int64).contiguous()
        out = torch.empty((flat.numel(), self.columns))
        self.packed.rows_at(to_dlpack(flat), to_dlpack(out))  # IndexError for one that is not there
        return out.reshape(*ids.shape, self.columns)

    def _float_bias(self, bias: Tensor) -> Tensor:
        """The bias in float32, converted once for each tensor."""
        if bias.dtype == torch.float32 and bias.is_contiguous():
            return bias.detach()
        if self._bias is None or self._bias[0] is not bias:
            self._bias = (bias, bias.detach().float().contiguous())
        return self._bias[1]


class CpuFloatMatrix(Matrix):
    """Weights of 16 or 32 bits as they lie in the file; products are summed in float32."""

    def __init__(self, blocks: np.ndarray, format: str) -> None:
        """blocks: uint8 (rows, row_bytes) of F32, F16 or BF16, kept without a copy."""
        self.format = find_format(format).name
        # torch warns of arrays that must not be written, such as views of a mapped file. Nothing
        # writes here: it is shown the bytes alone, and the array is kept as long as they are used.
        self._blocks = np.ascontiguousarray(blocks)
        dtype = FLOAT_DTYPES[self.format]
        self.rows, self.columns = len(blocks), blocks.shape[1] // dtype.itemsize
        if blocks.size:
            memory = (ctypes.c_uint8 * blocks.size).from_address(self._blocks.ctypes.data)
            # Whoever holds the tensor holds the bytes.
            memory.array = self._blocks  # pyright: ignore[reportAttributeAccessIssue]
            self.weight = torch.frombuffer(memory, dtype=dtype).view(self.rows, self.columns)
        else:
            self.weight = torch.empty(self.rows, self.columns, dtype=dtype)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def release(self) -> None:
        """Gives back the memory of the file's pages, until they are looked at again."""
        release_pages(self._blocks)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return float_linear(x, self.weight, bias)

    def rows_at(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float()
