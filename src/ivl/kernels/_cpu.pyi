# The compiled extension; `ivl.kernels.cpu` documents what it does.

import numpy as np
from torch import Tensor

def isa() -> str: ...
def use_isa(name: str) -> bool: ...
def usable_isas() -> list[str]: ...

# threads
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def thread_pool() -> str: ...
def use_openmp(path: str) -> bool: ...
def tasks_not_run_once(num_tasks: int) -> int: ...

# limits
def read_bandwidth(num_bytes: int) -> float: ...
def byte_products(rounds: int) -> float: ...

# matmul
class PackedMatrix:
    part_rows: int
    def __init__(self, parts: list[tuple[int, int]], type_id: int, columns: int) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def matmul(
        self, x: int, x_dtype: int, num_rows: int, bias: int, out: int, out_dtype: int
    ) -> None: ...
    def rows_at(self, ids: int, num_ids: int, out: int) -> None: ...

def supports_format(type_id: int) -> bool: ...
def quantize_rows(x: int, num_rows: int, columns: int, values: int, scales: int) -> None: ...
def float_matmul(
    weights: int,
    weights_dtype: int,
    rows: int,
    columns: int,
    x: int,
    x_dtype: int,
    num_rows: int,
    bias: int,
    out: int,
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
def tile_attention(qkv: Tensor, num_heads: int, out: Tensor) -> None: ...
