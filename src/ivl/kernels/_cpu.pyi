# The compiled extension; `ivl.kernels.cpu` documents what it does, `csrc/include/ivl.h` each
# function. Arrays are contiguous, on the CPU, and of the type and the shape that a function says;
# others are refused (csrc/python.cpp): TypeError for another type or device, ValueError for another
# shape or number. What a handle is made of lives as long as it does.

from collections.abc import Sequence
from typing import Any, Literal

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
def tasks_not_run_once(num_tasks: int, failing: int = -1, phases: int = 0) -> int: ...
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
        self,
        layers: Sequence[Array],
        type: Literal["32bit", "16bit", "8bit"],
        kv_heads: int,
        head_dim: int,
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
        of_prompt: bool,
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
        of_prompt: bool,
        out: Array,
    ) -> None: ...

# codec
def quantize(
    type_id: int,
    weights: np.ndarray,
    importance: np.ndarray | None,
    limit: float,
    out: np.ndarray,
) -> int: ...
def dequantize(type_id: int, blocks: np.ndarray, out: np.ndarray) -> None: ...

# dense products
def has_float16_products() -> bool: ...
def has_bfloat16_products() -> bool: ...

Dense = Literal["int8", "float16", "bfloat16"]

class DenseRows:
    def __init__(self, arithmetic: Dense) -> None: ...
    def fill(
        self,
        x: Array,
        norm: Literal["none", "layer", "rms"],
        weight: Array | None,
        bias: Array | None,
        eps: float,
    ) -> None: ...

class DensePanels:
    part_outputs: int
    def __init__(self, arithmetic: Dense, parts: Sequence[Array], bias: Array | None) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def multiply(self, rows: DenseRows, out: Array, gelu: bool) -> None: ...
    def add_scaled(self, rows: DenseRows, channel_scales: Array, out: Array) -> None: ...

def tile_attention(arithmetic: Dense, qkv: Array, heads: int, out: Array) -> None: ...
