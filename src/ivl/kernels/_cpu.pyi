# The compiled extension; `ivl.kernels.cpu` documents what it does. Arrays are contiguous, on the
# CPU, and of the type and the shape that a function says; others are refused (csrc/arguments.hpp):
# TypeError for another type or device, ValueError for another shape.

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Array = Tensor | np.ndarray | Any
"""The last: a capsule of `torch.utils.dlpack.to_dlpack`, which is quicker to read than a tensor."""

def isa() -> str: ...
def use_isa(name: str) -> bool: ...
def usable_isas() -> list[str]: ...

# threads
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def thread_pool() -> str: ...
def use_openmp(path: str) -> bool: ...
def tasks_not_run_once(num_tasks: int) -> int: ...
def fail_in_task(num_tasks: int, failing: int, phases: int) -> None: ...
def fail_allocation(after: int) -> None: ...

# limits
def read_bandwidth(num_bytes: int) -> float: ...
def byte_products(rounds: int) -> float: ...

# matmul
class PackedMatrix:
    part_rows: int
    def __init__(self, parts: Sequence[Array], type_id: int, columns: int) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def matmul(self, x: Array, bias: Array | None, out: Array) -> None: ...
    def rows_at(self, ids: Array, out: Array) -> None: ...

def supports_format(type_id: int) -> bool: ...
def quantize_rows(x: Array, values: Array, scales: Array) -> None: ...
def float_matmul(weights: Array, x: Array, bias: Array | None, out: Array) -> None: ...

# decoder
class KVBlocks:
    def __init__(
        self, layers: Sequence[Array], type: int, kv_heads: int, head_dim: int
    ) -> None: ...

class Decoder:
    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate: int,
        norm_eps: float,
        layers: list[tuple[Any, ...]],
        norm: Array | None,
    ) -> None: ...
    def extend(
        self,
        x: Array,
        cos: Array,
        sin: Array,
        segments: Sequence[tuple[int, int, Sequence[int]]],
        cache: KVBlocks,
    ) -> None: ...
    def attend(
        self,
        layer: int,
        q: Array,
        k: Array,
        v: Array,
        cos: Array,
        sin: Array,
        segments: Sequence[tuple[int, int, Sequence[int]]],
        cache: KVBlocks,
        out: Array,
    ) -> None: ...

# codec
OUT_OF_RANGE: int
NOT_FINITE: int

def quantize(
    type_id: int,
    weights: np.ndarray,
    importance: np.ndarray | None,
    limit: float,
    out: np.ndarray,
) -> int: ...
def dequantize(type_id: int, blocks: np.ndarray, out: np.ndarray) -> None: ...

# dense products; the numbers of types, norms and epilogues are those of csrc/dense.hpp
def has_float16_products() -> bool: ...
def weight_memory(num_bytes: int) -> np.ndarray: ...
def dense_prepare(
    x: Tensor,
    type: int,
    norm: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    values: Tensor,
    scales: Tensor,
    sums: Tensor,
) -> None: ...
def dense_multiply(
    type: int,
    values: Tensor,
    scales: Tensor,
    sums: Tensor,
    panels: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    epilogue: int,
    channel_scales: Tensor | None,
) -> None: ...
def dense_pack(
    type: int, weight: Tensor, float16_most: float, panels: Tensor, scales: Tensor
) -> None: ...
def tile_attention(qkv: Tensor, num_heads: int, out: Tensor) -> None: ...
