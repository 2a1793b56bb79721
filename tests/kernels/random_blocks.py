"""Blocks of random bytes, and the weights in them by the package `gguf`, which we did not write."""

from __future__ import annotations

import gguf
import numpy as np

from ivl.quant.formats import find_format

HALVES_AT = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "Q4_1": (0, 2), "Q5_1": (0, 2),
}  # fmt: skip
"""Where the blocks have float16 numbers; the others have one, at their beginning."""


def random_blocks(name: str, rows: int, columns: int) -> np.ndarray:
    """uint8 (rows, row_bytes), not to be written: random bytes, but scales of ordinary size."""
    format_ = find_format(name)
    rng = np.random.default_rng([rows, columns, format_.block_bytes])
    blocks = rng.integers(0, 256, (rows, format_.row_bytes(columns)), np.uint8)
    fields = blocks.reshape(-1, format_.block_bytes)
    for at in HALVES_AT.get(name, (0,)):
        halves = rng.uniform(-0.02, 0.02, len(fields)).astype("<f2")
        fields[:, at : at + 2] = halves[:, None].view(np.uint8)
    if name == "AWQ":
        fields[:, 2] &= 15
        fields[:, 3] = 0
    blocks.flags.writeable = False
    return blocks


def weights_of(name: str, blocks: np.ndarray) -> np.ndarray:
    """float32 (rows, columns); by our own reference for AWQ, which `gguf` does not know."""
    if name == "AWQ":
        return find_format(name).dequantize(blocks)
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
