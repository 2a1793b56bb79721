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

from ivl.kernels.triton import attention as attention_module
from ivl.kernels.triton import pointwise, products
from ivl.kernels.triton.layout import LAYOUTS, TILES
from ivl.kernels.triton.matrix import matmul_tiles, matvec_tiles
from ivl.kv import BLOCK_TOKENS

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


def compiled_step(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], capability: int
) -> dict[str, Any]:
    """A kernel that is not over matrices. What is neither pointer nor constant is an integer."""
    arguments = kernel.arg_names
    floats = {"factor": "fp32", "eps": "fp32"}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, floats.get(name, "i32"))
        for name in arguments
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(arguments.index(name),): value for name, value in constants.items()},
    )
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(source, target=target, options={"num_warps": 4})
    return {
        "kernel": kernel.__name__,
        "format": "",
        "shared_bytes": result.metadata.shared,
        "wide_loads": 0,
        "tensor_cores": "mma" in result.asm["ptx"],
    }


def steps(capability: int) -> list[dict[str, Any]]:
    """The attention of 78B (64 heads on 8, of 128 channels), and what lies between products."""
    half = "*bf16"
    attention = {
        "q": half, "tables": "*i32", "sequences": "*i32", "lengths": "*i32",
        "tops": "*fp32", "sums": "*fp32", "values": "*fp32", "out": half,
    }  # fmt: skip
    shape = {
        "group": 8, "rows": 16, "head_dim": 128, "width": 128, "block_tokens": BLOCK_TOKENS,
        "tile": attention_module.TILE,
    }  # fmt: skip
    caches = (({"numbers": half, "scales": half}, 0), ({"numbers": "*i8", "scales": "*fp32"}, 32))
    found = [
        compiled_step(
            attention_module.attend, attention | cache, shape | {"scale_group": group}, capability
        )
        for cache, group in caches
    ]
    joined = {"head_dim": 128, "width": 128, "parts": 64}
    found.append(compiled_step(attention_module.join, attention, joined, capability))
    norm = dict.fromkeys(("x", "delta", "weight", "total", "out"), half)
    constants = {"adds": True, "block": 8192}
    found.append(compiled_step(pointwise.rms_norm_kernel, norm, constants, capability))
    gates = dict.fromkeys(("gate", "up", "out"), half)
    found.append(compiled_step(pointwise.swiglu_kernel, gates, {"block": 1024}, capability))
    turned = dict.fromkeys(("x", "cos", "sin", "out"), half)
    found.append(compiled_step(pointwise.rotate_kernel, turned, {"block": 64}, capability))
    return found


def main() -> None:
    found = [
        compiled(products.matvec, name, matvec_tiles(STRIPS, 1), 86)
        for name in ("Q4_K", "Q6_K", "AWQ")
    ]
    found += [
        compiled(products.matmul, "Q4_K", matmul_tiles(512, torch.bfloat16), capability)
        for capability in (86, 90)
    ]
    found += [row for capability in (86, 90) for row in steps(capability)]
    print(json.dumps(found))


main()
