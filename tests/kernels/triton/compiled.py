"""Compiles the products for GPUs that need not be there; prints what each takes, as JSON.

Run by `test_compile.py` in an interpreter of its own, for Triton either compiles or interprets.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ivl.kernels.triton import products
from ivl.kernels.triton.layout import LAYOUTS, TILES
from ivl.kernels.triton.matrix import matmul_tiles, matvec_tiles

STRIPS = 64
"""8192 columns."""


def compiled(kernel: Any, name: str, sizes: dict[str, Any], capability: int) -> dict[str, Any]:
    layout, options = LAYOUTS[name], dict(sizes)
    warps = options.pop("num_warps")
    constants: dict[str, Any] = {
        "low_bits": layout.low_bits, "top_bits": layout.top_bits, "group": layout.group,
        "nested": layout.nested, "offset": layout.offset, "zero": layout.zero,
        "has_table": layout.table is not None, "has_bias": True, **options,
    }  # fmt: skip
    if kernel is products.matmul:
        constants["tiles"] = TILES
    small = "*i8" if layout.nested else "*fp16"
    types = {
        "low": "*u8", "top": "*u8", "scales": small, "d": "*fp16", "dmin": "*fp16",
        "offsets": "*i8" if layout.offset == "points" else small, "table": "*fp32",
        "x": "*bf16", "bias": "*bf16", "out": "*bf16",
    }  # fmt: skip
    arguments = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in arguments
    }
    even = [["tt.divisibility", 16]]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(arguments.index(name),): value for name, value in constants.items()},
        attrs={(arguments.index(name),): even for name in (*types, "num_rows", "columns")},
    )
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(source, target=target, options={"num_warps": warps})
    ptx = result.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "format": name,
        "shared_bytes": result.metadata.shared,
        "wide_loads": ptx.count("ld.global.v4.b32"),
        "tensor_cores": "mma" in ptx,
    }


def main() -> None:
    found = [
        compiled(products.matvec, name, matvec_tiles(STRIPS, 1), 86)
        for name in ("Q4_K", "Q6_K", "AWQ")
    ]
    found += [
        compiled(products.matmul, "Q4_K", matmul_tiles(512, torch.bfloat16), capability)
        for capability in (86, 90)
    ]
    print(json.dumps(found))


main()
