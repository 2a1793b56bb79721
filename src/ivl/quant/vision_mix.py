"""Which format each tensor of a projector's file (tower and projector) gets.

As llama.cpp has it (conversion/base.py, conversion/intern_vision.py, `tensor_allows_quantization`
in src/llama-quant.cpp): matrices get the one format that is asked for, or F16 where its blocks do
not divide the rows; vectors, the class token and the positions stay F32; the first layer, which
runs as a convolution, is F16 in a file of F16 and F32 in any other.
"""

from __future__ import annotations

from ivl.errors import UnsupportedError
from ivl.quant.block_sizes import BLOCK_SIZES
from ivl.quant.mixes import MIXES
from ivl.spelling import nearest

VISION_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_0")
"""K-quants are not among them: 3200, the width of the 6B tower, is no multiple of 256."""


def find_vision_type(name: str) -> str:
    """The type of a name in any case. Raises UnsupportedError that names the nearest."""
    found = name.upper()
    if found not in VISION_TYPES:
        near = nearest(found, VISION_TYPES)
        hint = f"Did you mean {near}? " if near else ""
        if found in MIXES:
            hint = "K-quants do not divide the rows of the 6B tower. " if "K" in found else ""
        raise UnsupportedError(
            f"The vision tower cannot be {name!r}.", f"{hint}It may be {', '.join(VISION_TYPES)}."
        )
    return found


def vision_file_type(vision_type: str) -> int:
    """`general.file_type` of a projector's file."""
    return MIXES[vision_type].file_type


def vision_tensor_type(vision_type: str, name: str, shape: tuple[int, ...]) -> str:
    """The format of a tensor by its name in GGUF, such as `v.blk.3.ffn_up.weight`.

    `shape` is (..., rows, columns), the columns lying next to each other in memory.
    """
    if len(shape) < 2 or not name.endswith("weight") or name == "v.position_embd.weight":
        return "F32"
    if name == "v.patch_embd.weight":
        return "F16" if vision_type == "F16" else "F32"
    if shape[-1] % BLOCK_SIZES[vision_type].size:
        return "F16"
    return vision_type
