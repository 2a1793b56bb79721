"""Weights as the layers of a model see them, and their products: on CPUs in the C++ extension
(`csrc/matmul.hpp`, `csrc/float_matmul.hpp`), and by dequantizing, which is right by definition.

With weights of 16 or 32 bits the product is ours or torch's, whichever is faster. With few rows of
activations the weights are read once, at the speed of the memory; torch reads bfloat16 at about
half of that. With many rows it depends on the processor: one with fast products of 16-bit numbers
is best left to torch (oneDNN), the others widen to float32 faster in our kernel. That is measured
once, when it is first needed.
"""

from __future__ import annotations

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from ivl.host import has_bfloat16_tiles
from ivl.kernels import cpu
from ivl.kernels.mapped import release_pages
from ivl.quant.formats import find_format


class Matrix(ABC):
    """A weight of (rows, columns) that stays quantized in memory.

    Immutable. Implementations keep the weights as suits their device, in at most 1.15 times the
    bytes of the blocks they were made of.
    """

    rows: int
    columns: int
    format: str
    """The name of the block format, such as `Q4_K`."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that the matrix keeps in memory (a mapped file's pages counted)."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., columns) -> x W^T + bias, (..., rows), in the type of x."""

    @abstractmethod
    def rows_at(self, ids: Tensor) -> Tensor:
        """The rows `ids` (...,) int64, dequantized: float32 (..., columns)."""

    def dequantize(self) -> Tensor:
        """The whole matrix, float32 (rows, columns); for tests and for small matrices."""
        return self.rows_at(torch.arange(self.rows))


class StackedMatrix(Matrix):
    """Matrices of several formats, one below the other: the query, key and value projections of a
    vision tower, which the model applies as one."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self.parts = tuple(parts)
        self.rows = sum(part.rows for part in parts)
        self.columns = parts[0].columns
        self.format = "+".join(dict.fromkeys(part.format for part in parts))

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.cat([part.linear(x) for part in self.parts], dim=-1)
        return out if bias is None else out + bias.to(out.dtype)

    def rows_at(self, ids: Tensor) -> Tensor:
        out = torch.empty((*ids.shape, self.columns), dtype=torch.float32, device=ids.device)
        first = 0
        for part in self.parts:
            here = (ids >= first) & (ids < first + part.rows)
            out[here] = part.rows_at(ids[here] - first)
            first += part.rows
        return out


FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The plain types that kernels know."""
DTYPES = frozenset(FLOAT_DTYPES.values())

FEW_ROWS = 8
"""Up to so many rows our kernel reads the weights only once, and is never the slower one."""

SEVERAL_ROWS = 32
"""Up to so many rows, what torch does between products costs more than a slower product can; and
with bfloat16 our sums have one order, whatever the number of rows (`csrc/bfloat16_matmul.hpp`)."""

LEEWAY = 1.2
"""By how much torch's products may be faster where what it does between them comes on top: its
tower took 1.3 times as long with products of the same speed (demo, on Zen 4)."""

TRIAL_SHAPE = (192, 1024, 1024)
"""Rows of activations, outputs and inputs of the product that the choice is measured with."""


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., columns) times weight (rows, columns), plus bias: (..., rows), in the type of x.

    Sums are in float32. The types of x, weight and bias may differ.
    """
    num_rows = x.numel() // max(1, weight.shape[1])
    if can_multiply(x, weight) and (
        num_rows <= few_rows(weight.dtype) or ours_is_faster(weight.dtype)
    ):
        return _multiply(x, weight, bias)
    if x.dtype == weight.dtype:
        return torch.nn.functional.linear(x, weight, bias)
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernel can: on a CPU, with the extension, and no gradient is wanted."""
    return (
        weight.device.type == "cpu"
        and x.dtype in DTYPES
        and weight.dtype in DTYPES
        and weight.is_contiguous()
        and not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad))
        and cpu.extension() is not None
    )


def ours_is_faster(dtype: torch.dtype) -> bool:
    """Whether products with many rows are clearly faster in our kernel."""
    return _share_of_torch(dtype) < 0.8


def layers_are_faster(dtype: torch.dtype, num_rows: int, of_prompt: bool = False) -> bool:
    """Whether a decoder's layers in one call, over weights of this type, beat torch's, whose
    operations between the products come on top.

    of_prompt: the rows are of prompts, for which the answer is one, however they are cut.
    """
    if num_rows <= few_rows(dtype) and not of_prompt:
        return True
    if _has_pairs(dtype):
        # torch has the same instructions, if no better ones. What a busy machine measures differs
        # from time to time, and the answers would differ with it.
        return not has_bfloat16_tiles() or _share_of_torch(dtype) < LEEWAY
    return ours_is_faster(dtype)


def few_rows(dtype: torch.dtype) -> int:
    """Up to so many rows our kernel is the right one for weights of this type."""
    return SEVERAL_ROWS if _has_pairs(dtype) else FEW_ROWS


def _has_pairs(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies pairs of numbers of this type."""
    extension = cpu.extension()
    return dtype == torch.bfloat16 and extension is not None and extension.has_bfloat16_products()


@functools.cache
def _share_of_torch(dtype: torch.dtype) -> float:
    """The time of our product with many rows by that of torch: measured, some 20 ms.

    1 for float32, where both do the same.
    """
    if dtype == torch.float32:
        return 1.0
    rows, outputs, inputs = TRIAL_SHAPE
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)

    ours_s = cpu.fastest_s(lambda: _multiply(x, weight, None), 3)
    return ours_s / cpu.fastest_s(lambda: torch.nn.functional.linear(x, weight), 3)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    extension = cpu.extension()
    assert extension is not None
    rows, columns = weight.shape
    if x.shape[-1] != columns:
        raise ValueError(f"x must be (..., {columns}), not {tuple(x.shape)}")
    x = x.detach().contiguous()
    out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    bias = None if bias is None else bias.detach().float().contiguous()
    extension.float_matmul(
        to_dlpack(weight.detach()),
        to_dlpack(x),
        None if bias is None else to_dlpack(bias),
        to_dlpack(out),
    )
    return out


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


ROWS_AT_ONCE = 1024
"""Rows that are dequantized at once: bounds the memory beside the matrix."""


class ReferenceMatrix(Matrix):
    """Keeps the blocks as they are in the file, and dequantizes a few rows at a time."""

    def __init__(self, blocks: np.ndarray, format: str, device: torch.device | str = "cpu") -> None:
        """blocks: uint8 (rows, row_bytes), kept without a copy. `device`: where results live."""
        self._format = find_format(format)
        self._blocks, self._device = blocks, torch.device(device)
        self.format = self._format.name
        self.rows = blocks.shape[0]
        self.columns = blocks.shape[1] // self._format.block_bytes * self._format.block_size

    @property
    def num_bytes(self) -> int:
        return self._blocks.nbytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty((*x.shape[:-1], self.rows), dtype=x.dtype, device=x.device)
        for start in range(0, self.rows, ROWS_AT_ONCE):
            part = self._rows(np.s_[start : start + ROWS_AT_ONCE])
            # float32 throughout: half precision on a CPU would round the weights once more.
            product = x.float() @ part.to(x.device).T
            out[..., start : start + len(part)] = product.to(x.dtype)
        return out if bias is None else out + bias

    def rows_at(self, ids: Tensor) -> Tensor:
        flat = self._rows(ids.flatten().cpu().numpy())
        return flat.to(ids.device).reshape(*ids.shape, self.columns)

    def _rows(self, which: slice | np.ndarray) -> Tensor:
        return torch.from_numpy(self._format.dequantize(self._blocks[which]))
